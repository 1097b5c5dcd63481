"""AVG-S1 and AVG-S2: the mean of a layer's ranks by addition and by removal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from hybridattn import _C
from hybridattn.select.criteria.alignment import AdditionAlignment, RemovalAlignment
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import Addition, Removal
from hybridattn.select.criteria.sound_layers import Table, rows_of_sound_layers


class AverageRank(RegisteredCriterion):
    """Mean of the ranks by GA-S2 and GR-S2, 1 being the most important; equal losses share a rank."""

    name: ClassVar[str] = "avg_s2"
    title: ClassVar[str] = "Mean rank (AVG-S2)"
    label: ClassVar[str] = "mean rank"
    important: ClassVar[Literal["high", "low"]] = "low"
    trains_candidates: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2512.20569, AVG-S2"
    deviations: ClassVar[str] = (
        "ranks are of held-out losses; intervals and verdicts by resampling the held-out sequences, the same ones for "
        "both; candidates do not race"
    )
    explanation: ClassVar[str] = (
        "The mean of the ranks by addition (GA) and by removal (GR): important layers rank first."
    )
    parts: ClassVar[tuple[type[RegisteredCriterion], type[RegisteredCriterion]]] = (Addition, Removal)

    def measure(self, scoring: Scoring) -> Found:
        # Ranks need every candidate's final loss.
        scoring = replace(scoring, options=replace(scoring.options, mode="exhaustive"))
        addition, removal = (part().measure(scoring) for part in self.parts)
        layers = range(scoring.evaluator.num_layers)
        tables = [[found.samples[layer] for layer in layers] for found in (addition, removal)]
        steps = scoring.options.max_steps if self.trains_candidates else 0

        def ranked(tables: list[Table], keep: int | None) -> list[dict[str, Any]]:
            rows = _C.select.mean_ranks(*tables, keep=keep, confidence=scoring.options.confidence)
            return [row | {"steps": steps} for row in rows]

        return Found(rows_of_sound_layers(tables, scoring.keep, ranked))


class AverageAlignmentRank(AverageRank):
    """Mean of the ranks by GA-S1 and GR-S1."""

    name: ClassVar[str] = "avg_s1"
    title: ClassVar[str] = "Mean rank, stage 1 (AVG-S1)"
    trains_candidates: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2512.20569, AVG-S1"
    parts: ClassVar[tuple[type[RegisteredCriterion], type[RegisteredCriterion]]] = (AdditionAlignment, RemovalAlignment)
