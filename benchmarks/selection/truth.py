"""Ground truth: every set of K layers scored untrained, the best of them distilled in full."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.selection.cell import LOSSES, Cell


def all_sets(num_layers: int, keep: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(num_layers), keep))


def score_all(cell: Cell, keep: int, loss: str) -> dict[str, Any]:
    """Mean loss over the selection sequences, and its standard error, of every set of `keep` layers: ``means``,
    ``errors``, in the order of `all_sets`."""

    def measure() -> dict[str, Any]:
        evaluator = cell.evaluator(loss)
        losses = torch.tensor(evaluator.losses(all_sets(cell.num_layers, keep)), dtype=torch.float64)
        errors = losses.std(1) / losses.shape[1] ** 0.5
        return {
            "means": [float(f"{value:.6g}") for value in losses.mean(1).tolist()],
            "errors": [float(f"{value:.3g}") for value in errors.tolist()],
            "tokens": evaluator.tokens,
            "flops": evaluator.flops,
            "seconds": evaluator.seconds,
        }

    return cell.once(f"exhaustive {keep} {loss}", measure)


def most_promising(cell: Cell, keep: int) -> list[tuple[int, ...]]:
    """The sets of `keep` layers to distil."""
    means = [score_all(cell, keep, loss)["means"] for loss in LOSSES]
    return best_of(cell.num_layers, keep, means, cell.protocol.best_share, cell.protocol.best_least)


def best_of(
    num_layers: int, keep: int, means: Sequence[Sequence[float]], share: float, least: int
) -> list[tuple[int, ...]]:
    """The best `share` of all sets, at least `least`, under any of the losses; those first that some loss ranks first.

    Args:
        means: per loss, the mean of every set in the order of `all_sets`.
    """
    sets = all_sets(num_layers, keep)
    count = min(len(sets), max(least, math.ceil(share * len(sets))))
    tops = [[sets[index] for index in sorted(range(len(sets)), key=row.__getitem__)[:count]] for row in means]
    return list(dict.fromkeys(itertools.chain.from_iterable(zip(*tops, strict=True))))
