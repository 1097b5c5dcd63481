"""ScoreOptions: which criterion scores the layers, and how candidates that train are raced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Mode = Literal["exhaustive", "racing", "jaccard"]


@dataclass(frozen=True)
class ScoreOptions:
    """How layers are scored.

    Attributes:
        criterion: a name of `hybridattn.select.criteria.CRITERIA`. ``removal`` (GR-S2): linearise one layer of the
            teacher, important layers hurt most; ``addition`` (GA-S2): restore softmax in one layer of the all-linear
            student, important layers help most.
        mode: ``exhaustive``: every candidate to the end; ``racing``: a candidate stops with its verdict; ``jaccard``: all
            train in rounds and stop together once the K most important layers hardly change from round to round (the early
            stop of arXiv 2512.20569; unlike racing without a guarantee of error).
        steps_per_round, max_steps: stage-2 training of each candidate; 0 scores without training.
        jaccard_threshold, jaccard_window: ``jaccard`` stops when the mean of the last `jaccard_window` Jaccard similarities
            of the top K of successive rounds reaches the threshold.
        confidence: probability that no verdict is wrong, and of each interval.
        min_rounds: scorings of a candidate before its first verdict: a guard against curves that cross.
        held_out_sequences: sequences that every candidate is scored on.
        options: the criterion's own, e.g. ``{"offset": 1}`` of ``uniform``.

    Raises:
        ValueError: an unknown criterion, option or mode.
    """

    criterion: str = "removal"
    mode: Mode = "exhaustive"
    steps_per_round: int = 0
    max_steps: int = 0
    confidence: float = 0.95
    min_rounds: int = 1
    held_out_sequences: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    jaccard_threshold: float = 0.9
    jaccard_window: int = 2

    def __post_init__(self) -> None:
        from hybridattn.select.criteria.registry import build_criterion

        if self.mode not in get_args(Mode):
            raise ValueError(f"ScoreOptions: mode is {self.mode!r}, expected one of {', '.join(get_args(Mode))}")
        build_criterion(self.criterion, self.options)
