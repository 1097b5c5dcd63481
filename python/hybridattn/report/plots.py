"""The report's plots, as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEPT, OTHER, TEACHER = "#c2410c", "#94a3b8", "#0f766e"
PALETTE = ("#c2410c", "#2563eb", "#7c3aed", "#0891b2", "#65a30d", "#db2777", "#854d0e", "#475569")

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "svg.hashsalt": "hybridattn",
}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    with plt.rc_context(_STYLE):
        return plt.subplots(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with plt.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def importance(scores: Sequence[dict[str, Any]], kept: Sequence[int], label: str) -> str:
    """Score per layer with its interval; kept layers stand out.

    Args:
        scores: objects with ``layer``, ``score``, ``low``, ``high``; a layer without a score has no bar, one without an
            interval no whiskers.
    """
    figure, axes = _figure(7.2, 2.7)
    for row in scores:
        if row["score"] is None:
            continue
        color = KEPT if row["layer"] in kept else OTHER
        axes.bar(row["layer"], row["score"], color=color, width=0.7)
        if row.get("low") is not None and row.get("high") is not None:
            below, above = max(0.0, row["score"] - row["low"]), max(0.0, row["high"] - row["score"])
            axes.errorbar(row["layer"], row["score"], [[below], [above]], color="#1e293b", capsize=2, linewidth=1)
    axes.set_xticks([row["layer"] for row in scores])
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    return _svg(figure)


def quality(
    names: Sequence[str], values: Sequence[float], intervals: Sequence[tuple[float, float] | None], label: str
) -> str:
    """One horizontal bar per model; the teacher first, the hybrid in colour."""
    figure, axes = _figure(5.2, 0.6 + 0.32 * len(names))
    for row, (name, value, interval) in enumerate(zip(names, values, intervals, strict=True)):
        color = TEACHER if name == "teacher" else KEPT if name == "hybrid" else OTHER
        axes.barh(row, value, color=color, height=0.68)
        end = value
        if interval is not None:
            axes.errorbar(value, row, xerr=[[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]],
                          color="#1e293b", capsize=2, linewidth=1)  # fmt: skip
            end = max(value, interval[1])
        axes.annotate(f"{value:.3f}", (end, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def losses(curves: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Loss against tokens, one line per run."""
    figure, axes = _figure(6.0, 2.7)
    for (name, points), color in zip(curves.items(), PALETTE * (len(curves) // len(PALETTE) + 1), strict=False):
        axes.plot(
            [tokens for tokens, _ in points], [loss for _, loss in points], label=name, color=color, linewidth=1.2
        )
    axes.set_xlabel("tokens")
    axes.set_ylabel(label)
    if all(loss > 0 for points in curves.values() for _, loss in points):
        axes.set_yscale("log")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)
