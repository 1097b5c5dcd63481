"""Which layers keep softmax in a run: scores and their files, the chosen plan, the rivals it is compared with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hybridattn import select
from hybridattn.select import CandidateEvaluator, LayerScores, ScoreOptions

if TYPE_CHECKING:
    from hybridattn.run.pipeline import Pipeline
    from hybridattn.run.recipe import SelectTable

_EXPLANATIONS = {
    "removal": "Each layer of the teacher is made linear alone (GR-S2): important layers hurt most.",
    "addition": "Softmax is restored in one layer of the all-linear student alone (GA-S2, as published): important "
    "layers leave the least KL.",
}


@dataclass(frozen=True)
class Choice:
    """The layers that keep softmax, how they were found, and the search's decisions."""

    layers: list[int]
    strategy: str
    explanation: str
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Choice:
        return cls(**values)


class LayerChooser:
    """Scores and chooses layers for one run."""

    def __init__(self, pipeline: Pipeline, student: Any) -> None:
        self.pipeline = pipeline
        self.student = student
        self.num_layers = len(student.layers)
        self._evaluator: CandidateEvaluator | None = None

    @property
    def keep(self) -> int:
        from hybridattn import _C

        table = self.pipeline.recipe.select
        if table.layers is not None:
            return len(table.layers)
        if table.keep is None:
            return _C.select.keep_of_fraction(self.num_layers, table.fraction)
        if table.keep > self.num_layers:
            raise ValueError(f"select.keep is {table.keep}, the teacher has {self.num_layers} layers")
        return table.keep

    def evaluator(self) -> CandidateEvaluator:
        if self._evaluator is None:
            recipe = self.pipeline.recipe
            held_out = self.pipeline.data().held_out(recipe.score.held_out_sequences, recipe.eval.batch_size)
            self._evaluator = CandidateEvaluator(self.student, self.pipeline.load_teacher(), held_out)
        return self._evaluator

    def scores(self, criterion: str | None = None) -> dict[str, Any]:
        """Scores by the recipe's criterion or another one; kept in ``score/<criterion>.json``."""
        table = self.pipeline.recipe.score
        name = criterion or table.criterion
        return self.pipeline.directory.once(f"score/{name}.json", lambda: self._score(name))

    def _score(self, criterion: str) -> dict[str, Any]:
        pipeline, table = self.pipeline, self.pipeline.recipe.score
        options = ScoreOptions(criterion, table.mode, table.steps_per_round, table.max_steps, table.confidence)  # type: ignore[arg-type]
        stage = data = None
        if table.max_steps:
            fields = {"seq_len": pipeline.recipe.data.seq_len, "seed": pipeline.recipe.seed, "dtype": pipeline.dtype()}
            fields |= table.stage
            stage = select_stage(fields, table.max_steps)
            data = pipeline.data(stage.seq_len)
        scores = self._accounted(
            f"score ({criterion})",
            lambda: select.score_layers(
                self.evaluator(), options, keep=self.keep, stage=stage, data=data,
                progress=lambda line: pipeline.progress(f"score  {criterion}  {line}"),
            ),
        )  # fmt: skip
        return described(scores, scores.top(k=self.keep))

    def _accounted(self, step: str, work: Any) -> Any:
        evaluator = self.evaluator()
        tokens, flops, started = evaluator.tokens, evaluator.flops, time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        self.pipeline.account(step, evaluator.tokens - tokens, evaluator.flops - flops, seconds)
        return result

    def choose(self, table: SelectTable) -> Choice:
        """The recipe's choice."""
        layers, explanation, history = self._plan(table.strategy, table.offset, table.seed, table.layers)
        if table.refine == "swap" and table.strategy in ("ranking", "sequential"):
            found = self._accounted(
                "select (swap refinement)",
                lambda: select.swap_refinement(
                    self.evaluator(), layers, self.pipeline.recipe.score.confidence,
                    progress=lambda line: self.pipeline.progress(f"select  {line}"),
                ),
            )  # fmt: skip
            explanation += ", then exchanges of layers while the held-out KL fell significantly."
            layers, history = found.layers, [*history, *found.history]
        return Choice(layers, table.strategy, explanation, history)

    def _plan(
        self, strategy: str, offset: int = 0, seed: int = 0, listed: list[int] | None = None
    ) -> tuple[list[int], str, list[dict[str, Any]]]:
        count, keep = self.num_layers, self.keep
        if strategy in ("ranking", "addition", "removal"):
            criterion = self.pipeline.recipe.score.criterion if strategy == "ranking" else strategy
            return self.scores(criterion)["kept"], f"the {keep} highest by {criterion}", []
        if strategy == "sequential":
            found = self._accounted("select (sequential addition)", lambda: self._sequential(keep))
            return found.layers, "sequential addition, re-scored after each pick", found.history
        if strategy == "uniform":
            return list(select.uniform_plan(count, keep, offset)), f"evenly spaced, offset {offset}", []
        if strategy == "random":
            return list(select.random_plan(count, keep, seed)), f"at random, seed {seed}", []
        if strategy == "first":
            return list(select.first_plan(count, keep)), f"the first {keep}", []
        if strategy == "last":
            return list(select.last_plan(count, keep)), f"the last {keep}", []
        if strategy == "explicit":
            return list(select.explicit_plan(count, listed or [])), "as listed in the recipe", []
        raise ValueError(
            f"select.strategy: unknown '{strategy}'; known are ranking, addition, removal, sequential, uniform, "
            "random, first, last, explicit"
        )

    def _sequential(self, keep: int) -> select.SearchResult:
        line = lambda text: self.pipeline.progress(f"select  {text}")  # noqa: E731
        return select.sequential_addition(self.evaluator(), keep, progress=line)

    def rivals(self, plans: list[str]) -> dict[str, list[int]]:
        """Name -> layers of the plans to compare with.

        Raises:
            ValueError: a plan of unknown form.
        """
        result: dict[str, list[int]] = {}
        for plan in plans:
            name, _, argument = plan.partition(":")
            if name == "all_linear":
                result[plan] = []
            elif name.replace(",", "").isdigit():
                result[plan] = list(select.explicit_plan(self.num_layers, [int(part) for part in name.split(",")]))
            else:
                number = int(argument or 0)
                result[plan.replace(":", "-")] = self._plan(name, offset=number, seed=number)[0]
        return result


def select_stage(fields: dict[str, Any], steps: int) -> Any:
    """The candidates' stage of `steps` steps."""
    from hybridattn.distill import presets

    values = dict(fields)
    preset = values.pop("preset", "paper")
    stage = presets.score(preset, **values)
    return presets.score(preset, **(values | {"tokens": steps * stage.batch_size * stage.seq_len}))


def described(scores: LayerScores, kept: list[int]) -> dict[str, Any]:
    """Scores as the report and the tables show them."""
    rows = [row | {"rank": rank} for rank, row in enumerate(scores.rows)]
    return {
        "title": f"{'Removal (GR-S2)' if scores.criterion == 'removal' else 'Addition (GA-S2)'}",
        "label": "held-out KL",
        "explanation": _EXPLANATIONS[scores.criterion],
        "layers": sorted(rows, key=lambda row: row["layer"]),
        "kept": kept,
    }
