"""Plans that look at nothing, as criteria: uniform, random, first, last, explicit. What every criterion must beat."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field

from hybridattn import _C
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring


class _Plan(RegisteredCriterion):
    """Scores 1 for the layers of a plan and 0 for the others; `top` gives the plan of any K."""

    label: ClassVar[str] = "in the plan"
    important: ClassVar[Literal["high", "low"]] = "high"
    deviations: ClassVar[str] = "none"

    @abstractmethod
    def layers(self, num_layers: int, keep: int) -> list[int]:
        """The plan's K layers, ascending."""

    def measure(self, scoring: Scoring) -> Found:
        count, keep = scoring.evaluator.num_layers, self.budget(scoring)
        chosen = set(self.layers(count, keep))

        def row(layer: int) -> dict[str, Any]:
            score = float(layer in chosen)
            verdict = "in" if layer in chosen else "out"
            return {"layer": layer, "score": score, "low": score, "high": score, "verdict": verdict, "steps": 0,
                    "reason": "as planned"}  # fmt: skip

        ordered = sorted(range(count), key=lambda layer: (layer not in chosen, layer))
        return Found([row(layer) for layer in ordered], rule=lambda rows, k: self.layers(len(rows), k))

    def budget(self, scoring: Scoring) -> int:
        if scoring.keep is None:
            raise ValueError(f"score_layers: criterion '{self.name}' is a plan of K layers; give `keep`")
        return scoring.keep


class Uniform(_Plan):
    """Evenly interleaved.

    Attributes:
        offset: moves all layers up, around the end; 0 to `hybridattn.select.uniform_offsets` - 1 are the variants.
    """

    name: ClassVar[str] = "uniform"
    title: ClassVar[str] = "Uniform"
    source: ClassVar[str] = "arXiv 2512.20569, baseline; its offset alone moves the published result by 0.14 RULER"
    explanation: ClassVar[str] = "Evenly spaced layers, whatever they do."

    offset: int = 0

    def layers(self, num_layers: int, keep: int) -> list[int]:
        return list(_C.select.uniform_plan(num_layers, keep, self.offset))


class Random(_Plan):
    """At random, the same on every machine for a seed."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    source: ClassVar[str] = "baseline"
    explanation: ClassVar[str] = "Layers at random."

    seed: int = Field(0, ge=0)

    def layers(self, num_layers: int, keep: int) -> list[int]:
        return list(_C.select.random_plan(num_layers, keep, self.seed))


class First(_Plan):
    name: ClassVar[str] = "first"
    title: ClassVar[str] = "First layers"
    source: ClassVar[str] = "baseline"
    explanation: ClassVar[str] = "The lowest layers."

    def layers(self, num_layers: int, keep: int) -> list[int]:
        return list(_C.select.first_plan(num_layers, keep))


class Last(_Plan):
    name: ClassVar[str] = "last"
    title: ClassVar[str] = "Last layers"
    source: ClassVar[str] = "baseline"
    explanation: ClassVar[str] = "The highest layers."

    def layers(self, num_layers: int, keep: int) -> list[int]:
        return list(_C.select.last_plan(num_layers, keep))


class Explicit(_Plan):
    """The layers that you list."""

    name: ClassVar[str] = "explicit"
    title: ClassVar[str] = "As listed"
    source: ClassVar[str] = "you"
    explanation: ClassVar[str] = "The layers that the recipe lists."

    # `layers` is the plan's own method; in recipes the option reads as what it is.
    listed: list[int]

    def layers(self, num_layers: int, keep: int) -> list[int]:
        plan = list(_C.select.explicit_plan(num_layers, self.listed))
        if len(plan) != keep:
            raise ValueError(f"criterion 'explicit' lists {len(plan)} layers, {keep} are wanted")
        return plan

    def budget(self, scoring: Scoring) -> int:
        return len(self.listed) if scoring.keep is None else scoring.keep
