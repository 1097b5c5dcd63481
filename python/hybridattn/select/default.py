"""The default selector: proposals, a race between them, exchanges; where that leaves it open, candidates are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hybridattn.select.elimination import backward_elimination
from hybridattn.select.evaluator import Line, silent
from hybridattn.select.search import swap_refinement
from hybridattn.select.set_race import BatchEvaluator, first_batches, race_sets


@dataclass(frozen=True)
class AutoOptions:
    """How much the default selector looks at.

    Attributes:
        confidence: of every race's verdicts and of every exchange.
        share: of the layers beyond the budget, how many one round of the elimination takes at most.
        tolerance: of the loss without any softmax, the share that does not matter: sets nearer than this are not told apart.
        reach, together: exchanges tried (`swap_refinement`).
    """

    confidence: float = 0.95
    share: float = 0.5
    tolerance: float = 0.005
    reach: int = 3
    together: int = 2


@dataclass(frozen=True)
class Selection:
    """The chosen layers (ascending), all layers with the most needed first, and the decisions on the way."""

    layers: list[int]
    ranking: list[int]
    history: list[dict[str, Any]] = field(default_factory=list)


def select_layers(
    evaluator: BatchEvaluator,
    keep: int,
    options: AutoOptions | None = None,
    *,
    proposals: Mapping[str, Sequence[int]] | None = None,
    progress: Line = silent,
) -> Selection:
    """The `keep` layers whose hybrid is nearest to the teacher on held-out sequences, at the cost of forward passes.

    1. Backward elimination gives a nested order of all layers. It judges each layer in the company of those still left,
       so it sees layers that work only together, which scores of single layers do not.
    2. Its first `keep` layers race against the `proposals`.
    3. Exchanges across the boundary, of single layers and of pairs, while the loss falls significantly.

    Args:
        evaluator: `CandidateEvaluator`; its journal makes a search that was killed go on where it stopped.
        proposals: name -> layers, the most needed first, e.g. of learned gates.

    Raises:
        ValueError: `keep` is not in 0..layers.

    Example:
        >>> evaluator = CandidateEvaluator(student, teacher, data.held_out(64), "score", loss="recall_kl")
        >>> hybrid = ha.keep_softmax(student, teacher, select_layers(evaluator, keep=8).layers)
    """
    options = options or AutoOptions()
    tolerance = options.tolerance * _linear_loss(evaluator, progress)
    order = backward_elimination(evaluator, keep, options.share, options.confidence, progress, tolerance)
    ranking, history = list(order.layers), list(order.history)
    if proposals:
        rankings = {"elimination": ranking} | {name: _complete(listed, ranking) for name, listed in proposals.items()}
        raced = race_sets(
            evaluator, [listed[:keep] for listed in rankings.values()], 1, options.confidence, progress, tolerance
        )
        best = raced[0]
        name = next(name for name, listed in rankings.items() if frozenset(listed[:keep]) == best.kept)
        ranking = rankings[name]
        history.append({"what": f"of the proposals, that of {name}: {sorted(best.kept)}", "loss": best.loss})
    refined = swap_refinement(
        evaluator, ranking[:keep], options.confidence, progress,
        ranking=ranking, reach=options.reach, together=options.together, tolerance=tolerance,
    )  # fmt: skip
    chosen = [layer for layer in ranking if layer in refined.layers]
    rest = [layer for layer in ranking if layer not in refined.layers]
    return Selection(refined.layers, chosen + rest, history + refined.history)


def _linear_loss(evaluator: BatchEvaluator, progress: Line) -> float:
    """Of the hybrid without softmax, on the first sequences: what is at stake."""
    (losses,) = evaluator.losses([[]], progress, range(first_batches(evaluator.batch_sizes)))
    return fmean(losses)


def _complete(listed: Sequence[int], ranking: Sequence[int]) -> list[int]:
    return [*listed, *(layer for layer in ranking if layer not in listed)]
