"""What the verbs print."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_plan(console: Console, plan: Any) -> None:
    console.print(str(plan), highlight=False, soft_wrap=True)


def print_scores(console: Console, scores: dict[str, Any]) -> None:
    table = Table(title=scores["title"])
    for name in ("layer", scores["label"], "95 % interval", "verdict"):
        table.add_column(name, justify="right")
    for row in sorted(scores["layers"], key=lambda row: row["rank"]):
        interval = "" if row["low"] is None else f"{row['low']:.4f} … {row['high']:.4f}"
        score = row["reason"] if row["score"] is None else f"{row['score']:.4f}"
        table.add_row(str(row["layer"]), score, interval, row["verdict"])
    console.print(table)


def print_selection(console: Console, choice: Any) -> None:
    console.print(f"softmax stays in layers {', '.join(map(str, choice.layers)) or 'none'}: {choice.explanation}")


def print_eval(console: Console, evaluation: dict[str, Any]) -> None:
    """Quality of every model, recall by length and depth, cost and lm-eval's scores: what `evaluation` has of these."""
    models = evaluation["models"]
    first = next(iter(models.values()))
    tasks = list(first["recall"])
    shown = tasks if len(tasks) <= 3 else []  # more of them get a table of their own, a line each
    columns = [*shown, *(name for name in ("kl", "perplexity") if any(name in row for row in models.values()))]
    origin = f"{evaluation['teacher']} with " if evaluation["teacher"] else ""
    if columns:
        table = Table(title=f"{evaluation['name']}: {origin}{evaluation['mixer']}")
        table.add_column("model")
        table.add_column("softmax layers")
        for name in columns:
            table.add_column("KL" if name == "kl" else name, justify="right")
        for name, model in models.items():
            layers = "all" if model["layers"] is None else ", ".join(map(str, model["layers"])) or "none"
            recall = [f"{model['recall'][task]['accuracy']:.3f}" for task in shown]
            others = {"kl": "-" if name == "teacher" else _number(model.get("kl"), 4),
                      "perplexity": _number(model.get("perplexity"), 3)}  # fmt: skip
            values = [*recall, *(others[column] for column in columns[len(shown) :])]
            table.add_row(name, layers, *values, style="bold" if name == "hybrid" else "")
        console.print(table)
    if tasks != shown:
        table = Table("task", *models, title="recall")
        for task in tasks:
            table.add_row(task, *(f"{model['recall'][task]['accuracy']:.3f}" for model in models.values()))
        console.print(table)
    for task in tasks:
        _print_cells(console, task, {name: model["recall"][task].get("cells", []) for name, model in models.items()})
    if "cost" in evaluation:
        _print_cost(console, evaluation["cost"])
    if "lm_eval" in evaluation:
        _print_lm_eval(console, evaluation["lm_eval"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_cells(console: Console, task: str, models: dict[str, list[dict[str, Any]]]) -> None:
    """Recall of one task by length and depth, where there is more than one of either."""
    cells = next(iter(models.values()))
    if len(cells) < 2:
        return
    depths = list(dict.fromkeys(cell["depth"] for cell in cells))
    table = Table(title=f"{task} by length" + ("" if depths == [None] else " and depth"))
    table.add_column("model")
    table.add_column("tokens", justify="right")
    for depth in depths:
        table.add_column("anywhere" if depth is None else f"{depth:g}", justify="right")
    for name, found in models.items():
        values = {(cell["length"], cell["depth"]): cell["accuracy"] for cell in found}
        for length in dict.fromkeys(cell["length"] for cell in found):
            row = [_number(values.get((length, depth)), 3) for depth in depths]
            table.add_row(name, "-" if length is None else str(length), *row)
    console.print(table)


def _print_cost(console: Console, cost: dict[str, Any]) -> None:
    machine = cost["machine"]
    table = Table(
        title=f"cost: {machine['device']}, {machine['threads']} threads, {machine['dtype']}, batch of {cost['batch_size']}"
    )
    table.add_column("model")
    names = ("context", "prefill tok/s", "decode tok/s", "cache MiB", "peak MiB prefill", "peak MiB decode")
    for name in names:
        table.add_column(name, justify="right")
    for name, model in cost["models"].items():
        for point in model["points"]:
            sizes = [point[key] for key in ("cache_bytes", "prefill_peak_bytes", "decode_peak_bytes")]
            speeds = [f"{point[key]:,.0f}" for key in ("prefill_tokens_per_second", "decode_tokens_per_second")]
            table.add_row(
                name, str(point["length"]), *speeds,
                *("-" if size is None else f"{size / 2**20:,.2f}" for size in sizes),
            )  # fmt: skip
    console.print(table)


def _print_lm_eval(console: Console, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table(title="lm-eval")
    table.add_column("task")
    table.add_column("metric")
    for name in scores:
        table.add_column(name, justify="right")
    for task, metrics in next(iter(scores.values())).items():
        for metric in metrics:
            table.add_row(task, metric, *(_number(found.get(task, {}).get(metric), 4) for found in scores.values()))
    console.print(table)


def print_info(console: Console) -> None:
    from hybridattn.info import collect
    from hybridattn.ops import BACKENDS, instruction_set, instruction_sets

    facts = collect().to_dict()
    table = Table(show_header=False, box=None)
    for group in ("versions", "build"):
        for name, value in facts.pop(group).items():
            table.add_row(f"{group[:-1] if group == 'versions' else group} {name}", str(value))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    table.add_row("backends", ", ".join(BACKENDS))
    table.add_row("native kernels", f"{instruction_set()} (built: {', '.join(instruction_sets())})")
    console.print(table)
