"""Recall by depth and length of the context, model beside model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from hybridattn.report.figures.style import as_svg, new_figures

_COLOURS = LinearSegmentedColormap.from_list("recall", ["#b91c1c", "#f59e0b", "#fef3c7", "#5eead4", "#0f766e"])


def _label(value: Any) -> str:
    return "any" if value is None else f"{value:g}"


def recall_map(models: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """One panel per model: share of right answers, length to the right, depth downwards.

    Args:
        models: name -> cells with ``length``, ``depth`` and ``accuracy``, as ``eval.json`` holds them.
    """
    cells = [cell for found in models.values() for cell in found]
    lengths = sorted({cell["length"] for cell in cells}, key=lambda length: length or 0)
    depths = sorted({cell["depth"] for cell in cells}, key=lambda depth: -1 if depth is None else depth)
    width, height = 0.9 + 0.62 * len(lengths), 0.75 + 0.34 * len(depths)
    figure, panels = new_figures(max(2.0, width) * len(models), height, len(models))
    for axes, (name, found) in zip(panels, models.items(), strict=True):
        shares = np.full((len(depths), len(lengths)), np.nan)
        for cell in found:
            shares[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell["accuracy"]
        axes.imshow(shares, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                dark = share < 0.15 or share > 0.85
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "#0f172a")  # fmt: skip
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xticks(range(len(lengths)), [_label(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [_label(depth) for depth in depths])
        axes.set_xlabel("tokens of context")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_ylabel("depth")
    for axes in panels[1:]:
        axes.set_yticklabels([])
    return as_svg(figure)
