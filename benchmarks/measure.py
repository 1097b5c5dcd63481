"""Measures contenders: times interleaved in one process, peak memory of each in a process of its own.

`python -m benchmarks.measure NAME CONTENDER PARAMETERS` is that process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.registry import Benchmark, Contenders, Parameters

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over all rounds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Memory:
    """MiB of resident memory: what building the inputs took, and the peak of the call beyond that."""

    inputs: float
    extra: float

    @property
    def total(self) -> float:
        return self.inputs + self.extra


def interleaved(contenders: Contenders, rounds: int) -> dict[str, Timing]:
    """Every round calls each contender once, the order rotating, so that a change of the machine's speed hits all."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for contender in contenders.values():
        contender()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in seconds.items()}


def undisturbed(contenders: Contenders, rounds: int, patience: float) -> tuple[dict[str, Timing], float | None]:
    """Interleaved times, and the share of the processor that other programs took meanwhile.

    While others disturb, and for at most `patience` seconds, it waits and measures again; the least disturbed
    measurement counts, whatever its ratios are.
    """
    deadline = time.monotonic() + patience
    measured: list[tuple[float, dict[str, Timing]]] = []
    while True:
        machine.wait_until_quiet(deadline)
        with machine.Bystanders() as others:
            timings = interleaved(contenders, rounds)
        if others.share is None:
            return timings, None
        measured.append((others.share, timings))
        if others.share <= machine.QUIET or time.monotonic() >= deadline:
            share, timings = min(measured, key=lambda pair: pair[0])
            return timings, share


def ratio(peer: Timing, ours: Timing) -> float:
    """Median over the rounds of peer / ours: both of a round saw the machine in the same state."""
    return statistics.median(p / o for p, o in zip(peer.seconds, ours.seconds, strict=True))


def peak_memory(benchmark: Benchmark, contender: str, parameters: Parameters, threads: int) -> Memory:
    """Runs one call of one contender in a fresh process (Linux only: the kernel's own accounting is read).

    Raises:
        RuntimeError: that process failed; with its error.
    """
    # Every block goes back to the system when it is freed, so that resident memory is the memory in use. Times are
    # not taken here: they would suffer.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.measure", benchmark.name, contender, json.dumps(parameters)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks: {benchmark.name}, {contender}: {done.stderr.strip()}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _resident(field: str) -> float:
    """MiB: VmRSS (now) or VmHWM (the highest since the last reset)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(field + ":")[1].split()[0]) / 1024


def _measure_here(benchmark: Benchmark, contender: str, parameters: Parameters) -> Memory:
    dtype = getattr(torch, benchmark.dtype)
    # Thread pools, library buffers and lazily loaded code belong to no contender.
    benchmark.build(**benchmark.tiny, dtype=dtype)[contender]()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    start = _resident("VmRSS")
    run = benchmark.build(**parameters, dtype=dtype)[contender]
    gc.collect()
    inputs = _resident("VmRSS")
    # Resets the highest mark of this process. getrusage's ru_maxrss would also keep what was before, even the parent's.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    result = run()
    peak = _resident("VmHWM")
    del result
    return Memory(round(inputs - start, 2), round(peak - inputs, 2))


def _main(name: str, contender: str, parameters: str) -> None:
    from benchmarks import entries  # registers
    from benchmarks.registry import find

    entries.load()
    memory = _measure_here(find(name), contender, json.loads(parameters))
    print(json.dumps(vars(memory)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
