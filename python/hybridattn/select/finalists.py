"""Finalists: sets of layers that are trained by stage 2 before one of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hybridattn import _C
from hybridattn.distill import Stage
from hybridattn.select.evaluator import Line, silent
from hybridattn.select.set_race import BatchEvaluator
from hybridattn.select.training_race import TrainingEvaluator, train_and_record

FIRST_VERDICT = 2
"""No finalist is out before so many rounds of training, a guard against curves that cross early."""


class RememberedSets:
    """A `BatchEvaluator` that keeps the losses of the sets of `size` layers that it is asked for.

    Attributes:
        seen: set -> its losses on the first held-out sequences, as many as were ever read.
    """

    def __init__(self, evaluator: BatchEvaluator, size: int) -> None:
        self.evaluator, self.size = evaluator, size
        self.num_layers = evaluator.num_layers
        self.seen: dict[frozenset[int], list[float]] = {}

    @property
    def batch_sizes(self) -> Sequence[int]:
        return self.evaluator.batch_sizes

    def losses(
        self, sets: Sequence[Iterable[int]], progress: Line = silent, batches: Iterable[int] | None = None
    ) -> list[list[float]]:
        wanted = [frozenset(kept) for kept in sets]
        rows = self.evaluator.losses(wanted, progress, batches)
        for kept, row in zip(wanted, rows, strict=True):
            if len(kept) == self.size and len(row) > len(self.seen.get(kept, [])):
                self.seen[kept] = row
        return rows


def nearest_rivals(chosen: Iterable[int], seen: Mapping[frozenset[int], list[float]]) -> list[list[int]]:
    """The other sets in `seen`, the lowest loss first, each ascending; sets whose loss is not finite are left out.

    Not all were read on as many sequences, so each is judged by its mean difference from the chosen set on those that both
    were read on.
    """
    own = frozenset(chosen)
    reference = seen.get(own, [])
    excess: dict[tuple[int, ...], float] = {}
    for kept, row in seen.items():
        common = min(len(row), len(reference))
        if kept != own and common:
            excess[tuple(sorted(kept))] = fmean(row[:common]) - fmean(reference[:common])
    finite = (kept for kept, value in excess.items() if math.isfinite(value))
    return [list(kept) for kept in sorted(finite, key=lambda kept: (excess[kept], kept))]


@dataclass(frozen=True)
class Finalist:
    """A set of layers after its training, or what there was of it.

    Attributes:
        layers: ascending.
        verdict: ``in``: surely the best, or the only one left; ``out``: surely not, or diverged; ``open``: not decided.
        loss: mean held-out loss after `steps`, in nats per token; None where it diverged.
        steps: of stage 2 that it was trained for.
        reason: why a verdict was not won by comparison; empty otherwise.
    """

    layers: list[int]
    verdict: str
    loss: float | None
    steps: int
    reason: str


def finalist_race(count: int, stage: Stage, rounds: int, confidence: float) -> Any:
    """The `Race` of `count` finalists for one place.

    Raises:
        ValueError: `rounds` is less than 1, or a number is out of `Race`'s range.
    """
    if rounds < 1:
        raise ValueError(f"finalists: rounds is {rounds}, expected at least 1")
    steps = -(-stage.total_steps // rounds)
    return _C.select.Race(
        num_layers=count,
        keep=1,
        mode="racing",
        steps_per_round=steps,
        max_steps=stage.total_steps,
        confidence=confidence,
        min_rounds=min(FIRST_VERDICT, -(-stage.total_steps // steps)),
    )


def train_finalists(
    evaluator: TrainingEvaluator,
    sets: Sequence[Sequence[int]],
    stage: Stage,
    data: Any,
    rounds: int = 4,
    confidence: float = 0.95,
    progress: Line = silent,
) -> list[Finalist]:
    """All `sets`, best first, after they were trained by `stage` in `rounds` rounds.

    All train on the same batches and are scored on the same held-out sequences. After every round from the second on, a set
    that is surely not the best stops; the race ends when one is left. With probability `confidence` no verdict is wrong
    about the expected losses at the steps at which sets were compared (`Race`). Where none is certain the lowest mean comes
    first; the earlier of `sets` on a tie.

    Args:
        evaluator: its journal makes a race that was killed go on where it stopped.
        sets: at least two, distinct.
        stage: of stage 2; its ``tokens`` are what each set may be trained on.
        data: training documents (`TokenData`).

    Raises:
        ValueError: fewer held-out sequences than `confidence` needs (before anything is trained).
    """
    race = finalist_race(len(sets), stage, rounds, confidence)
    race.check_sequences(evaluator.num_sequences)
    line = lambda number, text: progress(f"finalist {number + 1} of {len(sets)}  {text}")  # noqa: E731
    train_and_record(race, evaluator, sets, stage, data, line)
    found = []
    for row in race.ranking():
        layers, loss, steps, reason = sorted(sets[row["layer"]]), row["score"], row["steps"], row["reason"]
        if row["verdict"] == "in" and steps == 0:
            # All others diverged before its turn, so whether it trains at all is not known yet.
            steps = race.to_json()["options"]["steps_per_round"]
            shown = lambda text, number=row["layer"]: line(number, text)  # noqa: E731
            loss = fmean(evaluator.trained_losses(layers, 0, steps, stage, data, shown))
            evaluator.forget(layers, stage, data)
            reason = (
                "the only one left"
                if math.isfinite(loss)
                else f"diverged: held-out loss not finite after {steps} steps"
            )
        finite = math.isfinite(loss)
        found.append(Finalist(layers, row["verdict"] if finite else "out", loss if finite else None, steps, reason))
    return found
