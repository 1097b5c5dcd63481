"""ScoreOptions: which criterion scores the layers, and how candidates that train are raced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ScoreOptions:
    """How layers are scored.

    Attributes:
        criterion: a name of `hybridattn.select.criteria.CRITERIA`. ``removal`` (GR-S2): linearise one layer of the
            teacher, important layers hurt most; ``addition`` (GA-S2): restore softmax in one layer of the all-linear
            student, important layers help most.
        mode: ``exhaustive``: every candidate to the end; ``racing``: a candidate stops with its verdict.
        steps_per_round, max_steps: stage-2 training of each candidate; 0 scores without training.
        confidence: probability that no verdict is wrong, and of each interval.
        min_rounds: scorings of a candidate before its first verdict: a guard against curves that cross.
        held_out_sequences: sequences that every candidate is scored on.
        options: the criterion's own, e.g. ``{"offset": 1}`` of ``uniform``.

    Raises:
        ValueError: an unknown criterion, option or mode.
    """

    criterion: str = "removal"
    mode: Literal["exhaustive", "racing"] = "exhaustive"
    steps_per_round: int = 0
    max_steps: int = 0
    confidence: float = 0.95
    min_rounds: int = 1
    held_out_sequences: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from hybridattn.select.criteria.registry import build_criterion

        if self.mode not in ("exhaustive", "racing"):
            raise ValueError(f"ScoreOptions: mode is {self.mode!r}, expected exhaustive or racing")
        build_criterion(self.criterion, self.options)
