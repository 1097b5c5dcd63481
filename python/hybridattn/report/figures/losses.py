"""Loss curves of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridattn.report.figures.style import PALETTE, as_svg, new_figure


def losses(curves: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Loss against tokens, one line per run."""
    figure, axes = new_figure(6.0, 2.7)
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
    return as_svg(figure)
