"""What this machine can do at most: the yardsticks of the kernels' speed, measured by loops of our own and by torch.

`python benchmarks/roofline.py` prints them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch

from hybridattn import info

SOURCE = Path(__file__).with_suffix(".cpp")
BUILD = SOURCE.parent.parent / "build/benchmarks"

UNITS = {
    "fp32_fma": "GFLOP/s", "fp32_gemm": "GFLOP/s", "bf16_dot": "GFLOP/s", "bf16_gemm": "GFLOP/s",
    "read": "GB/s", "update": "GB/s",
}  # fmt: skip
"""Peak -> unit. fma: multiply-adds of the widest registers; dot: AMX tiles or AVX512-BF16, absent without either; gemm:
torch's product of square matrices; read and update (read and written in place): of memory, not of caches."""

_TRIES = 15
_ROUNDS = 4_000_000
_MATRIX = 2048
_FLOATS = 64 << 20  # 256 MiB, beyond every cache


class MissingCompilerError(RuntimeError):
    """The loops could not be compiled."""


@cache
def _library() -> ctypes.CDLL:
    """The loops, compiled for this processor; once per source, compiler and machine.

    Raises:
        MissingCompilerError: no C++ compiler, or it failed.
    """
    compiler = os.environ.get("CXX", "c++")
    key = hashlib.sha256(SOURCE.read_bytes() + compiler.encode() + info.cpu_name().encode()).hexdigest()[:12]
    library = BUILD / f"roofline-{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}.so")
        options = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        command = [compiler, *options, str(SOURCE), "-o", str(unfinished)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise MissingCompilerError(f"peaks need a C++ compiler, '{compiler}' is not there: set CXX") from error
        except subprocess.CalledProcessError as error:
            raise MissingCompilerError(f"peaks: {' '.join(command)} failed: {error.stderr.strip()}") from error
        unfinished.rename(library)
    loaded = ctypes.CDLL(str(library))
    for name, arguments in {
        "fp32_fma": [ctypes.c_int, ctypes.c_int64],
        "bf16_dot": [ctypes.c_int, ctypes.c_int64],
        "memory": [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool],
    }.items():
        getattr(loaded, name).restype = ctypes.c_double
        getattr(loaded, name).argtypes = arguments
    return loaded


def gemm_gflops(threads: int, dtype: torch.dtype) -> float:
    """The best of several products of square matrices of 2,048, by torch's own library."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = (torch.randn(_MATRIX, _MATRIX).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(_TRIES):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * _MATRIX**3 / best / 1e9


@cache
def peaks(threads: int) -> dict[str, float]:
    """The best of several measurements of each of `UNITS`, on so many threads. Takes a few seconds, once.

    Without a C++ compiler only the matrix products are there.
    """
    found = {f"{name}_gemm": gemm_gflops(threads, dtype) for name, dtype in _GEMM_DTYPES.items()}
    try:
        loops = _library()
    except MissingCompilerError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
    else:
        data = torch.ones(_FLOATS)
        measures = {
            "fp32_fma": lambda: loops.fp32_fma(threads, _ROUNDS),
            "bf16_dot": lambda: loops.bf16_dot(threads, _ROUNDS),
            "read": lambda: loops.memory(threads, data.data_ptr(), data.numel(), False),
            "update": lambda: loops.memory(threads, data.data_ptr(), data.numel(), True),
        }
        found |= {name: max(measure() for _ in range(_TRIES)) for name, measure in measures.items()}
    return {name: float(f"{found[name]:.4g}") for name in UNITS if found.get(name)}


_GEMM_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


if __name__ == "__main__":
    for count in range(1, torch.get_num_threads() + 1):
        values = ", ".join(f"{name} {value:.0f} {UNITS[name]}" for name, value in peaks(count).items())
        print(f"{count} threads: {values}")
