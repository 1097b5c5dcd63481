"""The verbs of ``hybridattn``. Each takes a recipe and a run directory, and redoes nothing that is already there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as transformers_logging

from hybridattn.cli.estimate_table import print_estimate
from hybridattn.cli.folder_eval import evaluate_folder, folders
from hybridattn.cli.progress import ProgressLine
from hybridattn.cli.tables import print_eval, print_info, print_plan, print_scores, print_selection
from hybridattn.distill import NonFiniteLoss

if TYPE_CHECKING:
    from hybridattn.run import Pipeline

app = typer.Typer(
    name="hybridattn",
    help="Turn a pretrained softmax Transformer into a hybrid of softmax and linear attention.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

RecipeArgument = Annotated[Path, typer.Argument(help="a recipe (TOML), or the name of one that ships: smollm2-cpu")]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="where the run's files go; runs/<name of the recipe> when absent")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="replace a key of the recipe: --set select.keep=4", metavar="KEY=VALUE"),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        help="who stops training while layers are scored: exhaustive: nobody; racing: a candidate with its verdict; jaccard: "
        "all, once the best K hardly change"
    ),
]


BUDGET_PANEL, CHOICE_PANEL = "How many layers (one of; else the recipe's)", "Which layers (else the recipe's)"


def _pipeline(recipe: Path, run_dir: Path | None, changes: list[str] | None, replaced: Sequence[str] = ()) -> Pipeline:
    from hybridattn.run import Pipeline, load_recipe

    transformers_logging.disable_progress_bar()  # it would write over the progress line
    loaded = load_recipe(recipe, changes or [], replaced)
    return Pipeline(loaded, run_dir or Path("runs") / loaded.name, ProgressLine(console))


@app.command()
def run(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Everything: convert, align, score, select, match, finetune, eval, report."""
    pipeline = _pipeline(recipe, run_dir, changes)
    report_path = pipeline.run()
    print_selection(console, pipeline.choose())
    print_eval(console, pipeline.directory.read("eval.json") or {})
    console.print(f"\nreport  [bold]{report_path}[/bold]")


@app.command()
def convert(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    init: Annotated[
        str | None,
        typer.Option(help="where the mixers' gates start: default, or calibrated to the teacher's attention"),
    ] = None,
) -> None:
    """Print where each of the teacher's attention tensors goes, and write plan.json."""
    changed = [*(changes or []), *([] if init is None else [f"convert.init={init}"])]
    print_plan(console, _pipeline(recipe, run_dir, changed).convert().transfer_plan)


@app.command()
def align(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Stage 1: each mixer learns to reproduce the teacher's attention of its layer."""
    pipeline = _pipeline(recipe, run_dir, changes)
    pipeline.align()
    console.print(f"aligned  [bold]{pipeline.directory.path / 'align' / 'model'}[/bold]")


@app.command()
def score(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    mode: ModeOption = None,
    jaccard_threshold: Annotated[
        float | None, typer.Option(help="jaccard: similarity of the top K of successive rounds at which all stop")
    ] = None,
    jaccard_window: Annotated[
        int | None, typer.Option(help="jaccard: how many successive similarities must reach it on average")
    ] = None,
) -> None:
    """Measure how important each layer's softmax attention is."""
    options = {"mode": mode, "jaccard_threshold": jaccard_threshold, "jaccard_window": jaccard_window}
    changed = [*(changes or []), *(f"score.{name}={value}" for name, value in options.items() if value is not None)]
    print_scores(console, _pipeline(recipe, run_dir, changed).chooser().scores())


@app.command()
def select(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    keep: Annotated[int | None, typer.Option(help="so many layers", rich_help_panel=BUDGET_PANEL)] = None,
    fraction: Annotated[float | None, typer.Option(help="a share of all layers", rich_help_panel=BUDGET_PANEL)] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            help="as many as decode a token in so many ms, measured on this machine", rich_help_panel=BUDGET_PANEL
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="as many as fit a sequence's cache in so many MiB", rich_help_panel=BUDGET_PANEL),
    ] = None,
    recall_drop: Annotated[
        float | None,
        typer.Option(
            help="as few as lose at most this share of the teacher's recall before distillation",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="tokens of context at which latency and memory count", rich_help_panel=BUDGET_PANEL),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="auto: elimination, races and exchanges of layers; ranking: the top of `score`; sequential; any "
            "criterion, e.g. ga_s2, gr_s2, learned_gates, smart, halo; uniform, random, first, last",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="kl (default): held-out KL of all tokens alike; recall_kl: tokens count by how much they need far context",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="probability that a race's verdicts are all right", rich_help_panel=CHOICE_PANEL),
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option(
            help="auto: train so many of the best sets by [select.stage] before one is chosen; default 0, no training",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    mode: ModeOption = None,
) -> None:
    """Choose the layers that keep softmax: how many by a number or a budget, which by a search, scores or a fixed plan."""
    budgets = {"keep": keep, "fraction": fraction, "latency": latency, "memory": memory, "recall_drop": recall_drop}
    others = {"context": context, "strategy": strategy, "loss": loss, "confidence": confidence, "finalists": finalists}
    given = {name: value for name, value in {**budgets, **others}.items() if value is not None}
    changed = [*(changes or []), *(f"select.{name}={value}" for name, value in given.items())]
    changed += [] if mode is None else [f"score.mode={mode}"]
    replaced = [f"select.{name}" for name in budgets] if given.keys() & budgets.keys() else []
    print_selection(console, _pipeline(recipe, run_dir, changed, replaced).choose())


