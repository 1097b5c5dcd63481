# Everything a developer does, one target each. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PYTHON3 ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=

PYTHON := .venv/bin/python
NICE := nice -n 5
space := $(subst ,, )
# One build at a time: two would write the same files.
LOCK := mkdir -p build && flock build/.lock
CMAKE_TESTS = cmake -S . -G Ninja -DHYBRIDATTN_BUILD_TESTS=ON -DPython_EXECUTABLE=$(CURDIR)/$(PYTHON)
CTEST := OMP_NUM_THREADS=$(JOBS) ctest --output-on-failure --test-dir

.PHONY: help setup build test test-cpp test-sanitize test-python lint bench bench-selection docs demo demo-smollm2 clean \
        _environment _build _parity _tests_cpp _tests_sanitize

help:
	@echo "hybridattn. Targets:"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16 | sed 's/^/  /'

setup: ## prepare this machine: system packages, .venv, PyTorch, the package built and installed (editable)
	@.ci/system-packages
	@$(LOCK) $(MAKE) _environment _build

demo: setup ## the whole pipeline on the tiny teacher: at most 10 minutes on 2 cores
	@$(PYTHON) examples/tiny_teacher/prepare.py --out build/tiny_teacher
	@.venv/bin/hybridattn run examples/tiny_teacher/demo.toml $(ARGS)

demo-smollm2: setup ## the whole pipeline on SmolLM2-135M: at most 60 minutes on 2 cores (TEXT=folder: your text)
	@$(PYTHON) -m pip install -q gguf accelerate
	@$(PYTHON) examples/smollm2/prepare.py --out build/smollm2 $(if $(TEXT),--text "$(TEXT)")
	@.venv/bin/hybridattn run smollm2-cpu $(ARGS)

test: setup ## all tests: C++, C++ under sanitizers (kernels, select, io), Python, projects that consume the package
	@failed=; for part in test-cpp test-sanitize test-python; do \
	  echo; echo "==== $$part"; $(MAKE) $$part || failed="$$failed $$part"; done; \
	if [ -n "$$failed" ]; then echo; echo "FAILED:$$failed"; exit 1; fi

test-cpp: ## build and run the C++ tests (FOLDERS="ops nn": only these)
	@$(LOCK) $(MAKE) _environment _tests_cpp
	@$(CTEST) build/tests $(if $(FOLDERS),-R '^($(subst $(space),|,$(strip $(FOLDERS))))$$')

test-sanitize: ## the same with ASan and UBSan; without FOLDERS: kernels, select and io
	@$(LOCK) $(MAKE) _environment _tests_sanitize
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(CTEST) build/sanitize

test-python: ## run the Python tests and the consumer projects (ARGS="-k name" selects)
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: ## ruff, clang-format and mypy
	@failed=; \
	ruff check . || failed=1; \
	ruff format --check . || failed=1; \
	git ls-files -co --exclude-standard '*.h' '*.cpp' | xargs clang-format --dry-run -Werror || failed=1; \
	mypy || failed=1; \
	[ -z "$$failed" ]

lint-headers: ## compile every public header alone (minutes): none may rely on its includer
	@$(LOCK) $(MAKE) _environment build/headers/build.ninja
	@$(NICE) cmake --build build/headers -j $(JOBS) --target all_verify_interface_header_sets

bench: setup ## measure the ops against PyTorch and Transformers: ratios of one run
	@$(PYTHON) benchmarks/run.py $(ARGS)

bench-selection: setup ## layer selectors against exhaustive search: hours; goes on where it stopped (ARGS="--minutes 30")
	@$(PYTHON) examples/tiny_teacher/prepare.py --out build/tiny_teacher
	@OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.selection.run $(ARGS)
	@$(PYTHON) -m benchmarks.selection.report

docs: setup ## check every link of the pages, write the Python reference to build/docs
	@$(PYTHON) docs/build.py

build: ## compile what changed and install it into .venv (needs `make setup` once)
	@$(LOCK) $(MAKE) _environment _build

clean: ## remove everything that was built; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache

# ---- the environment: PyTorch first and alone, so that nothing else pulls another one in ----
_environment: .venv/.packages

.venv/bin/python:
	@$(PYTHON3) -m venv .venv

.venv/.torch: | .venv/bin/python
	@echo "Installing $(TORCH)"
	@$(PYTHON) -m pip install -q $(TORCH)
	@touch $@

.venv/.packages: .venv/.torch pyproject.toml .ci/requirements.py
	@echo "Installing the Python packages"
	@$(PYTHON) .ci/requirements.py > build/requirements.txt
	@$(PYTHON) -m pip install -q -r build/requirements.txt
	@touch $@

# ---- the Python module ----
_build: build/python/.installed
	@$(NICE) cmake --build build/python -j $(JOBS)
	@cmake --install build/python --prefix "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/hybridattn" \
	  > build/python/install.log

# Uninstalled first: scikit-build-core would import the old one, which may be broken, to look for CMake files.
build/python/.installed: .venv/.packages bindings/CMakeLists.txt
	@echo "Compiling hybridattn (minutes the first time)"
	@$(PYTHON) -m pip uninstall -q -y hybridattn
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(NICE) $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@

# ---- the C++ tests ----
_tests_cpp: build/tests/build.ninja
	@$(NICE) cmake --build build/tests -j $(JOBS) $(if $(FOLDERS),--target $(addprefix ha_tests_,$(FOLDERS)))

_parity:
	@$(LOCK) $(MAKE) build/tests/build.ninja
	@$(LOCK) $(NICE) cmake --build build/tests -j $(JOBS) --target ha_parity

SANITIZED = $(or $(FOLDERS),kernels select io)
_tests_sanitize: .venv/.packages
	@$(CMAKE_TESTS) -B build/sanitize -DHYBRIDATTN_SANITIZE=ON "-DHYBRIDATTN_TEST_FOLDERS=$(SANITIZED)" >/dev/null
	@$(NICE) cmake --build build/sanitize -j $(JOBS) --target $(addprefix ha_tests_,$(SANITIZED))

build/tests/build.ninja: .venv/.packages
	@$(CMAKE_TESTS) -B build/tests

build/headers/build.ninja: .venv/.packages
	@$(CMAKE_TESTS) -B build/headers -DCMAKE_VERIFY_INTERFACE_HEADER_SETS=ON -DCMAKE_CXX_FLAGS=-fsyntax-only
