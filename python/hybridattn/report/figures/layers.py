"""Importance per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridattn.report.figures.style import KEPT, OTHER, as_svg, new_figure


def importance(scores: Sequence[dict[str, Any]], kept: Sequence[int], label: str) -> str:
    """Score per layer with its interval; kept layers stand out.

    Args:
        scores: objects with ``layer``, ``score``, ``low``, ``high``; a layer without a score has no bar, one without an
            interval no whiskers.
    """
    figure, axes = new_figure(7.2, 2.7)
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
    return as_svg(figure)