@app.command()
def match(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Stage 2: the whole hybrid learns the teacher's predictions (KL)."""
    pipeline = _pipeline(recipe, run_dir, changes)
    pipeline.match(pipeline.choose().layers, pipeline.directory.path)
    console.print(f"matched  [bold]{pipeline.directory.path / 'match' / 'model'}[/bold]")


@app.command()
def finetune(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Stage 3: next-token cross-entropy, usually on longer sequences."""
    pipeline = _pipeline(recipe, run_dir, changes)
    if pipeline.recipe.finetune is None:
        raise ValueError(f"{recipe}: the recipe has no [finetune] table; add one, or use `match`")
    pipeline.finetune(pipeline.choose().layers, pipeline.directory.path)
    console.print(f"finetuned  [bold]{pipeline.directory.path / 'finetune' / 'model'}[/bold]")


@app.command("eval")
def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="a recipe: teacher, hybrid and rivals of its run")] = None,
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    model: Annotated[str | None, folders("a folder with a hybrid or a Transformers model, instead of a recipe")] = None,
    teacher: Annotated[str | None, folders("what to measure beside it, and the KL from")] = None,
    tasks: Annotated[str | None, folders("recall tasks by name, or jsonl files: needle,passkey")] = None,
    lengths: Annotated[str | None, folders("tokens per text and of context, default 512: 512,1024")] = None,
    depths: Annotated[str | None, folders("where stands what is asked, default anywhere: 0,0.5,1")] = None,
    items: Annotated[int | None, folders("texts per length and depth, default 64", least=1)] = None,
    scoring: Annotated[str | None, folders("generate (default), or forced: one forward pass per text")] = None,
    batch_size: Annotated[int | None, folders("default 8", least=1)] = None,
    text: Annotated[str | None, folders("files that nobody trained on, for KL and perplexity")] = None,
    cost: Annotated[bool | None, folders("measure time, memory and cache at --lengths", "--cost")] = None,
    lm_eval: Annotated[str | None, folders("tasks of lm-eval, which is an extra: niah_single_1,piqa")] = None,
    limit: Annotated[int | None, folders("examples per task of lm-eval, default all", least=1)] = None,
    seed: Annotated[int | None, folders("of the recall texts, default 0")] = None,
    device: Annotated[str | None, folders("default cpu")] = None,
    dtype: Annotated[str | None, folders("default float32")] = None,
    out: Annotated[Path | None, folders("a JSON file for the results")] = None,
) -> None:
    """Held-out KL, perplexity, recall and cost: of a recipe's run, or of a model in a folder."""
    of_folder = {
        "teacher": teacher, "tasks": tasks, "lengths": lengths, "depths": depths, "items": items, "scoring": scoring,
        "batch_size": batch_size, "text": text, "cost": cost, "lm_eval": lm_eval, "limit": limit, "seed": seed,
        "device": device, "dtype": dtype, "out": out,
    }  # fmt: skip
    given = {name: value for name, value in of_folder.items() if value is not None}
    if (recipe is None) == (model is None):
        raise ValueError("eval: give either a recipe or --model FOLDER")
    if recipe is not None:
        if given:
            option = next(iter(given)).replace("_", "-")
            raise ValueError(f"eval: --{option} goes with --model; a recipe's [eval] table says what its run measures")
        print_eval(console, _pipeline(recipe, run_dir, changes).evaluate())
        return
    if run_dir or changes:
        raise ValueError("eval: --run-dir and --set go with a recipe, not with --model")
    transformers_logging.disable_progress_bar()
    print_eval(console, evaluate_folder(str(model), given, ProgressLine(console)))


@app.command()
def report(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Write report.html from the files of a finished run."""
    console.print(f"report  [bold]{_pipeline(recipe, run_dir, changes).report()}[/bold]")


@app.command()
def estimate(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    measure: Annotated[bool, typer.Option(help="time a few steps and passes; otherwise count only")] = True,
) -> None:
    """What is still to do of a run, and what it will cost on this machine; writes nothing."""
    from hybridattn.run import estimate as price

    pipeline = _pipeline(recipe, run_dir, changes)
    print_estimate(
        console, price(pipeline.recipe, pipeline.directory.path, measure=measure, progress=pipeline.progress)
    )


@app.command()
def info() -> None:
    """Versions, processor, instruction sets and backends."""
    print_info(console)


def main() -> None:
    """Entry point: bad input, a missing extra, a full disk or a diverged stage ends with its message and status 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, NonFiniteLoss) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
