"""Who is compared: every criterion of the library by its defaults, searches over sets, plans that look at nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.selection.cell import LOSSES, Cell
from hybridattn import _C, select
from hybridattn.select import ScoreOptions
from hybridattn.select.criteria import CRITERIA
from hybridattn.select.default import AutoOptions, select_layers

DEFAULT = "default"
"""The contender that the library uses when nobody says otherwise: its selector with its loss."""

PLANS = ("uniform", "random", "first", "last")
LESS_DATA = {f"{DEFAULT} on {sequences} sequences": sequences for sequences in (2, 4, 8)}
"""The default where it may not look at all of the protocol's held-out sequences -> at how many. What agreement costs."""
DEFAULT_BY_DATA = (*LESS_DATA, DEFAULT)
"""The default on ever more data."""
_LOSS_DRIVEN = ("ga_s2", "gr_s2", "avg_s2", "smart")
"""Criteria that score by the evaluator's loss, so that its choice matters to them."""


@dataclass(frozen=True)
class Contender:
    """A way to choose layers.

    Attributes:
        name: in raw data, tables and plots; what stands after a colon tells draws or offsets of one plan apart.
        choose: (cell, budgets) -> what was chosen per K and what it cost.
        per_budget: whether it must look again for every K; otherwise one look serves all.
    """

    name: str
    choose: Callable[[Cell, Sequence[int]], dict[str, Any]]
    per_budget: bool = field(default=True)

    def chosen(self, cell: Cell, keep: int) -> dict[str, Any]:
        """The measurement: ``layers`` per K, ``scores`` per layer (higher is more important) or None, and the cost."""
        return cell.once(self.key(keep), lambda: self.choose(cell, [keep] if self.per_budget else cell.budgets))

    def key(self, keep: int) -> str:
        """Of the measurement in the raw data."""
        return f"choose {self.name} {keep}" if self.per_budget else f"choose {self.name}"


def plans(cell: Cell, keep: int) -> list[Contender]:
    """What looks at nothing: evenly spaced with every offset, random, first, last."""
    offsets = range(_C.select.uniform_offsets(cell.num_layers, keep))
    found = [_scored(f"uniform:{offset}", "uniform", per_budget=True, offset=offset) for offset in offsets]
    for draw in range(cell.protocol.random_draws):
        seed = cell.seed * cell.protocol.random_draws + draw
        found.append(_scored(f"random:{draw}", "random", per_budget=True, seed=seed))
    return [*found, *(_scored(name, name, per_budget=True) for name in ("first", "last"))]


def selectors() -> list[Contender]:
    """What looks at the models: the default, every criterion of the library, searches; the most expensive one last."""
    found = [_searched(DEFAULT, select_layers, loss) for loss in LOSSES]
    found += [_searched(name, select_layers, "kl", sequences) for name, sequences in LESS_DATA.items()]
    for name in CRITERIA:
        if name in (*PLANS, "explicit"):
            continue
        losses = LOSSES if name in _LOSS_DRIVEN else ("kl",)
        found += [_scored(labelled(name, loss), name, loss, per_budget=name == "learned_gates") for loss in losses]
    found += [search(loss) for search in (_sequential, _refined_removal) for loss in LOSSES]
    # By the loss that was the default when they were measured.
    return [*found, _trained_finalists("recall_kl"), _trained_addition()]


def labelled(name: str, loss: str) -> str:
    return name if loss == "kl" else f"{name} ({loss})"


def _scored(label: str, criterion: str, loss: str = "kl", *, per_budget: bool = False, **options: Any) -> Contender:
    def choose(cell: Cell, budgets: Sequence[int]) -> dict[str, Any]:
        own = {"seed": cell.seed} if criterion == "learned_gates" else options
        return _score(cell, budgets, ScoreOptions(criterion, options=own), loss)

    return Contender(label, choose, per_budget)


def _trained_addition() -> Contender:
    """GA-S2 as published: every candidate trained by stage 2, no race."""

    def choose(cell: Cell, budgets: Sequence[int]) -> dict[str, Any]:
        steps = cell.protocol.score_steps
        options = ScoreOptions("ga_s2", "exhaustive", steps_per_round=steps, max_steps=steps)
        return _score(cell, budgets, options, "kl", stage=cell.protocol.score_stage(cell.seed))

    return Contender("ga_s2 (trained)", choose, per_budget=False)


def _score(cell: Cell, budgets: Sequence[int], options: ScoreOptions, loss: str, **training: Any) -> dict[str, Any]:
    evaluator = cell.evaluator(loss)
    # Verdicts are of no interest here, and `keep` only matters to criteria that must look again for every budget.
    keep = budgets[0] if len(budgets) == 1 else None
    scores = select.race_layers(evaluator, options, keep=keep, data=cell.data, tokenizer=cell.tokenizer, **training)
    layers = {str(count): scores.top(k=count) for count in budgets}
    sign = -1.0 if CRITERIA[options.criterion].important == "low" else 1.0
    by_layer = {row["layer"]: sign * row["score"] for row in scores.rows}
    values = None if options.criterion in PLANS else [by_layer[layer] for layer in range(cell.num_layers)]
    return {"layers": layers, "scores": values} | _cost(evaluator)


def _cost(evaluator: Any) -> dict[str, float]:
    return {"tokens": evaluator.tokens, "flops": evaluator.flops, "seconds": evaluator.seconds}


def _searched(label: str, search: Callable[[Any, int], Any], loss: str, sequences: int | None = None) -> Contender:
    def choose(cell: Cell, budgets: Sequence[int]) -> dict[str, Any]:
        evaluator = cell.evaluator(loss, sequences)
        (keep,) = budgets
        found = search(evaluator, keep)
        ranking = getattr(found, "ranking", None)
        scores = ranking and [float(-ranking.index(layer)) for layer in range(cell.num_layers)]
        return {"layers": {str(keep): found.layers}, "scores": scores} | _cost(evaluator)

    return Contender(labelled(label, loss), choose)


def _sequential(loss: str) -> Contender:
    return _searched("sequential", select.sequential_addition, loss)


def _trained_finalists(loss: str) -> Contender:
    """The default by `loss`, and its two nearest rivals, trained by as much stage 2 as the finished hybrid gets."""

    def choose(cell: Cell, budgets: Sequence[int]) -> dict[str, Any]:
        stage, options = cell.protocol.score_stage(cell.seed), AutoOptions(finalists=3)

        def search(evaluator: Any, keep: int) -> Any:
            return select_layers(evaluator, keep, options, stage=stage, data=cell.data)

        return _searched("", search, loss).choose(cell, budgets)

    return Contender(labelled("default + trained finalists", loss), choose)


def _refined_removal(loss: str) -> Contender:
    def search(evaluator: Any, keep: int) -> Any:
        scores = select.race_layers(evaluator, ScoreOptions("gr_s2"))
        return select.swap_refinement(evaluator, scores.top(k=keep))

    return _searched("gr_s2 + swap", search, loss)
