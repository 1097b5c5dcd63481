"""One figure of merit, model beside model."""

from __future__ import annotations

from collections.abc import Sequence

from hybridattn.report.figures.style import KEPT, OTHER, TEACHER, as_svg, new_figure


def quality(
    names: Sequence[str], values: Sequence[float], intervals: Sequence[tuple[float, float] | None], label: str
) -> str:
    """One horizontal bar per model; the teacher first, the hybrid in colour."""
    figure, axes = new_figure(5.2, 0.6 + 0.32 * len(names))
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
    return as_svg(figure)
