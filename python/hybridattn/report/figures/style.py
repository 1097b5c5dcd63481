"""What all figures of the report share: colours, fonts, and how a figure becomes inline SVG."""

from __future__ import annotations

import io
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


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes of a figure of that size in inches."""
    with plt.rc_context(_STYLE):
        return plt.subplots(figsize=(width, height), layout="constrained")


def new_figures(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """The same with several axes side by side."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def as_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element; the figure is closed."""
    buffer = io.StringIO()
    with plt.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
