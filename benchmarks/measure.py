"""Times contenders: interleaved in one process, and again where other programs disturbed it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.registry import Contenders

FEWEST_ROUNDS = 3


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


def interleaved(contenders: Contenders, rounds: int, seconds: float = float("inf")) -> dict[str, Timing]:
    """Every round calls each contender once, the order rotating, so that a change of the machine's speed hits all.

    The contenders are warm. After `seconds` no further round begins, but for the first `FEWEST_ROUNDS`.
    """
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name]()
            taken[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in taken.items()}


def undisturbed(
    contenders: Contenders, rounds: int, seconds: float, patience: float
) -> tuple[dict[str, Timing], float | None]:
    """Interleaved times, and the share of the processor that other programs took meanwhile.

    While others disturb, and for at most `patience` seconds, it waits and measures again; the least disturbed
    measurement counts, whatever its ratios are.
    """
    deadline = time.monotonic() + patience
    measured: list[tuple[float, dict[str, Timing]]] = []
    while True:
        machine.wait_until_quiet(deadline)
        with machine.Bystanders() as others:
            timings = interleaved(contenders, rounds, seconds)
        if others.share is None:
            return timings, None
        measured.append((others.share, timings))
        if others.share <= machine.QUIET or time.monotonic() >= deadline:
            share, timings = min(measured, key=lambda pair: pair[0])
            return timings, share


def ratio(peer: Timing, ours: Timing) -> float:
    """Median over the rounds of peer / ours: both of a round saw the machine in the same state."""
    return statistics.median(p / o for p, o in zip(peer.seconds, ours.seconds, strict=True))
