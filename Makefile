.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
JOBS ?= 2
LOCK := mkdir -p build && flock build/.lock
QUIET_CPU := nice -n 5
SITE = $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

.PHONY: help build test-cpp
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## compile and install the Python package into .venv (editable)
	@$(LOCK) $(MAKE) --no-print-directory build-unlocked

build-unlocked:
	@if [ -f build/python/.installed ] && [ ! pyproject.toml -nt build/python/.installed ]; then \
	  $(QUIET_CPU) cmake --build build/python -j $(JOBS) && cmake --install build/python --prefix $(SITE)/hybridattn > build/install.log; \
	else \
	  rm -rf build/python; $(PYTHON) -m pip uninstall -q -y hybridattn; \
	  CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(QUIET_CPU) $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e . && touch build/python/.installed; \
	fi

test-cpp: ## build and run the C++ tests
	@$(LOCK) $(MAKE) --no-print-directory test-cpp-unlocked

test-cpp-unlocked:
	@[ -f build/tests/build.ninja ] || PATH="$$PWD/.venv/bin:$$PATH" cmake -S . -B build/tests -G Ninja -DHYBRIDATTN_BUILD_TESTS=ON -DPython_EXECUTABLE=$$PWD/$(PYTHON)
	$(QUIET_CPU) cmake --build build/tests -j $(JOBS)
	OMP_NUM_THREADS=$(JOBS) ctest --test-dir build/tests --output-on-failure
