"""One PNG of all results: how many times faster, and how many times smaller, than each peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.report import Result, case_label

COLORS = {"time": "#2563eb", "memory": "#0f766e"}


def _bars(results: list[Result]) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """(label, ratios, goals) of every case and peer."""
    return [
        (f"{case_label(result)}\nagainst {peer}", ratios, result["goals"])
        for result in results
        for peer, ratios in result["ratios"].items()
    ]


def save_plot(results: list[Result], path: Path, machine: dict[str, Any]) -> None:
    """A panel per benchmark; bars are peer / ours, and a tick on a bar is the goal."""
    names = list(dict.fromkeys(result["benchmark"] for result in results))
    panels = [_bars([result for result in results if result["benchmark"] == name]) for name in names]
    heights = [len(panel) + 0.9 for panel in panels]
    figure, axes = plt.subplots(
        len(names),
        1,
        figsize=(8, 0.55 * sum(heights) + 0.8),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for ax, name, panel in zip(axes[:, 0], names, panels, strict=True):
        for row, (_, ratios, goals) in enumerate(panel):
            for offset, kind in ((-0.2, "time"), (0.2, "memory")):
                if kind not in ratios:
                    continue
                ax.barh(row + offset, ratios[kind], height=0.38, color=COLORS[kind])
                ax.text(ratios[kind], row + offset, f" {ratios[kind]:.2f} x {kind}", va="center", fontsize=8)
                if kind in goals:
                    ax.plot([goals[kind]] * 2, [row + offset - 0.19, row + offset + 0.19], color="black", linewidth=1.5)
        ax.set_yticks(range(len(panel)), [label for label, _, _ in panel], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(name, loc="left", fontsize=10, fontweight="bold")
        ax.margins(x=0.2)
        ax.axvline(1, color="#94a3b8", linewidth=1)
        ax.spines[["top", "right"]].set_visible(False)
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers"))
    figure.supxlabel(
        f"peer / hybridattn (more than 1: less time or memory here)\n{machine['cpu']}, {versions}", fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
