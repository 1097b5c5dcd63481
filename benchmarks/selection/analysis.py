"""The comparison's numbers: agreement with the best subset, rank correlation, paired tests of contenders."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.selection.contenders import DEFAULT
from benchmarks.selection.records import Chosen, Comparison, Outcome
from hybridattn import _C

ALPHA = 0.05


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Shared over all layers; 1 of two empty sets."""
    return len(first & second) / len(first | second) if first | second else 1.0


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [(2 * ordered.index(value) + ordered.count(value) + 1) / 2 for value in values]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation; None where all values of one side are equal."""
    a, b = _ranks(first), _ranks(second)
    mean_a, mean_b = fmean(a), fmean(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    scale = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / scale if scale else None


def group_of(name: str) -> str:
    """The row of a contender: the offsets and draws of a plan are one row."""
    return name.partition(":")[0]


def ratio_to_best(comparison: Comparison, chosen: Chosen) -> float | None:
    """Recall over the best subset's; None where the best subset recalls nothing."""
    return chosen.outcome.recall / comparison.best.recall if comparison.best.recall else None


@dataclass(frozen=True)
class Summary:
    """One contender over the comparisons given, each of which counts alike.

    Attributes:
        ratio: recall over the best subset's, mean; `worst_ratio` its minimum.
        extra_kl: held-out KL above the best subset's, nats per token, mean.
        correlation: Spearman of its scores with the layers' values under exhaustive search, mean; None without scores.
        jaccard, exact: overlap with the best subset; share of comparisons in which it is the best subset.
        tokens, flops, seconds: of choosing, means.
        comparisons: how many.
    """

    name: str
    ratio: float | None
    worst_ratio: float | None
    extra_kl: float
    correlation: float | None
    jaccard: float
    exact: float
    tokens: float
    flops: float
    seconds: float
    comparisons: int


def summarise(name: str, comparisons: Iterable[Comparison]) -> Summary | None:
    """The contender `name` (a row: all its draws) where it was measured; None where it was nowhere."""
    pairs = [(c, chosen) for c in comparisons for own, chosen in c.chosen.items() if group_of(own) == name]
    if not pairs:
        return None
    ratios = [ratio for pair in pairs if (ratio := ratio_to_best(*pair)) is not None]
    correlations = [
        value
        for comparison, chosen in pairs
        if chosen.scores is not None and (value := spearman(chosen.scores, comparison.layer_values("kl"))) is not None
    ]
    overlaps = [jaccard(chosen.outcome.layers, comparison.best.layers) for comparison, chosen in pairs]
    return Summary(
        name=name,
        ratio=fmean(ratios) if ratios else None,
        worst_ratio=min(ratios, default=None),
        extra_kl=fmean(chosen.outcome.divergence - comparison.best.divergence for comparison, chosen in pairs),
        correlation=fmean(correlations) if correlations else None,
        jaccard=fmean(overlaps),
        exact=fmean(float(overlap == 1) for overlap in overlaps),
        tokens=fmean(chosen.tokens for _, chosen in pairs),
        flops=fmean(chosen.flops for _, chosen in pairs),
        seconds=fmean(chosen.seconds for _, chosen in pairs),
        comparisons=len({id(comparison) for comparison, _ in pairs}),
    )


@dataclass(frozen=True)
class Duel:
    """The default against another contender at one teacher and budget.

    Attributes:
        recall, kl: mean of default - other, over texts or sequences; recall is better when higher, KL when lower.
        worse_recall, worse_kl: one-sided p of "the default is not worse".
        better_recall, better_kl: one-sided p of "the default is not better".
    """

    teacher: str
    keep: int
    other: str
    recall: float
    kl: float
    worse_recall: float
    worse_kl: float
    better_recall: float
    better_kl: float


def _over_seeds(outcomes: Sequence[Outcome], values: Callable[[Outcome], Sequence[float]]) -> list[float]:
    """Per text or sequence, the mean over outcomes."""
    return [fmean(column) for column in zip(*map(values, outcomes), strict=True)]


def _p_lower(first: Sequence[float], second: Sequence[float]) -> float:
    """One-sided p of "first is not lower than second", paired t test; 1 where all differences are zero."""
    if list(first) == list(second):
        return 1.0
    return _C.select.paired_difference(first, second)[2]


def duels(comparisons: Iterable[Comparison], default: str = DEFAULT) -> list[Duel]:
    """The default against every other row, per teacher and budget, over the seeds in which both were measured.

    Pairs are question texts (recall) and held-out sequences (KL), their values means over seeds and draws: seeds and draws
    are repetitions on the same texts, not further texts.
    """
    cells: dict[tuple[str, int], list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        if default in comparison.chosen:
            cells[comparison.teacher, comparison.keep].append(comparison)
    found = []
    for (teacher, keep), own in sorted(cells.items()):
        for other in sorted({group_of(name) for c in own for name in c.chosen} - {default}):
            ours, theirs = [], []
            for comparison in own:
                draws = [c.outcome for name, c in comparison.chosen.items() if group_of(name) == other]
                theirs += draws
                ours += [comparison.chosen[default].outcome] * len(draws)
            rows = [[_over_seeds(side, values) for side in (ours, theirs)] for values in (_recalls, _divergences)]
            (our_recall, their_recall), (our_kl, their_kl) = rows
            found.append(
                Duel(
                    teacher, keep, other,
                    recall=fmean(our_recall) - fmean(their_recall),
                    kl=fmean(our_kl) - fmean(their_kl),
                    worse_recall=_p_lower(our_recall, their_recall),
                    worse_kl=_p_lower(their_kl, our_kl),
                    better_recall=_p_lower(their_recall, our_recall),
                    better_kl=_p_lower(our_kl, their_kl),
                )
            )  # fmt: skip
    return found


def _recalls(outcome: Outcome) -> Sequence[float]:
    return outcome.right


def _divergences(outcome: Outcome) -> Sequence[float]:
    return outcome.kl


def verdict(duels_of_one: Sequence[Duel]) -> dict[str, Any]:
    """In how many teachers and budgets the default is significantly worse or better than one other contender.

    The level is `ALPHA` over all of them together (Bonferroni).
    """
    level = ALPHA / len(duels_of_one)
    return {
        "cells": len(duels_of_one),
        "worse_recall": sum(duel.worse_recall <= level for duel in duels_of_one),
        "better_recall": sum(duel.better_recall <= level for duel in duels_of_one),
        "worse_kl": sum(duel.worse_kl <= level for duel in duels_of_one),
        "better_kl": sum(duel.better_kl <= level for duel in duels_of_one),
        "recall": fmean(duel.recall for duel in duels_of_one),
        "kl": fmean(duel.kl for duel in duels_of_one),
    }
