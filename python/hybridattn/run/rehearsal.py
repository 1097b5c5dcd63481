"""Rehearsal: the pipeline's own steps without their work. Nothing is trained or saved; each step's cost is noted instead.

It runs in a temporary folder that looks like the run directory, so what is finished there is found and costs nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import hybridattn as ha
from hybridattn.distill import AlignObjective, FinetuneObjective, MatchObjective
from hybridattn.run.choice import PLANS, scoring_table
from hybridattn.run.directory import RunDirectory
from hybridattn.run.evaluation_cost import Cost, cost_table_cost, evaluation_cost
from hybridattn.run.pipeline import Pipeline, Progress
from hybridattn.run.probe import Memory, TrainingCost, parameter_bytes, training_cost
from hybridattn.run.recipe import Recipe, ScoringTable, StageTable
from hybridattn.run.rehearsed_evaluator import Rehearsed, RehearsedEvaluator

_OBJECTIVES: dict[str, Callable[..., Any]] = {
    "align": AlignObjective,
    "match": MatchObjective,
    "finetune": FinetuneObjective,
}
_Scoring = TypeVar("_Scoring", bound=ScoringTable)
_ADAM_STATE = 2
"""AdamW's moments per weight, which checkpoints hold until a stage is over."""


@dataclass(frozen=True)
class StepEstimate:
    """What is still to do of one step.

    Attributes:
        step: its name in the ledger.
        tokens: that go through a model in training or in a measurement.
        flops: of the weights' multiply-adds, as in the ledger.
        seconds: on this machine; None where nothing was timed.
        memory: at its largest moment.
        disk: bytes of the files that it leaves.
        disk_while: bytes that it needs besides, while it runs.
        bound: "" or what the numbers are, where they depend on results.
    """

    step: str
    tokens: int
    flops: float
    seconds: float | None
    memory: Memory
    disk: int = 0
    disk_while: int = 0
    bound: str = ""


@contextmanager
def mirrored(recipe: Recipe, run_dir: str | Path) -> Iterator[Path]:
    """A temporary run directory whose files are links to those of `run_dir`.

    Raises:
        ValueError: `run_dir` belongs to another recipe.
    """
    directory = RunDirectory(run_dir, recipe)
    with TemporaryDirectory(prefix="estimate-") as folder:
        mirror = Path(folder) / "run"
        _mirror(directory.path, mirror)
        if recipe.data.cache is not None:
            _mirror(Path(recipe.data.cache), mirror / "cache")
        yield mirror


