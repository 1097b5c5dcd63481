"""Plots of the comparison: recall relative to the best subset's by teacher and budget, and cost against agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.selection.analysis import group_of, ratio_to_best, summarise
from benchmarks.selection.contenders import DEFAULT, DEFAULT_BY_DATA
from benchmarks.selection.records import Comparison
from benchmarks.selection.table import names_of

_OURS, _OTHERS = "#2563eb", "#94a3b8"


def save_recall(comparisons: Sequence[Comparison], path: Path) -> None:
    """A panel per teacher and budget; every dot is one seed or draw of one contender."""
    cells = sorted({(c.teacher, c.keep) for c in comparisons})
    names = names_of(comparisons)
    figure, axes = plt.subplots(
        1,
        len(cells),
        figsize=(2.2 + 1.7 * len(cells), 1.4 + 0.24 * len(names)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (teacher, keep) in zip(axes[0], cells, strict=True):
        for comparison in comparisons:
            if (comparison.teacher, comparison.keep) != (teacher, keep):
                continue
            for name, chosen in comparison.chosen.items():
                ratio = ratio_to_best(comparison, chosen)
                if ratio is not None:
                    row = names.index(group_of(name))
                    ax.plot(ratio, row, "o", color=_OURS if names[row] == DEFAULT else _OTHERS, markersize=4, alpha=0.8)
        ax.axvline(0.98, color="#0f766e", linewidth=1)
        ax.set_xlim(-0.05, 1.1)
        ax.set_title(f"{teacher}\nK = {keep}", fontsize=8)
        ax.grid(axis="y", color="#e2e8f0", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].invert_yaxis()
    figure.supxlabel("recall after distillation / the best subset's (line: 0.98)", fontsize=9)
    _save(figure, path)


def save_cost(comparisons: Sequence[Comparison], path: Path) -> None:
    """Operations spent on choosing against the mean Jaccard index with the best subset; plans stand at no cost.

    A line joins the default on less and on all of its data.
    """
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.set_xscale("symlog", linthresh=1e9)
    summaries = [found for name in names_of(comparisons) if (found := summarise(name, comparisons))]
    points = {summary.name: (summary.flops, summary.jaccard) for summary in summaries}
    own = [points[name] for name in DEFAULT_BY_DATA if name in points]
    ax.plot([flops for flops, _ in own], [jaccard for _, jaccard in own], color=_OURS, linewidth=1)
    for name, at in points.items():
        ours = name in DEFAULT_BY_DATA
        color, text, side, ha = (_OURS, _OURS, -6, "right") if ours else (_OTHERS, "black", 4, "left")
        ax.plot(*at, "o", color=color)
        label = name.removeprefix(f"{DEFAULT} on ")
        ax.annotate(label, at, xytext=(side, 3), textcoords="offset points", fontsize=7, color=text, ha=ha)
    ax.set_xlabel("floating-point operations spent on choosing")
    ax.set_ylabel("Jaccard index with the best subset")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.15)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
