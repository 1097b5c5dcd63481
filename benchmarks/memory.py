"""Peak memory of one call of a contender, each in a process of its own: a fork of one that has loaded everything.

`python -m benchmarks.memory` is that one: it reads a request a line and answers with a line of JSON. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compiled import Compiled
from benchmarks.registry import Benchmark, Parameters, find

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Memory:
    """MiB of resident memory: what building the inputs took, and the peak of the call beyond that."""

    inputs: float
    extra: float

    @property
    def total(self) -> float:
        return self.inputs + self.extra


class MemoryMeter:
    """Measures peak memory in forks of a process that it starts, and ends with the ``with`` block.

    Example:
        >>> with MemoryMeter() as meter:
        ...     meter.peak(benchmark, "torch eager", parameters, "float32", threads=2).extra
    """

    def __enter__(self) -> MemoryMeter:
        # Every block goes back to the system when it is freed, so that resident memory is the memory in use. Times are
        # not taken there: they would suffer.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def peak(self, benchmark: Benchmark, contender: str, parameters: Parameters, dtype: str, threads: int) -> Memory:
        """Memory of one call.

        Raises:
            RuntimeError: that process failed; with its error.
        """
        request = {
            "name": benchmark.name, "contender": contender, "parameters": parameters, "dtype": dtype, "threads": threads
        }  # fmt: skip
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        answer = json.loads(answers.readline() or '{"error": "its process ended"}')
        if "error" in answer:
            raise RuntimeError(f"benchmarks: memory of {benchmark.name}, {contender}: {answer['error']}")
        return Memory(**answer)


def _resident(field: str) -> float:
    """MiB: VmRSS (now) or VmHWM (the highest since the last reset)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(field + ":")[1].split()[0]) / 1024


def _measure_here(name: str, contender: str, parameters: Parameters, dtype: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    benchmark, element = find(name), getattr(torch, dtype)
    # Thread pools, library buffers and lazily loaded code belong to no contender.
    warm = benchmark.build(**benchmark.tiny, dtype=element)
    warm.get(contender, next(iter(warm.values())))()
    del warm
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    start = _resident("VmRSS")
    run = benchmark.build(**parameters, dtype=element)[contender]
    gc.collect()
    inputs = _resident("VmRSS") - start
    if isinstance(run, Compiled):
        run.warm_up()  # what the compiler takes is not what the call takes
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    # Resets the highest mark of this process. getrusage's ru_maxrss would also keep what was before, even the parent's.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    result = run()
    peak = _resident("VmHWM")
    del result
    return {"inputs": round(inputs, 2), "extra": round(peak - before, 2)}


def _serve() -> None:
    """Answers every request from a fork, which starts no thread before: threads do not survive a fork."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                answer = _measure_here(**json.loads(request))
            except BaseException as error:  # the parent must hear of it, whatever it is
                answer = {"error": "".join(traceback.format_exception_only(error)).strip()}
            os.write(answers, (json.dumps(answer) + "\n").encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            os.write(answers, (json.dumps({"error": f"its process ended with status {status}"}) + "\n").encode())


if __name__ == "__main__":
    from benchmarks import entries

    entries.load()
    _serve()
