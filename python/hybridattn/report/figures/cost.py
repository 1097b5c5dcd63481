"""What running a model costs, against the length of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import LogLocator

from hybridattn.report.figures.style import KEPT, PALETTE, TEACHER, as_svg, new_figure


def cost_curve(lines: Mapping[str, Sequence[tuple[int, float]]], label: str) -> str:
    """One line per model: (tokens of context, cost). Costs that differ much stand on a logarithmic axis, others from 0 on."""
    figure, axes = new_figure(4.6, 2.6)
    named = {"teacher": TEACHER, "hybrid": KEPT}
    by_cost = sorted(lines, key=lambda name: lines[name][-1][1])
    for (name, points), spare in zip(lines.items(), PALETTE[1:], strict=False):
        lengths, values = [length for length, _ in points], [value for _, value in points]
        axes.plot(lengths, values, marker="o", markersize=3.5, linewidth=1.4, color=named.get(name, spare), label=name)
        # Numbers of lines that end together stand one above the other.
        raised = 5 * (2 * by_cost.index(name) - len(lines) + 1)
        axes.annotate(f"{values[-1]:.3g}", (lengths[-1], values[-1]), xytext=(5, raised), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    ticks = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.margins(x=0.12)
    costs = [value for points in lines.values() for _, value in points]
    if min(costs) > 0 and max(costs) > 4 * min(costs):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(0, 1.12 * max(costs))
    axes.minorticks_off()
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)
