"""Searches over sets of layers, because layers work together: sequential addition and swap refinement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from hybridattn import _C
from hybridattn.select.evaluator import LayerSetEvaluator, Line, silent
from hybridattn.select.set_race import BatchEvaluator, race_sets, surely_lower


@dataclass(frozen=True)
class SearchResult:
    """The chosen layers (ascending) and the decisions on the way: ``{"what": str, "loss": float}``."""

    layers: list[int]
    history: list[dict[str, Any]] = field(default_factory=list)


def sequential_addition(evaluator: LayerSetEvaluator, keep: int, progress: Line = silent) -> SearchResult:
    """Adds the layer that helps most, then scores the rest again beside it, until `keep` layers are chosen.

    Raises:
        ValueError: `keep` is not in 0..layers, or no candidate's losses are finite.
    """
    return SearchResult(*_C.select.sequential_addition(_Shown(evaluator, keep, progress), keep))


@dataclass(frozen=True)
class _Shown:
    """An evaluator whose progress tells which pick it is measured for."""

    evaluator: LayerSetEvaluator
    keep: int
    progress: Line

    @property
    def num_layers(self) -> int:
        return self.evaluator.num_layers

    def losses(self, sets: Sequence[Iterable[int]]) -> list[list[float]]:
        pick = len(list(sets[0]))
        return self.evaluator.losses(sets, lambda text: self.progress(f"pick {pick}/{self.keep}  {text}"))


def swap_refinement(
    evaluator: BatchEvaluator,
    layers: Iterable[int],
    confidence: float = 0.95,
    progress: Line = silent,
    *,
    ranking: Sequence[int] | None = None,
    reach: int | None = None,
    together: int = 1,
    tolerance: float = 0.0,
) -> SearchResult:
    """Exchanges kept for left-out layers while the held-out loss falls significantly.

    Each round races the chosen set against those with one layer exchanged; where none is better, against those with two
    exchanged, and so on up to `together`, since layers that help only together cannot come in one by one. The best one
    takes the set's place if the paired one-sided t-test, corrected for the number of exchanges (Bonferroni), rejects "not
    better" at `confidence`. Losses fall at each exchange, so the search ends.

    Args:
        ranking: all layers, the most needed first; ascending when None.
        reach: only the `reach` kept layers that rank last and the `reach` left-out ones that rank first are exchanged; all
            when None.
        together: how many layers are exchanged at once at most.
        tolerance: nats per token that do not matter to a race (`race_sets`).
    """
    ranking = list(range(evaluator.num_layers) if ranking is None else ranking)
    chosen = sorted(set(layers))
    history: list[dict[str, Any]] = []
    size = 1
    while size <= together:
        inside = [layer for layer in ranking if layer in chosen]
        outside = [layer for layer in ranking if layer not in chosen]
        weak, strong = inside[-reach:] if reach else inside, outside[:reach]
        exchanges = list(product(combinations(weak, size), combinations(strong, size)))
        if not exchanges:
            break
        sets = [frozenset({*chosen, *into} - {*out}) for out, into in exchanges]
        line = lambda text: progress(f"exchange {len(history) + 1}  {text}")  # noqa: E731
        raced = race_sets(evaluator, [chosen, *sets], 1, confidence, line, tolerance)
        current = next(result for result in raced if result.kept == frozenset(chosen))
        if not history:
            history.append({"what": f"start from {chosen}", "loss": current.loss})
        best = next(result for result in raced if result.kept != frozenset(chosen))
        if current.losses and not surely_lower(best.losses, current.losses, (1 - confidence) / len(exchanges)):
            size += 1
            continue
        out, into = exchanges[sets.index(best.kept)]
        for left, came in zip(out, into, strict=True):
            first, second = ranking.index(left), ranking.index(came)
            ranking[first], ranking[second] = came, left
        chosen, size = sorted(best.kept), 1
        history.append({"what": f"exchange {_words(out)} for {_words(into)}", "loss": best.loss})
    return SearchResult(chosen, history)


def _words(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {' and '.join(map(str, layers))}"
