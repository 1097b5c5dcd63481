"""Searches over sets of layers, because layers work together: sequential addition and swap refinement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hybridattn import _C
from hybridattn.select.evaluator import LayerSetEvaluator, Line, silent


@dataclass(frozen=True)
class SearchResult:
    """The chosen layers (ascending) and the decisions on the way: ``{"what": str, "loss": float}``."""

    layers: list[int]
    history: list[dict[str, Any]] = field(default_factory=list)


def sequential_addition(evaluator: LayerSetEvaluator, keep: int, progress: Line = silent) -> SearchResult:
    """Adds the layer that helps most, then scores the rest again beside it, until `keep` layers are chosen.

    Raises:
        ValueError: `keep` is not in 0..layers.
    """
    if not 0 <= keep <= evaluator.num_layers:
        raise ValueError(f"sequential_addition: keep is {keep}, expected 0 to {evaluator.num_layers}")
    chosen: list[int] = []
    history = []
    while len(chosen) < keep:
        open_layers = sorted(set(range(evaluator.num_layers)) - set(chosen))
        line = lambda text: progress(f"pick {len(chosen) + 1}/{keep}  {text}")  # noqa: E731
        rows = evaluator.losses([[*chosen, layer] for layer in open_layers], line)
        losses = {layer: fmean(row) for layer, row in zip(open_layers, rows, strict=True)}
        best = min(losses, key=lambda layer: (losses[layer], layer))
        chosen.append(best)
        history.append({"what": f"add layer {best}", "loss": losses[best]})
    return SearchResult(sorted(chosen), history)


def swap_refinement(
    evaluator: LayerSetEvaluator, layers: Iterable[int], confidence: float = 0.95, progress: Line = silent
) -> SearchResult:
    """Exchanges a kept for a left-out layer while the held-out loss falls significantly.

    Each round tries all exchanges and makes the best one if the paired one-sided t-test, corrected for their number
    (Bonferroni), rejects "not better" at `confidence`. Losses fall at each exchange, so the search ends.
    """
    chosen = sorted(set(layers))
    (current,) = evaluator.losses([chosen], progress)
    history = [{"what": f"start from {chosen}", "loss": fmean(current)}]
    while True:
        outside = sorted(set(range(evaluator.num_layers)) - set(chosen))
        swaps = [(out, into) for out in chosen for into in outside]
        if not swaps:
            return SearchResult(chosen, history)
        candidates = [sorted({*chosen, into} - {out}) for out, into in swaps]
        rows = evaluator.losses(candidates, lambda text: progress(f"exchange {len(history)}  {text}"))
        best = min(range(len(swaps)), key=lambda index: fmean(rows[index]))
        _, _, tail = _C.select.paired_difference(rows[best], current)
        if not (fmean(rows[best]) < fmean(current) and tail * len(swaps) <= 1 - confidence):
            return SearchResult(chosen, history)
        chosen, current = candidates[best], rows[best]
        out, into = swaps[best]
        history.append({"what": f"exchange layer {out} for {into}", "loss": fmean(current)})
