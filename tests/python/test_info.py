"""What `info` reports is this machine and this build."""

import json
import os
from pathlib import Path

import pytest
import torch

from hybridattn import _C, info


def test_facts_are_those_of_the_running_process() -> None:
    facts = info.collect()
    assert facts.versions["torch"] == torch.__version__
    assert facts.versions["hybridattn"] == _C.__version__
    assert facts.threads == torch.get_num_threads()
    assert facts.cores == len(os.sched_getaffinity(0))
    assert len(facts.devices) == torch.cuda.device_count()
    assert facts.memory_gib > 0.1


def test_facts_are_plain_data() -> None:
    facts = info.collect()
    assert json.loads(json.dumps(facts.to_dict()))["cpu"] == facts.cpu


def test_build_has_openmp_and_cxx20() -> None:
    build = info.collect().build
    assert int(build["openmp"]) > 0, "without OpenMP at::parallel_for is serial"
    assert int(build["cxx_standard"]) >= 20


def test_instruction_sets_are_those_of_the_kernel() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("the kernel lists no flags on this architecture")
    known = _C.core.cpu_features()
    assert set(info.collect().instruction_sets) == set(known) & set(flags)


def test_missing_packages_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_PACKAGES", ("a-package-nobody-has",))
    assert info.collect().versions["a-package-nobody-has"] == "not installed"
