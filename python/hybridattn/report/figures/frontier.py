"""What a softmax layer more buys: held-out loss of nested sets of layers against what they cost to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridattn.report.figures.style import KEPT, OTHER, as_svg, new_figure


def frontier(points: Sequence[dict[str, Any]], costs: Sequence[float], keep: int, label: str) -> str:
    """One point per number of softmax layers, written beside it; the chosen one stands out.

    Args:
        points: objects with ``keep``, ``loss``, ``low``, ``high`` (nats per token).
        costs: of each point, in the unit of `label`.
    """
    figure, axes = new_figure(4.6, 2.8)
    losses = [point["loss"] for point in points]
    axes.plot(costs, losses, color=OTHER, linewidth=1)
    for point, cost in zip(points, costs, strict=True):
        chosen = point["keep"] == keep
        color = KEPT if chosen else OTHER
        error = [[max(0.0, point["loss"] - point["low"])], [max(0.0, point["high"] - point["loss"])]]
        axes.errorbar(
            cost, point["loss"], yerr=error, color=color, marker="o", markersize=6 if chosen else 4, capsize=2
        )
        axes.annotate(str(point["keep"]), (cost, point["loss"]), xytext=(4, 4), textcoords="offset points", fontsize=8,
                      color=color, fontweight="bold" if chosen else "normal")  # fmt: skip
    axes.set_ylim(bottom=min(0.0, *losses))
    axes.set_xlabel(label)
    axes.set_ylabel("held-out loss, nats per token")
    axes.margins(x=0.1)
    return as_svg(figure)
