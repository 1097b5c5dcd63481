"""Assembles report.html from the files of a run directory; reads nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from hybridattn.report import plots


def _json(path: Path) -> Any | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _curve(path: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["tokens"], row["loss"]) for row in rows if row.get("loss") is not None]


def _curves(run: Path, stage: str) -> dict[str, list[tuple[float, float]]]:
    """The stage's loss curve of the hybrid and of every rival that went through it."""
    logs = {"hybrid": run / stage / "log.jsonl"}
    logs |= {folder.name: folder / stage / "log.jsonl" for folder in sorted((run / "compare").glob("*"))}
    curves = {name: _curve(path) for name, path in logs.items() if path.exists()}
    return {name: points for name, points in curves.items() if points}


def _recall_mean(model: dict[str, Any]) -> float | None:
    rows = list(model["recall"].values())
    return sum(row["accuracy"] for row in rows) / len(rows) if rows else None


def _quality_plots(models: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    names = list(models)
    sections = []
    for task in next(iter(models.values()))["recall"]:
        rows = [models[name]["recall"][task] for name in names]
        figure = plots.quality(
            names, [row["accuracy"] for row in rows], [(row["low"], row["high"]) for row in rows], f"recall, {task}"
        )
        sections.append({"title": f"Recall: {task}", "svg": figure})
    students = [name for name in names if name != "teacher"]
    if students:
        rows = [models[name] for name in students]
        figure = plots.quality(
            students, [row["kl"] for row in rows], [tuple(row["kl_interval"]) for row in rows],
            "held-out KL(teacher || model), nats per token",
        )  # fmt: skip
        sections.append({"title": "Held-out KL (lower is better)", "svg": figure})
    return sections


def _score_sections(run: Path, selection: dict[str, Any]) -> list[dict[str, Any]]:
    sections = []
    for path in sorted((run / "score").glob("*.json")):
        scores = _json(path)
        if not isinstance(scores, dict) or "layers" not in scores:
            continue
        chosen = scores.get("kept", selection["layers"])
        sections.append(
            {
                "title": scores["title"],
                "explanation": scores["explanation"],
                "source": scores.get("source", ""),
                "deviations": scores.get("deviations", ""),
                "cost": scores.get("cost"),
                "kept": chosen,
                "svg": plots.importance(scores["layers"], chosen, scores["label"]),
            }
        )
    return sections


def _loss_sections(run: Path) -> list[dict[str, str]]:
    titles = {
        "align": ("Stage 1: align", "alignment loss"),
        "match": ("Stage 2: match", "KL, nats per token"),
        "finetune": ("Stage 3: finetune", "cross-entropy, nats per token"),
    }
    sections = []
    for stage, (title, label) in titles.items():
        curves = _curves(run, stage)
        if curves:
            sections.append({"title": title, "svg": plots.losses(curves, label)})
    return sections


def render_report(run_dir: str | Path) -> str:
    """The page as one HTML string with every plot inside.

    Raises:
        FileNotFoundError: naming the file that the run has not written yet, and the step that writes it.
    """
    run = Path(run_dir)
    for name, verb in (("recipe.toml", "run"), ("selection.json", "select"), ("eval.json", "eval")):
        if not (run / name).exists():
            raise FileNotFoundError(f"report: {run / name} is missing; `hybridattn {verb}` writes it")
    selection: Any = _json(run / "selection.json")
    evaluation: Any = _json(run / "eval.json")
    ledger, info = _json(run / "ledger.json") or {"entries": []}, _json(run / "info.json") or {}
    models = evaluation["models"]
    environment = Environment(loader=PackageLoader("hybridattn.report"), autoescape=select_autoescape())
    return environment.get_template("report.html").render(
        name=evaluation["name"],
        teacher=evaluation["teacher"],
        mixer=evaluation["mixer"],
        layers=[{"index": i, "kept": i in selection["layers"]} for i in range(evaluation["num_layers"])],
        selection=selection,
        models={name: model | {"recall_mean": _recall_mean(model)} for name, model in models.items()},
        tasks=list(next(iter(models.values()))["recall"]),
        quality=_quality_plots(models),
        scores=_score_sections(run, selection),
        losses=_loss_sections(run),
        ledger=ledger["entries"],
        total={key: sum(entry[key] or 0 for entry in ledger["entries"]) for key in ("tokens", "flops", "seconds")},
        recipe=(run / "recipe.toml").read_text(encoding="utf-8"),
        info=info,
        plan=_json(run / "plan.json") or [],
    )


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into the run directory and returns its path."""
    from hybridattn.run.directory import write_atomically

    path = Path(run_dir) / "report.html"
    write_atomically(path, render_report(run_dir))
    return path