def _mirror(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir() if source.is_dir() else ():
        if path.is_dir() and path.name not in ("model", "checkpoint"):
            _mirror(path, target / path.name)
        elif path.name == "events.jsonl":
            shutil.copy(path, target)  # it is appended to
        elif path.name != "ledger.json":
            (target / path.name).symlink_to(path.resolve())


class Rehearsal(Pipeline):
    """A `Pipeline` that prices its steps.

    Args:
        recipe, progress: as `Pipeline`.
        mirror: of `mirrored`.
        timed: whether a few real steps and passes are run to measure times.

    Attributes:
        steps: what was priced, in the order of the run.
    """

    def __init__(self, recipe: Recipe, mirror: Path, timed: bool, progress: Progress) -> None:
        super().__init__(recipe, mirror, progress)
        # The corpus is tokenised into the mirror unless a cache has it.
        self.recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"cache": None}),
                "score": _to_the_end(recipe.score),
                "compare": recipe.compare.model_copy(
                    update={"scores": {name: _to_the_end(table) for name, table in recipe.compare.scores.items()}}
                ),
            }
        )
        self.timed = timed
        self.steps: list[StepEstimate] = []
        self._rehearsed = Rehearsed(timed)
        self.evaluator_type = partial(RehearsedEvaluator, rehearsed=self._rehearsed)
        self._student: Any = None
        self._kept: dict[Path, list[int]] = {}
        self._scored = {path.stem for path in (mirror / "score").glob("*.json")}
        self._chosen = (mirror / "selection.json").exists()
        self._evaluations: dict[int | None, Cost] = {}
        self._training: dict[tuple[str, int], TrainingCost] = {}

    def rehearse(self) -> None:
        """Everything that `run` would do, but the report."""
        self.finetune(self.choose().layers, self.directory.path)
        self.evaluate()

    def evaluate(self) -> dict[str, Any]:
        if self.directory.read("eval.json") is not None:
            return {}
        teacher, choice = self.load_teacher(), self.choose()
        measured: dict[str, Any] = self.directory.read("eval.partial.json") or {}
        plans = {"hybrid": choice.layers} | self.chooser().rivals(self.recipe.compare.plans)
        taken = [row["layers"] for row in measured.values()]
        for name, layers in {"teacher": None, **plans}.items():
            known = layers is None or self._known(name)
            if name in measured or (known and layers in taken):
                continue
            taken += [layers] if known else []
            model = teacher if layers is None else self.finetune(layers, self.folder_of(name))
            self.progress(f"eval  {name}")
            self._note(f"eval {name}", self._evaluation(model, layers), parameter_bytes(model, teacher))
        if self.recipe.eval.cost_lengths and self.directory.read("cost.json") is None:
            models = {"teacher": teacher, "hybrid": self.finetune(choice.layers, self.directory.path)}
            cost = cost_table_cost(models, self.recipe.eval.cost_lengths, self.timed)
            self._note("cost", cost, parameter_bytes(*models.values()))
        return {}

    def account(self, step: str, tokens: int, flops: float, seconds: float) -> None:
        """What the rehearsed evaluator added up."""
        if not tokens:
            return
        parked, self._rehearsed.parked_bytes = self._rehearsed.parked_bytes, 0
        memory, self._rehearsed.memory = self._rehearsed.memory, Memory(0)
        self.steps.append(
            StepEstimate(
                step, tokens, flops, seconds if self.timed else None, memory, disk_while=parked, bound=self._bound(step)
            )
        )

    # ---- inside ----

    def _calibrate(self, student: Any) -> None:
        """Done, where times are measured: it takes no longer than a few steps."""
        teacher, table, started = self.load_teacher(), self.recipe.convert, time.monotonic()
        if self.timed:
            ha.calibrate(student, teacher, self.data(), table.calibration_sequences, self.recipe.seed)
        cost = (*self._calibration_cost(), time.monotonic() - started if self.timed else None)
        self._note("calibrate", cost, parameter_bytes(student, teacher))

    def _note(self, step: str, cost: Cost, parameters: int) -> None:
        self.steps.append(StepEstimate(step, *cost, Memory(parameters)))

    def _evaluation(self, model: Any, layers: list[int] | None) -> Cost:
        """Models with as many softmax layers cost the same."""
        key = None if layers is None else len(layers)
        if key not in self._evaluations:
            self._evaluations[key] = evaluation_cost(self.suite(), model, self.load_teacher(), self.timed)
        return self._evaluations[key]

    def _known(self, plan: str) -> bool:
        """Whether a plan's layers are what the run will have, and not a stand-in."""
        select = self.recipe.select
        if plan == "hybrid":
            return self._chosen or select.strategy in (*PLANS, "explicit")
        if plan == "ranking":
            plan = self.recipe.score.criterion
        fixed = plan.partition("-")[0] in (*PLANS, "all_linear") or plan.replace(",", "").isdigit()
        return plan in self._scored or (fixed and plan not in self.recipe.compare.scores)

    def _bound(self, step: str) -> str:
        kind, _, name = step.removesuffix(")").partition(" (")
        if kind == "score":
            return "" if scoring_table(self.recipe, name).mode == "exhaustive" else "at most"
        if name == "finalists":
            return "at most"
        return "" if name == "sequential addition" else "more if an exchange of layers helps"

    def _train(
        self, name: str, step: Callable[..., Any], models: tuple[Any, ...], table: StageTable, folder: Path
    ) -> None:
        stage, label = self.stage(name, table), self._label(name, folder)
        data = self.data(stage.seq_len)
        objective = _OBJECTIVES[name](*models, stage)
        key = name, len(models[0].mixers())
        self.progress(f"{label}  measured" if self.timed else label)
        if key not in self._training:
            self._training[key] = training_cost(objective, [self.load_teacher()], stage, data, self.timed)
        cost = self._training[key]
        steps = stage.total_steps - _steps_done(folder / "checkpoint")
        if steps <= 0:
            return
        tokens = steps * stage.tokens_per_step
        copies = 2 if stage.checkpoint_every else 1  # the old one goes when the new one is there
        self.steps.append(
            StepEstimate(
                label, tokens, objective.flops(tokens), None if cost.seconds is None else steps * cost.seconds, cost.memory,
                disk=cost.trained_bytes + parameter_bytes(models[0]),
                disk_while=(copies * (1 + _ADAM_STATE) - 1) * cost.trained_bytes if stage.checkpoint_every else 0,
            )
        )  # fmt: skip

    def _save(self, model: Any, path: Path) -> None:
        path.mkdir()
        self._kept[path] = [layer for layer in range(len(model.layers)) if layer not in model.mixers()]
        if path.parent.name == "align":
            self._student = model

    def _load(self, path: Path) -> Any:
        if path not in self._kept:
            return super()._load(path)
        if path.parent.name == "align":
            return self._student
        return ha.keep_softmax(self.align(), self.load_teacher(), self._kept[path])


def _to_the_end(table: _Scoring) -> _Scoring:
    """Scores whose candidates do not stop because rounds agree, as they do where all losses are equal."""
    return table.model_copy(update={"jaccard_window": table.max_steps + 1})


def _steps_done(checkpoints: Path) -> int:
    """By the newest checkpoint's name."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")), default=0)
