"""Races sets of layers against each other: on a few held-out sequences at first, on more while it is open who is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Protocol

from hybridattn import _C
from hybridattn.select.evaluator import LayerSetEvaluator, Line, silent

FIRST_SEQUENCES = 8
"""At least so many sequences are read before the first verdicts."""


class BatchEvaluator(LayerSetEvaluator, Protocol):
    """A `LayerSetEvaluator` that can measure on some of its held-out batches."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Sequences in each batch."""
        ...

    def losses(
        self, sets: Sequence[Iterable[int]], progress: Line = silent, batches: Iterable[int] | None = None
    ) -> list[list[float]]:
        """Losses per sequence, of the batches with these numbers only."""
        ...


@dataclass(frozen=True)
class RacedSet:
    """A set of softmax layers after a race.

    Attributes:
        verdict: ``in``: surely among the best; ``out``: surely not, or its loss is not finite; ``open``: not decided.
        losses: per sequence, of the first held-out sequences; the more the longer the set was in the race.
        reason: why a verdict was not won by comparison; empty otherwise.
    """

    kept: frozenset[int]
    verdict: str
    losses: list[float]
    reason: str

    @property
    def loss(self) -> float:
        return fmean(self.losses) if self.losses else float("inf")


def race_sets(
    evaluator: BatchEvaluator,
    sets: Sequence[Iterable[int]],
    places: int,
    confidence: float = 0.95,
    progress: Line = silent,
    tolerance: float = 0.0,
) -> list[RacedSet]:
    """All `sets`, best first: which `places` of them have the lowest expected held-out loss.

    The sequences double each round. With probability `confidence` no verdict of the race is wrong (`Race`).

    Args:
        tolerance: nats per token that do not matter. The race ends as well once every set in the first `places` is surely
            less than that above every set behind them: equals need not be told apart.

    Raises:
        ValueError: fewer than two held-out sequences.
    """
    wanted = [frozenset(kept) for kept in sets]
    rounds = _rounds(evaluator.batch_sizes)
    race = _C.select.Race(
        num_layers=len(wanted),
        keep=places,
        mode="racing",
        steps_per_round=1,
        max_steps=len(rounds),
        confidence=confidence,
        growing=True,
    )
    while (task := race.next()) is not None:
        # All candidates of a round at once, so that they share their lower layers.
        open_sets = [wanted[row["layer"]] for row in race.ranking() if row["verdict"] == "open"]
        losses = dict(zip(open_sets, evaluator.losses(open_sets, progress, range(rounds[task[1]])), strict=True))
        _, read, _ = task
        while task is not None and task[1] == read:
            race.record(task[0], losses[wanted[task[0]]])
            task = race.next()
        if tolerance > 0 and task is not None:
            ranked = [row for row in race.ranking() if row["verdict"] != "out"]
            rows = [losses.get(wanted[row["layer"]], []) for row in ranked if row["verdict"] == "open"]
            free = places - (len(ranked) - len(rows))
            if _within(rows[:free], rows[free:], tolerance, (1 - confidence) / len(rounds)):
                break
    recorded = {candidate["layer"]: candidate["losses"] for candidate in race.to_json()["candidates"]}
    return [
        RacedSet(wanted[row["layer"]], row["verdict"], recorded[row["layer"]], row["reason"]) for row in race.ranking()
    ]


def _within(first: list[list[float]], second: list[list[float]], tolerance: float, error: float) -> bool:
    """Whether the expected loss of each of `first` is surely less than `tolerance` above that of each of `second`.

    Differences are cut off at -tolerance, which only raises their mean: a sequence on which `first` is far better would
    otherwise widen the t-test's margin and hide that it is nowhere worse.
    """
    level = error / max(1, len(first) * len(second))

    def excess(row: list[float], other: list[float]) -> list[float]:
        return [max(a - b, -tolerance) - tolerance for a, b in zip(row, other, strict=True)]

    return all(surely_lower(excess(row, other), [0.0] * len(row), level) for row in first for other in second)


def surely_lower(first: list[float], second: list[float], level: float) -> bool:
    """Paired one-sided t-test of the expected losses, on the sequences that both were scored on."""
    common = min(len(first), len(second))
    if common < 2:
        return False
    mean, _, tail = _C.select.paired_difference(first[:common], second[:common])
    return mean < 0 and tail <= level


def _rounds(batch_sizes: Sequence[int]) -> list[int]:
    """How many batches are read by the end of each round."""
    rounds = [first_batches(batch_sizes)]
    while rounds[-1] < len(batch_sizes):
        rounds.append(min(2 * rounds[-1], len(batch_sizes)))
    return rounds


def first_batches(batch_sizes: Sequence[int]) -> int:
    """How many batches the first round reads."""
    enough = (number for number, read in enumerate(accumulate(batch_sizes), 1) if read >= FIRST_SEQUENCES)
    return next(enough, len(batch_sizes))
