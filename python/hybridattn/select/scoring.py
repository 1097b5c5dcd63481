"""Scores one layer at a time by a race: addition (GA-S2, arXiv 2512.20569) and removal (GR-S2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hybridattn import _C
from hybridattn.distill import NonFiniteLoss, Stage
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator


@dataclass(frozen=True)
class ScoreOptions:
    """How layers are scored.

    Attributes:
        criterion: ``removal``: linearise one layer of the teacher, important layers hurt most; ``addition``: restore
            softmax in one layer of the all-linear student, important layers help most.
        mode: ``exhaustive``: every candidate to the end; ``racing``: a candidate stops with its verdict.
        steps_per_round, max_steps: stage-2 training of each candidate; 0 scores without training.
        confidence: probability that no verdict of the race is wrong.
    """

    criterion: Literal["removal", "addition"] = "removal"
    mode: Literal["exhaustive", "racing"] = "exhaustive"
    steps_per_round: int = 0
    max_steps: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class LayerScores:
    """Importance of every layer, most important first.

    Attributes:
        rows: per layer ``layer``, ``score``, ``low``, ``high``, ``verdict``, ``steps``, ``reason``.
    """

    criterion: str
    rows: list[dict[str, Any]]
    tokens: float
    flops: float

    def top(self, k: int | None = None, fraction: float | None = None) -> list[int]:
        """The most important layers, ascending. Give `k` or `fraction` of all layers.

        Raises:
            ValueError: neither or both are given, or the number is out of range.
        """
        if (k is None) == (fraction is None):
            raise ValueError("top: give exactly one of k and fraction")
        count = _C.select.keep_of_fraction(len(self.rows), fraction) if k is None else k
        if not 0 <= count <= len(self.rows):
            raise ValueError(f"top: k is {count}, expected 0 to {len(self.rows)}")
        return sorted(row["layer"] for row in self.rows[:count])

    def to_json(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "rows": self.rows, "tokens": self.tokens, "flops": self.flops}


def score_layers(
    evaluator: LayerSetEvaluator,
    options: ScoreOptions | None = None,
    *,
    keep: int | None = None,
    stage: Stage | None = None,
    data: Any = None,
    progress: Callable[[str], None] = lambda line: None,
) -> LayerScores:
    """Races all layers.

    Args:
        evaluator: measures a set of layers; a `CandidateEvaluator` where candidates are trained.
        keep: how many layers are wanted; racing needs it.
        stage, data: stage-2 training of the candidates, for ``max_steps > 0``.

    Raises:
        ValueError: options that do not go together, or too few held-out sequences for the asked confidence.
    """
    options = options or ScoreOptions()
    if options.max_steps and (stage is None or data is None or not isinstance(evaluator, CandidateEvaluator)):
        raise ValueError("score_layers: max_steps > 0 trains candidates; give `stage` and `data`")
    every = range(evaluator.num_layers)
    removal = options.criterion == "removal"
    race = _C.select.Race(
        num_layers=evaluator.num_layers,
        keep=keep,
        mode=options.mode,
        steps_per_round=options.steps_per_round,
        max_steps=options.max_steps,
        confidence=options.confidence,
        direction="higher" if removal else "lower",
    )
    candidates: dict[int, Any] = {}
    while (task := race.next()) is not None:
        layer, _, step = task
        kept = [other for other in every if other != layer] if removal else [layer]
        progress(f"layer {layer + 1}/{evaluator.num_layers}  step {step}/{options.max_steps}")
        if not options.max_steps:
            losses = evaluator.losses(kept)
        else:
            if layer not in candidates:
                candidates[layer] = evaluator.trained(kept, stage, data)  # type: ignore[attr-defined]
            try:
                losses = candidates[layer].losses_at(step)
            except NonFiniteLoss:
                losses = [math.nan] * evaluator.num_sequences  # type: ignore[attr-defined]
            if options.mode == "exhaustive" and step == options.max_steps:
                candidates.pop(layer).close()
        race.record(layer, losses)
    for candidate in candidates.values():
        candidate.close()
    tokens, flops = getattr(evaluator, "tokens", 0), getattr(evaluator, "flops", 0.0)
    return LayerScores(options.criterion, race.ranking(), tokens, flops)
