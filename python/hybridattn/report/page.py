"""Assembles report.html from the files of a run directory; reads nothing else."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from hybridattn.report import explain, sections
from hybridattn.select.evaluator import LOSS_NAMES


def _json(path: Path) -> Any | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _scores(run: Path) -> dict[str, dict[str, Any]]:
    """Name -> scoring, of the files in ``score/`` that hold one."""
    found = {path.stem: _json(path) for path in sorted((run / "score").glob("*.json"))}
    return {name: values for name, values in found.items() if isinstance(values, dict) and "layers" in values}


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
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(recipe)
    ledger, info = _json(run / "ledger.json") or {"entries": []}, _json(run / "info.json") or {}
    models, scores, cost = evaluation["models"], _scores(run), evaluation.get("cost")
    frontier: Any = _json(run / "select" / "frontier.json")
    environment = Environment(loader=PackageLoader("hybridattn.report"), autoescape=select_autoescape())
    return environment.get_template("report.html").render(
        name=evaluation["name"],
        teacher=evaluation["teacher"],
        mixer=evaluation["mixer"],
        layers=[{"index": i, "kept": i in selection["layers"]} for i in range(evaluation["num_layers"])],
        selection=selection,
        why=explain.why_these_layers(evaluation, selection, scores, settings),
        loss_names=LOSS_NAMES,
        searched=explain.searched_loss(settings),
        alternatives=explain.alternatives(models),
        sequences=len(models.get("hybrid", {}).get("kl_sequences", ())),
        models={name: model | {"recall_mean": explain.recall_mean(model)} for name, model in models.items()},
        tasks=list(next(iter(models.values()))["recall"]),
        quality=sections.quality(models),
        heat_maps=sections.heat_maps(models),
        frontier=None if frontier is None else frontier | {"cards": sections.frontier(frontier)},
        cost=None if cost is None else cost | {"cards": sections.cost(cost), "saved": explain.saved(cost)},
        scores=sections.scores(scores, selection),
        losses=sections.losses(run),
        ledger=ledger["entries"],
        total={key: sum(entry[key] or 0 for entry in ledger["entries"]) for key in ("tokens", "flops", "seconds")},
        recipe=recipe,
        info=info,
        plan=_json(run / "plan.json") or [],
    )


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into the run directory and returns its path."""
    from hybridattn.run.directory import write_atomically

    path = Path(run_dir) / "report.html"
    write_atomically(path, render_report(run_dir))
    return path
