"""The page's parts that hold figures: each a list of cards with a title and an inline SVG."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridattn.report import figures

Models = dict[str, dict[str, Any]]


def quality(models: Models) -> list[dict[str, str]]:
    """Recall of every task and held-out KL, model beside model."""
    names = list(models)
    cards = []
    for task in next(iter(models.values()))["recall"]:
        rows = [models[name]["recall"][task] for name in names]
        figure = figures.quality(
            names, [row["accuracy"] for row in rows], [(row["low"], row["high"]) for row in rows], f"recall, {task}"
        )
        cards.append({"title": f"Recall: {task}", "svg": figure})
    students = [name for name in names if name != "teacher"]
    if students:
        rows = [models[name] for name in students]
        figure = figures.quality(
            students, [row["kl"] for row in rows], [tuple(row["kl_interval"]) for row in rows],
            "held-out KL(teacher || model), nats per token",
        )  # fmt: skip
        cards.append({"title": "Held-out KL (lower is better)", "svg": figure})
    return cards


def heat_maps(models: Models) -> list[dict[str, Any]]:
    """Recall by depth and length of teacher, hybrid and the first rival, for tasks with more than one cell."""
    ours = models.get("hybrid", {}).get("layers")
    rivals = [name for name in models if name not in ("teacher", "hybrid") and models[name]["layers"] != ours]
    names = [name for name in ("teacher", "hybrid", *rivals[:1]) if name in models]
    cards = []
    for task in next(iter(models.values()))["recall"]:
        cells = {name: models[name]["recall"][task].get("cells", []) for name in names}
        answers = [cell["answers"] for found in cells.values() for cell in found]
        if len(answers) > len(cells):
            fewest, most = min(answers), max(answers)
            count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            cards.append({"title": f"Recall: {task}", "answers": count, "svg": figures.recall_map(cells)})
    return cards


def cost(measured: dict[str, Any]) -> list[dict[str, str]]:
    """Time, cache and memory against the length of the context."""
    curves: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
        ("Reading the context (prefill)", "seconds", lambda point: point["prefill_seconds"]),
        ("One decoding step after it", "milliseconds", lambda point: 1000 * point["decode_seconds"]),
        ("Cache after the context", "MiB", lambda point: point["cache_bytes"] / 2**20),
        ("Peak memory of prefill, beyond the weights", "MiB", lambda point: _mebibytes(point["prefill_peak_bytes"])),
        ("Peak memory of decoding, beyond the weights", "MiB", lambda point: _mebibytes(point["decode_peak_bytes"])),
    )
    cards = []
    for title, unit, value in curves:
        lines = {
            name: [(point["length"], found) for point in model["points"] if (found := value(point)) is not None]
            for name, model in measured["models"].items()
        }
        if all(lines.values()):
            cards.append({"title": title, "svg": figures.cost_curve(lines, unit)})
    return cards


def frontier(measured: dict[str, Any]) -> list[dict[str, str]]:
    """Held-out loss of nested sets of layers against latency and cache."""
    points, keep = measured["points"], measured["keep"]
    axes = {
        "Against the time of one decoded token": ("milliseconds", [point["milliseconds"] for point in points]),
        "Against the cache of one sequence": ("MiB", [point["cache_bytes"] / 2**20 for point in points]),
    }
    return [
        {"title": title, "svg": figures.frontier(points, costs, keep, unit)} for title, (unit, costs) in axes.items()
    ]


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def scores(found: dict[str, dict[str, Any]], selection: dict[str, Any]) -> list[dict[str, Any]]:
    """Importance of every layer, scoring by scoring."""
    cards = []
    for values in found.values():
        chosen = values.get("kept", selection["layers"])
        cards.append(
            {
                "title": values["title"],
                "explanation": values["explanation"],
                "source": values.get("source", ""),
                "deviations": values.get("deviations", ""),
                "cost": values.get("cost"),
                "kept": chosen,
                "svg": figures.importance(values["layers"], chosen, values["label"]),
            }
        )
    return cards


def _curve(path: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["tokens"], row["loss"]) for row in rows if row.get("loss") is not None]


def losses(run: Path) -> list[dict[str, str]]:
    """Loss curves of each stage, of the hybrid and of every rival that went through it."""
    titles = {
        "align": ("Stage 1: align", "alignment loss"),
        "match": ("Stage 2: match", "KL, nats per token"),
        "finetune": ("Stage 3: finetune", "cross-entropy, nats per token"),
    }
    cards = []
    for stage, (title, label) in titles.items():
        logs = {"hybrid": run / stage / "log.jsonl"}
        logs |= {folder.name: folder / stage / "log.jsonl" for folder in sorted((run / "compare").glob("*"))}
        curves = {name: _curve(path) for name, path in logs.items() if path.exists()}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            cards.append({"title": title, "svg": figures.losses(curves, label)})
    return cards
