"""The verbs of ``hybridattn``. Each takes a recipe and a run directory, and redoes nothing that is already there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as transformers_logging

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


def _pipeline(recipe: Path, run_dir: Path | None, changes: list[str] | None) -> Pipeline:
    from hybridattn.run import Pipeline, load_recipe

    transformers_logging.disable_progress_bar()  # it would write over the progress line
    loaded = load_recipe(recipe, changes or [])
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
def convert(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Print where each of the teacher's attention tensors goes, and write plan.json."""
    print_plan(console, _pipeline(recipe, run_dir, changes).convert().transfer_plan)


@app.command()
def align(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Stage 1: each mixer learns to reproduce the teacher's attention of its layer."""
    pipeline = _pipeline(recipe, run_dir, changes)
    pipeline.align()
    console.print(f"aligned  [bold]{pipeline.directory.path / 'align' / 'model'}[/bold]")


@app.command()
def score(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Measure how important each layer's softmax attention is."""
    print_scores(console, _pipeline(recipe, run_dir, changes).chooser().scores())


@app.command()
def select(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Choose the layers that keep softmax, by scores and refinement or by a fixed plan."""
    print_selection(console, _pipeline(recipe, run_dir, changes).choose())


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
def evaluate(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Held-out KL, perplexity and recall of teacher, hybrid and rivals."""
    print_eval(console, _pipeline(recipe, run_dir, changes).evaluate())


@app.command()
def report(recipe: RecipeArgument, run_dir: RunDirOption = None, changes: SetOption = None) -> None:
    """Write report.html from the files of a finished run."""
    console.print(f"report  [bold]{_pipeline(recipe, run_dir, changes).report()}[/bold]")


@app.command()
def info() -> None:
    """Versions, processor, instruction sets and backends."""
    print_info(console)


def main() -> None:
    """Entry point: a bad recipe or input, a full disk or a diverged stage ends with its message and status 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, NonFiniteLoss) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2)
