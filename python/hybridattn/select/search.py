"""Searches over sets of layers, because layers work together: sequential addition and swap refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hybridattn import _C
from hybridattn.select.evaluator import LayerSetEvaluator


@dataclass(frozen=True)
class SearchResult:
    """The chosen layers (ascending) and the decisions on the way: ``{"what": str, "loss": float}``."""

    layers: list[int]
    history: list[dict[str, Any]] = field(default_factory=list)


Line = Callable[[str], None]


def sequential_addition(evaluator: LayerSetEvaluator, keep: int, progress: Line = lambda line: None) -> SearchResult:
    """Adds the layer that helps most, then scores the rest again beside it, until `keep` layers are chosen.

    Raises:
        ValueError: `keep` is not in 0..layers.
    """
    if not 0 <= keep <= evaluator.num_layers:
        raise ValueError(f"sequential_addition: keep is {keep}, expected 0 to {evaluator.num_layers}")
    chosen: list[int] = []
    history = []
    while len(chosen) < keep:
        losses = {}
        for layer in sorted(set(range(evaluator.num_layers)) - set(chosen)):
            progress(f"pick {len(chosen) + 1}/{keep}  layer {layer}")
            losses[layer] = fmean(evaluator.losses([*chosen, layer]))
        best = min(losses, key=lambda layer: (losses[layer], layer))
        chosen.append(best)
        history.append({"what": f"add layer {best}", "loss": losses[best]})
    return SearchResult(sorted(chosen), history)


def swap_refinement(
    evaluator: LayerSetEvaluator, layers: Iterable[int], confidence: float = 0.95, progress: Line = lambda line: None
) -> SearchResult:
    """Exchanges a kept for a left-out layer while the held-out loss falls significantly.

    Each round tries all exchanges and makes the best one if the paired one-sided t-test, corrected for their number
    (Bonferroni), rejects "not better" at `confidence`. Losses fall at each exchange, so the search ends.
    """
    chosen = sorted(set(layers))
    history = [{"what": f"start from {chosen}", "loss": fmean(evaluator.losses(chosen))}]
    while True:
        outside = sorted(set(range(evaluator.num_layers)) - set(chosen))
        swaps = [(out, into) for out in chosen for into in outside]
        if not swaps:
            return SearchResult(chosen, history)
        current = evaluator.losses(chosen)
        best: tuple[float, list[int], tuple[int, int], list[float]] | None = None
        for number, (out, into) in enumerate(swaps, 1):
            progress(f"swap {number}/{len(swaps)}  {out} for {into}")
            candidate = sorted({*chosen, into} - {out})
            losses = evaluator.losses(candidate)
            if best is None or fmean(losses) < best[0]:
                best = (fmean(losses), candidate, (out, into), losses)
        assert best is not None
        mean, candidate, (out, into), losses = best
        _, _, tail = _C.select.paired_difference(losses, current)
        if not (mean < fmean(current) and tail * len(swaps) <= 1 - confidence):
            return SearchResult(chosen, history)
        chosen = candidate
        history.append({"what": f"exchange layer {out} for {into}", "loss": mean})
