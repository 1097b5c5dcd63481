"""SMART: the most sensitive layers under a spacing constraint."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import addition_sets, race


class Spaced(RegisteredCriterion):
    """Sensitivity of single layers, chosen so that the layers that keep softmax are nearly evenly spaced."""

    name: ClassVar[str] = "smart"
    title: ClassVar[str] = "Sensitivity with spacing (SMART)"
    label: ClassVar[str] = "held-out KL"
    important: ClassVar[Literal["high", "low"]] = "low"
    trains_candidates: ClassVar[bool] = True
    source: ClassVar[str] = "SMART, in Zebra-Llama, arXiv 2505.17272"
    deviations: ClassVar[str] = (
        "sensitivities are held-out losses with intervals, of softmax restored in the all-linear student (there: latent "
        "attention in an all-Mamba one)"
    )
    explanation: ClassVar[str] = (
        "How much restoring softmax in the layer alone lowers the KL, under a constraint (SMART): the first kept layer is "
        "the best of the lowest L/K layers, the last one the best of the highest L/K, and steps between neighbours differ "
        "by at most one layer."
    )

    def measure(self, scoring: Scoring) -> Found:
        found = race(addition_sets(scoring.evaluator.num_layers), self.important, scoring)
        return Found(found.rows, found.samples, spaced)


def spaced(rows: list[dict[str, Any]], count: int) -> list[int]:
    """The `count` layers of the lowest total score that SMART's constraint allows.

    With fewer than two layers there is nothing to space. A layer that diverged has no sensitivity and is worth less than
    every other.
    """
    total = len(rows)
    finite = [-row["score"] for row in rows if math.isfinite(row["score"])]
    least = min(finite, default=0.0) - 1.0
    worth = {row["layer"]: -row["score"] if math.isfinite(row["score"]) else least for row in rows}
    block = max(1, total // count) if count else total

    def best(layers: range) -> int:
        return max(layers, key=lambda layer: (worth[layer], -layer))

    if count == 0:
        return []
    if count == 1:
        return [best(range(total))]
    first, last = best(range(block)), best(range(total - block, total))
    return _between(first, last, count, worth)


def _between(first: int, last: int, count: int, worth: dict[int, float]) -> list[int]:
    """The best way from `first` to `last` over `count` layers with steps of two neighbouring lengths.

    Dynamic programming over (layers placed, long steps taken): these two give the place.
    """
    short, num_long = divmod(last - first, count - 1)
    ways: dict[int, tuple[float, list[int]]] = {0: (worth[first], [first])}
    for placed in range(1, count):
        longer: dict[int, tuple[float, list[int]]] = {}
        for taken, (value, layers) in sorted(ways.items()):
            for long in (0, 1):
                remaining = count - 1 - placed
                if not num_long - remaining <= taken + long <= num_long:
                    continue
                layer = first + placed * short + taken + long
                candidate = (value + worth[layer], [*layers, layer])
                if taken + long not in longer or candidate[0] > longer[taken + long][0]:
                    longer[taken + long] = candidate
        ways = longer
    return ways[num_long][1]
