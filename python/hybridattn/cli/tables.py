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
        table.add_row(str(row["layer"]), f"{row['score']:.4f}", interval, row["verdict"])
    console.print(table)


def print_selection(console: Console, choice: Any) -> None:
    console.print(f"softmax stays in layers {', '.join(map(str, choice.layers)) or 'none'}: {choice.explanation}")


def print_eval(console: Console, evaluation: dict[str, Any]) -> None:
    models = evaluation["models"]
    tasks = list(next(iter(models.values()))["recall"])
    table = Table(title=f"{evaluation['name']}: {evaluation['teacher']} with {evaluation['mixer']}")
    table.add_column("model")
    table.add_column("softmax layers")
    for name in (*tasks, "KL", "perplexity"):
        table.add_column(name, justify="right")
    for name, model in models.items():
        layers = "all" if model["layers"] is None else ", ".join(map(str, model["layers"])) or "none"
        recall = [f"{model['recall'][task]['accuracy']:.3f}" for task in tasks]
        divergence = "-" if name == "teacher" else f"{model['kl']:.4f}"
        table.add_row(
            name, layers, *recall, divergence, f"{model['perplexity']:.3f}", style="bold" if name == "hybrid" else ""
        )
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
