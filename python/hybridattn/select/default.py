"""The default selector: elimination, a race with proposals, exchanges; on request its nearest rivals are trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from hybridattn.distill import Stage
from hybridattn.select.elimination import backward_elimination
from hybridattn.select.evaluator import Line, silent
from hybridattn.select.finalists import Finalist, RememberedSets, finalist_race, nearest_rivals, train_finalists
from hybridattn.select.search import swap_refinement
from hybridattn.select.set_race import BatchEvaluator, first_batches, race_sets
from hybridattn.select.training_race import TrainingEvaluator


@dataclass(frozen=True)
class AutoOptions:
    """How much the default selector looks at.

    Attributes:
        confidence: of every race's verdicts and of every exchange.
        share: of the layers beyond the budget, how many one round of the elimination takes at most.
        tolerance: of the loss without any softmax, the share that does not matter: sets nearer than this are not told apart.
        reach, together: exchanges tried (`swap_refinement`).
        finalists: how many sets are trained before one is chosen, the one that the exchanges end with included; with 0 or 1
            nothing is trained.
        rounds: scorings of a finalist on the way (`train_finalists`).
    """

    confidence: float = 0.95
    share: float = 0.5
    tolerance: float = 0.005
    reach: int = 3
    together: int = 2
    finalists: int = 0
    rounds: int = 4


@dataclass(frozen=True)
class Selection:
    """The chosen layers (ascending), all layers with the most needed first, and the decisions on the way.

    Attributes:
        rivals: the other sets of as many layers that were measured untrained, the lowest loss first (`nearest_rivals`).
        finalists: the trained sets, best first; empty where nothing was trained.
    """

    layers: list[int]
    ranking: list[int]
    history: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[list[int]] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)


def select_layers(
    evaluator: BatchEvaluator,
    keep: int,
    options: AutoOptions | None = None,
    *,
    proposals: Mapping[str, Sequence[int]] | None = None,
    stage: Stage | None = None,
    data: Any = None,
    progress: Line = silent,
) -> Selection:
    """The `keep` layers whose hybrid is nearest to the teacher on held-out sequences, at the cost of forward passes.

    1. Backward elimination gives a nested order of all layers. It judges each layer in the company of those still left,
       so it sees layers that work only together, which scores of single layers do not.
    2. Its first `keep` layers race against the `proposals`.
    3. Exchanges across the boundary, of single layers and of pairs, while the loss falls significantly.
    4. With ``options.finalists`` of 2 or more, training: distillation may order sets otherwise than untrained losses do, so
       the chosen set and its nearest rivals are trained, and the best of them is taken (`choose_finalist`).

    Args:
        evaluator: `CandidateEvaluator`; its journal makes a search that was killed go on where it stopped.
        proposals: name -> layers, the most needed first, e.g. of learned gates.
        stage: stage-2 training of each finalist (``ha.presets.score``); its ``tokens`` are each one's budget.
        data: the finalists' training documents (`TokenData`).

    Raises:
        ValueError: `keep` is not in 0..layers; or finalists are wanted without `stage` and `data`, of an evaluator that does
            not train, or with fewer held-out sequences than the confidence needs (before anything is measured).

    Example:
        >>> evaluator = CandidateEvaluator(student, teacher, data.held_out(64), "score")
        >>> hybrid = ha.keep_softmax(student, teacher, select_layers(evaluator, keep=8).layers)
    """
    options = options or AutoOptions()
    if options.finalists > 1:
        _trainer(evaluator, options, stage, data)
    found = _search(RememberedSets(evaluator, keep), keep, options, proposals, progress)
    return choose_finalist(evaluator, found, options, stage, data, progress) if options.finalists > 1 else found


def choose_finalist(
    evaluator: BatchEvaluator,
    found: Selection,
    options: AutoOptions,
    stage: Stage | None,
    data: Any,
    progress: Line = silent,
) -> Selection:
    """`found` and its nearest rivals, ``options.finalists`` together, trained: the selection of the best one.

    The set of `found` stays where it has no rival, where no finalist's training stays finite, and on a tie.

    Args:
        found: of `select_layers` with the same `evaluator`.
        stage, data: as in `select_layers`.

    Raises:
        ValueError: as `select_layers` with finalists.
    """
    trainer, stage = _trainer(evaluator, options, stage, data)
    sets = [found.layers, *found.rivals[: max(0, options.finalists - 1)]]
    if len(sets) < 2:
        return found
    trained = train_finalists(trainer, sets, stage, data, options.rounds, options.confidence, progress)
    history = [*found.history]
    history += [
        {"what": f"train {row.layers} by stage 2 for {row.steps} steps: {row.verdict}", "loss": row.loss}
        for row in trained
        if row.loss is not None
    ]
    best, diverged = trained[0], [f"{row.layers} {row.reason}" for row in trained if row.loss is None]
    told = f" ({'; '.join(diverged)})" if diverged else ""
    if best.loss is None:
        history.append({"what": f"keep {found.layers}: no finalist trains{told}", "loss": found.history[-1]["loss"]})
        return replace(found, history=history, finalists=trained)
    by_comparison = (
        f"surely the best at {options.confidence:.0%}" if best.verdict == "in" else "the lowest loss, not surely"
    )
    sure = "the only one left" if best.reason else by_comparison
    history.append({"what": f"keep {best.layers} of {len(sets)} trained finalists: {sure}{told}", "loss": best.loss})
    ranking = _first(best.layers, found.ranking)
    return replace(found, layers=best.layers, ranking=ranking, history=history, finalists=trained)


def _trainer(
    evaluator: BatchEvaluator, options: AutoOptions, stage: Stage | None, data: Any
) -> tuple[TrainingEvaluator, Stage]:
    """What finalists need, complete."""
    if stage is None or data is None:
        raise ValueError(
            f"select_layers: finalists is {options.finalists}, which trains candidates; give `stage` and `data`"
        )
    if not isinstance(evaluator, TrainingEvaluator):
        raise ValueError(
            f"select_layers: finalists is {options.finalists}, which trains candidates; give a CandidateEvaluator, not a "
            f"{type(evaluator).__name__}"
        )
    finalist_race(options.finalists, stage, options.rounds, options.confidence).check_sequences(evaluator.num_sequences)
    return evaluator, stage


def _search(
    evaluator: RememberedSets,
    keep: int,
    options: AutoOptions,
    proposals: Mapping[str, Sequence[int]] | None,
    progress: Line,
) -> Selection:
    """Without training."""
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
    rivals = nearest_rivals(refined.layers, evaluator.seen)
    return Selection(refined.layers, _first(refined.layers, ranking), history + refined.history, rivals)


def _first(chosen: Sequence[int], ranking: Sequence[int]) -> list[int]:
    """`ranking` with the chosen layers before the others."""
    return [layer for layer in ranking if layer in chosen] + [layer for layer in ranking if layer not in chosen]


def _linear_loss(evaluator: BatchEvaluator, progress: Line) -> float:
    """Of the hybrid without softmax, on the first sequences: what is at stake."""
    (losses,) = evaluator.losses([[]], progress, range(first_batches(evaluator.batch_sizes)))
    return fmean(losses)


def _complete(listed: Sequence[int], ranking: Sequence[int]) -> list[int]:
    return [*listed, *(layer for layer in ranking if layer not in listed)]
