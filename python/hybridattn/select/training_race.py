"""What every race between candidates that train has in common: who trains next, and whose parked state nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from hybridattn.distill import Stage
from hybridattn.select.evaluator import Line, silent
from hybridattn.select.set_race import BatchEvaluator


@runtime_checkable
class TrainingEvaluator(BatchEvaluator, Protocol):
    """A `BatchEvaluator` that can train its hybrids by stage 2, as `CandidateEvaluator` does."""

    @property
    def num_sequences(self) -> int:
        """Held-out sequences of every scoring."""
        ...

    def trained_losses(
        self, kept: Iterable[int], from_step: int, to_step: int, stage: Stage, data: Any, progress: Line = silent
    ) -> list[float]:
        """Loss per held-out sequence of the hybrid that keeps `kept`, trained from `from_step` to `to_step`.

        NaN when the training diverged.
        """
        ...

    def forget(self, kept: Iterable[int], stage: Stage, data: Any) -> None:
        """Frees what was kept of a candidate that nobody trains further."""
        ...


def train_and_record(
    contest: Any,
    evaluator: TrainingEvaluator,
    sets: Sequence[Iterable[int]],
    stage: Stage,
    data: Any,
    progress: Callable[[int, str], None],
) -> None:
    """Runs the race `contest` to its end; its candidate number n is the hybrid that keeps ``sets[n]``.

    Args:
        progress: takes the candidate's number and a line about it.
    """
    parked: set[int] = set()
    while (task := contest.next()) is not None:
        number, from_step, to_step = task
        line = lambda text, number=number: progress(number, text)  # noqa: E731
        contest.record(number, evaluator.trained_losses(sets[number], from_step, to_step, stage, data, line))
        parked.add(number)
        running = {
            row["layer"] for row in contest.ranking() if row["verdict"] == "open" and row["steps"] < stage.total_steps
        }
        for over in sorted(parked - running):
            evaluator.forget(sets[over], stage, data)
            parked.discard(over)
