"""A PNG per op: how many times faster, and smaller, than each peer as grouped bars; or times against an axis as lines."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.registry import OURS
from benchmarks.result import Result

# Tab10 without its first, which is ours in every plot.
OUR_COLOR, GOAL_COLOR = "#1d4ed8", "#111827"
COLORS = ["#f97316", "#dc2626", "#0f766e", "#a855f7", "#ca8a04", "#64748b", "#ec4899", "#84cc16"]
_WIDE_SPREAD = 12
"""Largest over smallest bar beyond which small ones are only readable on a logarithmic axis."""


def save_plots(results: list[Result], folder: Path, machine: dict[str, Any]) -> list[Path]:
    """Draws one PNG per op (what stands before the slash of a benchmark's name) and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["benchmark"].split("/")[0], []).append(result)
    paths = []
    for group, own in groups.items():
        names = list(dict.fromkeys(result["benchmark"] for result in own))
        panels = [[result for result in own if result["benchmark"] == name] for name in names]
        figure = _lines(panels) if own[0]["axis"] else _bars(panels)
        versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers"))
        figure.supxlabel(
            f"{machine['cpu']}, {machine['cores']} cores, {versions}, commit {machine['commit']}", fontsize=7
        )
        paths.append(folder / f"{group}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _colors(results: list[Result]) -> dict[str, str]:
    names = dict.fromkeys(name for result in results for name in result["contenders"])
    peers = [name for name in names if name != OURS]
    return {OURS: OUR_COLOR} | {name: COLORS[index % len(COLORS)] for index, name in enumerate(peers)}


def _bars(panels: list[list[Result]]) -> plt.Figure:
    """Rows of panels, one per benchmark: time left and, where it was measured, memory right."""
    everything = [result for panel in panels for result in panel]
    colors = _colors(everything)
    memory = any("memory" in ratios for result in everything for ratios in result["ratios"].values())
    widest = max(len(panel) for panel in panels)
    figure, axes = plt.subplots(
        len(panels),
        1 + memory,
        figsize=(max(7, 1.3 * widest + 2) * (1.6 if memory else 1), 3.6 * len(panels) + 0.6),
        width_ratios=[1.6, 1] if memory else [1],
        layout="constrained",
        squeeze=False,
    )
    for row, panel in zip(axes, panels, strict=True):
        _bar_panel(row[0], panel, "time", colors)
        title = textwrap.fill(f"{panel[0]['benchmark']}: {panel[0]['about']}", 90)
        row[0].set_title(title, loc="left", fontsize=9, fontweight="bold")
        if memory:
            _bar_panel(row[1], panel, "memory", colors)
    return figure


def _bar_panel(ax: Axes, panel: list[Result], kind: str, colors: dict[str, str]) -> None:
    """A group of bars per case, a bar per peer: peer / ours. A black line on a bar is its goal."""
    shown = [result for result in panel if any(kind in ratios for ratios in result["ratios"].values())]
    if not shown:
        ax.set_visible(False)
        return
    values = []
    for place, result in enumerate(shown):
        peers = [(name, ratios[kind]) for name, ratios in result["ratios"].items() if kind in ratios]
        width = 0.86 / len(peers)
        goals = {goal["against"]: goal["least"] for goal in result["goals"] if goal["quantity"] == kind}
        for index, (name, value) in enumerate(peers):
            middle = place - 0.43 + (index + 0.5) * width
            values.append(value)
            ax.bar(middle, value, width * 0.94, color=colors[name], label=name)
            ax.text(
                middle,
                value,
                f"{value:.1f}" if value < 99.5 else f"{value:.0f}",
                ha="center",
                va="bottom",
                fontsize=6.5,
            )
            if name in goals:
                values.append(goals[name])
                ax.plot(
                    [middle - width / 2, middle + width / 2], [goals[name]] * 2, color=GOAL_COLOR, lw=1.8, label="goal"
                )
    ax.axhline(1, color="#94a3b8", linewidth=1)
    if max(values) > _WIDE_SPREAD * min(values):
        ax.set_yscale("log")
    ax.margins(y=0.12)
    ax.set_xticks(range(len(shown)), [_group_label(result, kind) for result in shown], fontsize=6.5)
    ax.set_ylabel("times as fast as" if kind == "time" else "peer's extra memory / ours", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if kind == "time":
        ax.legend(named.values(), named.keys(), fontsize=6.5, frameon=False, ncols=min(len(named), 4), loc="upper left")
        ax.margins(y=0.35)


def _group_label(result: Result, kind: str) -> str:
    parameters = [f"{name} {value}" for name, value in result["parameters"].items()]
    lines = [" ".join(parameters[at : at + 3]) for at in range(0, len(parameters), 3)]
    lines.append(f"{result['dtype'].replace('bfloat', 'bf').replace('float', 'fp')}, {result['threads']} thr.")
    ours = next(iter(result["contenders"].values()))
    if kind == "memory":
        return "\n".join([*lines, f"ours {ours['extra_mib']:.0f} MiB"])
    if "tokens_per_second" in ours:
        lines.append(f"ours {ours['tokens_per_second']:,.0f} tokens/s")
    elif "microseconds_per_token_head" in ours:
        lines.append(f"ours {ours['microseconds_per_token_head']:.3g} us")
    else:
        lines.append(f"ours {ours['milliseconds']:.3g} ms")
    peak, share = next(iter(result.get("shares", {}).items()), ("", 0))
    return "\n".join([*lines, f"{share:.0%} {peak}"] if peak else lines)


def _lines(panels: list[list[Result]]) -> plt.Figure:
    """A panel per benchmark: time of one token in one head against its axis, a line per contender and dtype."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False)
    colors = _colors([result for panel in panels for result in panel])
    for ax, panel in zip(axes[0], panels, strict=True):
        axis = panel[0]["axis"]
        lines: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
        for result in panel:
            place = result["threads"] if axis == "threads" else result["parameters"][axis]
            key = (result["dtype"], 0 if axis == "threads" else result["threads"])
            for name, values in result["contenders"].items():
                lines.setdefault((name, *key), []).append((place, values["microseconds_per_token_head"]))
        several = len({(dtype, threads) for _, dtype, threads in lines}) > 1
        for (name, dtype, threads), points in lines.items():
            places, times = zip(*sorted(points), strict=True)
            label = f"{name}, {threads} threads" if several and threads else name
            style = "--" if dtype == "bfloat16" or (several and threads == 1) else "-"
            ax.plot(places, times, style, marker="o", markersize=4, color=colors[name], label=label)
        ticks = sorted({place for points in lines.values() for place, _ in points})
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7, rotation=45 if len(ticks) > 5 else 0)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel({"T": "tokens", "H": "heads"}.get(axis, axis), fontsize=8)
        ax.set_ylabel("microseconds per token and head", fontsize=8)
        ax.tick_params(axis="y", which="both", labelsize=7)
        ax.set_title(panel[0]["about"], fontsize=9, fontweight="bold", loc="left", wrap=True)
        ax.grid(which="both", color="#e2e8f0", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=7, frameon=False)
    return figure
