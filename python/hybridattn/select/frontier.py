"""Quality against cost: the held-out loss of nested sets of layers beside their latency and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridattn.select.budget import KindCosts
from hybridattn.select.evaluator import CandidateEvaluator, Line, silent
from hybridattn.select.layer_scores import rank_samples

POINTS = 8
"""Numbers of layers between none and all that are measured."""


def quality_cost_frontier(
    evaluator: CandidateEvaluator, costs: KindCosts, ranking: Sequence[int], keep: int, progress: Line = silent
) -> dict[str, Any]:
    """Loss of the untrained hybrids that keep the first layers of `ranking`, the most needed first.

    Returns:
        ``loss`` (its kind), ``context`` (tokens), ``keep`` and ``points``, ascending: ``keep``, ``layers``, ``loss`` with
        its 95 % interval ``low``, ``high`` (nats per token), ``milliseconds`` per decoded token, ``cache_bytes``.
    """
    count = evaluator.num_layers
    sizes = sorted({keep, *(round(part * count / POINTS) for part in range(POINTS + 1))})
    rows = evaluator.losses([ranking[:size] for size in sizes], progress)
    intervals = {row["layer"]: row for row in rank_samples(rows, "low")}
    points = [
        {
            "keep": size,
            "layers": sorted(ranking[:size]),
            "loss": intervals[place]["score"],
            "low": intervals[place]["low"],
            "high": intervals[place]["high"],
            "milliseconds": 1e3 * costs.seconds(size),
            "cache_bytes": costs.cache_bytes(size),
        }
        for place, size in enumerate(sizes)
    ]
    return {"loss": evaluator.loss, "context": costs.context, "keep": keep, "points": points}
