"""What running a model costs, against the length of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import LogLocator

from hybridattn.report.figures.style import KEPT, PALETTE, TEACHER, as_svg, new_figure


def cost_curve(lines: Mapping[str, Sequence[tuple[int, float]]], label: str) -> str:
    """One line per model: (tokens of context, cost), both axes logarithmic."""
    figure, axes = new_figure(4.6, 2.6)
    named = {"teacher": TEACHER, "hybrid": KEPT}
    for (name, points), spare in zip(lines.items(), PALETTE[1:], strict=False):
        lengths, values = [length for length, _ in points], [value for _, value in points]
        axes.plot(lengths, values, marker="o", markersize=3.5, linewidth=1.4, color=named.get(name, spare), label=name)
        axes.annotate(f"{values[-1]:.3g}", (lengths[-1], values[-1]), xytext=(5, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    ticks = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.margins(x=0.12)
    if all(value > 0 for points in lines.values() for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(label)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)
