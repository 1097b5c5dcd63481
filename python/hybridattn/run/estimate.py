"""estimate: what is still to do of a run, and what that costs on this machine, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridattn.info import collect
from hybridattn.run.check import check_data
from hybridattn.run.recipe import Recipe
from hybridattn.run.rehearsal import Rehearsal, StepEstimate, mirrored


@dataclass(frozen=True)
class Estimate:
    """A run's steps that are not finished yet, and the machine they were priced on.

    Attributes:
        machine: processor, threads, dtype of the computation.
        steps: in the order of the run; empty when nothing is left.
    """

    machine: dict[str, Any]
    steps: list[StepEstimate]

    @property
    def tokens(self) -> int:
        return sum(step.tokens for step in self.steps)

    @property
    def flops(self) -> float:
        return sum(step.flops for step in self.steps)

    @property
    def seconds(self) -> float | None:
        """None where nothing was timed."""
        times = [step.seconds for step in self.steps]
        return None if None in times else sum(time for time in times if time is not None)

    @property
    def memory(self) -> int:
        """Bytes at the largest moment of the largest step."""
        return max((step.memory.total for step in self.steps), default=0)

    @property
    def disk(self) -> int:
        """Bytes that must be free: files that stay, and the most that a step needs besides."""
        stays, most = 0, 0
        for step in self.steps:
            stays += step.disk
            most = max(most, stays + step.disk_while)
        return most

    def to_json(self) -> dict[str, Any]:
        totals = {name: getattr(self, name) for name in ("tokens", "flops", "seconds", "memory", "disk")}
        return {"machine": self.machine, "steps": [asdict(step) for step in self.steps], "total": totals}


def estimate(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    measure: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Goes through the steps of a run without doing them.

    Tokens and operations are counted as the ledger counts them. Times are measured: of every stage one optimiser step
    warms up and up to three more are timed, at the recipe's own shapes and dtype; of every kind of forward pass the second
    one is timed. Steps that are finished in `run_dir` are not counted, of an interrupted stage only what comes after its
    last checkpoint. Where results decide how much is measured, losses count as equal: a race then goes to its end, and a
    search by exchanges ends after one round without success.

    Args:
        run_dir: is read, not written to; need not exist.
        measure: False counts tokens, operations, memory and disk only.

    Raises:
        ValueError: whatever is wrong with the recipe, as `Pipeline.run` finds it, or `run_dir` is another recipe's.

    Example:
        >>> found = estimate(load_recipe("recipe.toml"), "runs/mine")
        >>> found.seconds, found.memory, [step.step for step in found.steps]
    """
    with mirrored(recipe, run_dir) as mirror:
        rehearsal = Rehearsal(recipe, mirror, measure, progress)
        check_data(rehearsal, rehearsal.load_teacher().config)
        rehearsal.rehearse()
        facts = collect()
        machine = {"processor": facts.cpu, "threads": facts.threads, "dtype": rehearsal.dtype()}
        return Estimate(machine, rehearsal.steps)
