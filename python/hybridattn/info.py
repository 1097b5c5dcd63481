"""What this machine and installation are made of: versions, processor, instruction sets, threads, devices, backends."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hybridattn import _C, _build

_PACKAGES = ("hybridattn", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


@dataclass(frozen=True)
class Info:
    """Facts that belong next to every measurement.

    Attributes:
        versions: package name -> version, "not installed" where it is missing; with Python's own.
        build: what the compiled part was built with (compiler, build type, PyTorch, OpenMP, header libraries).
        cpu: the processor's name.
        instruction_sets: vector instruction sets that can be used here.
        cores: processors this process may run on.
        threads: threads PyTorch uses inside an op.
        memory_gib: physical memory.
        devices: accelerators by name; empty where there are none.
    """

    versions: dict[str, str]
    build: dict[str, str]
    cpu: str
    instruction_sets: list[str]
    cores: int
    threads: int
    memory_gib: float
    devices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return asdict(self)


def cpu_name() -> str:
    """The processor's name as the kernel gives it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def collect() -> Info:
    """Look at this machine and installation. Cheap: nothing is measured, no model or backend is started."""
    build = {"torch": _build.TORCH_VERSION, "compiler": _build.COMPILER, "build_type": _build.BUILD_TYPE}
    build |= {name: str(value) for name, value in _C.core.build_info().items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Info(
        versions={"python": platform.python_version()} | {name: _package_version(name) for name in _PACKAGES},
        build=build,
        cpu=cpu_name(),
        instruction_sets=[name for name, present in _C.core.cpu_features().items() if present],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=round(memory / 2**30, 1),
        devices=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )
