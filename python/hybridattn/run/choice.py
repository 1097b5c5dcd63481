"""Which layers keep softmax in a run: scores and their files, the chosen plan, the rivals it is compared with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hybridattn import _C, select
from hybridattn.select import CandidateEvaluator, LayerScores, Loss, ScoreOptions
from hybridattn.select.criteria import ALIASES, CRITERIA, criterion_type
from hybridattn.select.evaluator import LOSS_NAMES
from hybridattn.select.frontier import quality_cost_frontier

if TYPE_CHECKING:
    from hybridattn.run.pipeline import Pipeline
    from hybridattn.run.recipe import Recipe, ScoringTable, SelectTable

PLANS = ("uniform", "random", "first", "last")
"""Strategies that look at nothing."""
SCORED = tuple(name for name in (*ALIASES, *CRITERIA) if name not in (*PLANS, "explicit"))
"""Strategies that are a criterion's highest layers."""


def scoring_table(recipe: Recipe, name: str) -> ScoringTable:
    """The table of ``[compare.scores]`` of that name, or ``[score]`` with that criterion."""
    if name in recipe.compare.scores:
        return recipe.compare.scores[name]
    if ALIASES.get(name, name) == ALIASES.get(recipe.score.criterion, recipe.score.criterion):
        return recipe.score
    return recipe.score.model_copy(update={"criterion": name, "options": {}})


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
        self._evaluators: dict[str, CandidateEvaluator] = {}

    @property
    def keep(self) -> int:
        """K, measured where the recipe gives a budget of another kind; kept in ``select/budget.json``."""
        known = self.pipeline.recipe.select.budget(self.num_layers)
        if known is not None:
            return known
        return self.pipeline.directory.once("select/budget.json", self._measure_budget)["keep"]

    def evaluator(self, loss: Loss = "kl") -> CandidateEvaluator:
        """Scores are plain KL, as published; searches lower the recipe's ``select.loss``."""
        if loss not in self._evaluators:
            recipe, pipeline = self.pipeline.recipe, self.pipeline
            held_out = pipeline.data().held_out(recipe.score.held_out_sequences, recipe.eval.batch_size)
            self._evaluators[loss] = pipeline.evaluator_type(
                self.student, pipeline.load_teacher(), held_out, pipeline.directory.folder("score"), pipeline.dtype(),
                loss, recipe.select.window,
            )  # fmt: skip
        return self._evaluators[loss]

    def costs(self) -> select.KindCosts:
        """What softmax and linear layers cost on this machine; kept in ``select/costs.json``."""
        table, pipeline = self.pipeline.recipe.select, self.pipeline
        measure = lambda: select.measure_kinds(  # noqa: E731
            pipeline.load_teacher(), self.student, table.context, lambda line: pipeline.progress(f"cost  {line}")
        ).to_json()
        return select.KindCosts(**pipeline.directory.once("select/costs.json", measure))

    def _measure_budget(self) -> dict[str, Any]:
        table = self.pipeline.recipe.select
        if table.latency is not None:
            keep = select.keep_for_latency(self.costs(), table.latency)
            what = f"{table.latency:g} ms per token after {table.context} tokens allow softmax in {keep} layers"
        elif table.memory is not None:
            keep = select.keep_for_memory(self.costs(), table.memory)
            what = f"{table.memory:g} MiB of cache after {table.context} tokens allow softmax in {keep} layers"
        else:
            assert table.recall_drop is not None
            drop = table.recall_drop

            def search() -> tuple[int, list[dict[str, Any]]]:
                order = select.backward_elimination(
                    self.evaluator(table.loss), confidence=table.confidence, progress=self._line
                )
                return select.keep_for_recall(self.evaluator(table.loss), order.layers, drop, self._line)

            keep, tried = self._accounted("select (recall budget)", search, table.loss)
            steps = ", ".join(f"{event['recall']:.3f} with {event['keep']} layers" for event in tried)
            what = (
                f"a drop of recall by {drop:g} needs softmax in {keep} layers (share of the teacher's recall: {steps})"
            )
        return {"keep": keep, "what": what}

    def _line(self, text: str) -> None:
        self.pipeline.progress(f"select  {text}")

    def scores(self, name: str | None = None) -> dict[str, Any]:
        """Scores by the recipe's ``[score]``, by it with another criterion, or by a table of ``[compare.scores]``.

        Kept in ``score/<name>.json``.
        """
        recipe = self.pipeline.recipe
        name = name or recipe.score.criterion
        table = scoring_table(recipe, name)
        return self.pipeline.directory.once(f"score/{name}.json", lambda: self._score(name, table))

    def _score(self, name: str, table: ScoringTable) -> dict[str, Any]:
        pipeline = self.pipeline
        options = ScoreOptions(
            table.criterion,
            table.mode,
            table.steps_per_round,
            table.max_steps,
            table.confidence,
            options=table.options,
            jaccard_threshold=table.jaccard_threshold,
            jaccard_window=table.jaccard_window,
        )
        stage, data = None, pipeline.data()
        if table.max_steps:
            fields = {"seq_len": pipeline.recipe.data.seq_len, "seed": pipeline.recipe.seed, "dtype": pipeline.dtype()}
            stage = candidate_stage(fields | table.stage)
            data = pipeline.data(stage.seq_len)
        scores = self._accounted(
            f"score ({name})",
            lambda: select.race_layers(
                self.evaluator(), options, keep=self.keep, stage=stage, data=data, tokenizer=pipeline.tokenizer,
                progress=lambda line: pipeline.progress(f"score  {name}  {line}"),
            ),
        )  # fmt: skip
        return described(scores, scores.top(k=self.keep), table.max_steps)

    def _accounted(self, step: str, work: Any, loss: Loss = "kl") -> Any:
        evaluator = self.evaluator(loss)
        before = evaluator.tokens, evaluator.flops, evaluator.seconds
        result = work()
        now = evaluator.tokens, evaluator.flops, evaluator.seconds
        self.pipeline.account(step, now[0] - before[0], now[1] - before[1], now[2] - before[2])
        return result

    def choose(self, table: SelectTable) -> Choice:
        """The recipe's choice."""
        layers, explanation, history = self._plan(table.strategy, table.offset, table.seed, table.layers)
        if table.refine == "swap" and table.strategy in ("ranking", "sequential"):
            found = self._accounted(
                "select (swap refinement)",
                lambda: select.swap_refinement(self.evaluator(table.loss), layers, table.confidence, self._line),
                table.loss,
            )
            explanation += f", then exchanges of layers while the held-out {LOSS_NAMES[table.loss]} fell significantly."
            layers, history = found.layers, [*history, *found.history]
        budget = self.pipeline.directory.read("select/budget.json")
        if budget is not None:
            explanation = f"{budget['what']}; {explanation}"
        return Choice(layers, table.strategy, explanation, history)

    def _plan(
        self, strategy: str, offset: int = 0, seed: int = 0, listed: list[int] | None = None
    ) -> tuple[list[int], str, list[dict[str, Any]]]:
        count, keep = self.num_layers, self.keep
        if strategy == "auto":
            found = self._auto()
            loss = LOSS_NAMES[self.pipeline.recipe.select.loss]
            explanation = (
                f"softmax was taken away layer by layer where the held-out {loss} rose least, then kept layers were "
                "exchanged for others, one and two at a time, while it fell significantly."
            )
            if found.get("finalists"):
                trained = len(found["finalists"])
                explanation += (
                    f" That set and its nearest rivals, {trained} in all, were trained; this is the best of them."
                )
            return found["layers"], explanation, found["history"]
        if strategy in ("ranking", *SCORED) or strategy in self.pipeline.recipe.compare.scores:
            name = self.pipeline.recipe.score.criterion if strategy == "ranking" else strategy
            return self.scores(name)["kept"], f"the {keep} highest by {name}", []
        if strategy == "sequential":
            loss = self.pipeline.recipe.select.loss
            found = self._accounted(
                "select (sequential addition)",
                lambda: select.sequential_addition(self.evaluator(loss), keep, self._line),
                loss,
            )
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
        known = ("auto", "ranking", *SCORED, "sequential", *PLANS, "explicit")
        raise ValueError(f"select.strategy: unknown '{strategy}'; known are {', '.join(known)}")

    def _auto(self) -> dict[str, Any]:
        """The default selector's result, kept in ``select/auto.json``; its frontier in ``select/frontier.json``."""
        table, directory = self.pipeline.recipe.select, self.pipeline.directory
        proposals = {name: self._ranked(name) for name in table.proposals}

        options = select.AutoOptions(confidence=table.confidence, finalists=table.finalists, rounds=table.rounds)
        untrained = replace(options, finalists=0)
        search = lambda: select.select_layers(  # noqa: E731
            self.evaluator(table.loss), self.keep, untrained, proposals=proposals, progress=self._line
        )
        found = directory.once("select/auto.json", lambda: asdict(self._accounted("select (auto)", search, table.loss)))
        if table.finalists > 1:
            found = directory.once("select/finalists.json", lambda: asdict(self._train_finalists(found, options)))
        if table.frontier:
            measure = lambda: quality_cost_frontier(  # noqa: E731
                self.evaluator(table.loss), self.costs(), found["ranking"], self.keep, self._line
            )
            directory.once("select/frontier.json", lambda: self._accounted("select (frontier)", measure, table.loss))
        return found

    def _train_finalists(self, found: dict[str, Any], options: select.AutoOptions) -> select.Selection:
        table, stage = self.pipeline.recipe.select, finalist_stage(self.pipeline)
        train = lambda: select.choose_finalist(  # noqa: E731
            self.evaluator(table.loss), select.Selection(**found), options, stage, self.pipeline.data(stage.seq_len),
            self._line,
        )  # fmt: skip
        return self._accounted("select (finalists)", train, table.loss)

    def _ranked(self, name: str) -> list[int]:
        """A criterion's layers, the most important first."""
        rows = sorted(self.scores(name)["layers"], key=lambda row: row["rank"])
        return [row["layer"] for row in rows]

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
            elif argument == "all":
                for offset in range(_C.select.uniform_offsets(self.num_layers, self.keep)):
                    result[f"{name}-{offset}"] = self._plan(name, offset=offset)[0]
            else:
                number = int(argument or 0)
                result[plan.replace(":", "-")] = self._plan(name, offset=number, seed=number)[0]
        return result


def candidate_stage(fields: dict[str, Any]) -> Any:
    """The candidates' stage-2 training; the race sets how long it lasts."""
    from hybridattn.distill import presets

    values = dict(fields)
    return presets.score(values.pop("preset", "paper"), **values)


def finalist_stage(pipeline: Pipeline) -> Any:
    """The finalists' stage-2 training: ``[score.stage]`` with what ``[select.stage]`` changes.

    Raises:
        ValueError: nothing says how long it lasts, or a field is wrong.
    """
    recipe = pipeline.recipe
    common = {"seq_len": recipe.data.seq_len, "seed": recipe.seed, "dtype": pipeline.dtype()}
    stage = candidate_stage(common | recipe.score.stage | recipe.select.stage)
    if "tokens" in recipe.select.stage:
        return stage
    if recipe.score.max_steps == 0:
        raise ValueError(
            f"select.finalists is {recipe.select.finalists}, which trains candidates: give `tokens` in [select.stage], or "
            "`max_steps` in [score]"
        )
    return stage.model_copy(update={"tokens": recipe.score.max_steps * stage.tokens_per_step})


def described(scores: LayerScores, kept: list[int], max_steps: int) -> dict[str, Any]:
    """Scores as the report and the tables show them; what was never measured is None."""
    criterion = criterion_type(scores.criterion)
    explanation = criterion.explanation
    if criterion.trains_candidates:
        explanation += f" Each candidate trained for {max_steps} steps." if max_steps else " No candidate was trained."
    rows = [row | {"rank": rank} for rank, row in enumerate(scores.rows)]
    for row in rows:
        row |= {name: row[name] if math.isfinite(row[name]) else None for name in ("score", "low", "high")}
    return {
        "title": criterion.title,
        "label": criterion.label,
        "explanation": explanation,
        "source": criterion.source,
        "deviations": criterion.deviations,
        "layers": sorted(rows, key=lambda row: row["layer"]),
        "kept": kept,
        "cost": {"tokens": scores.tokens, "flops": scores.flops, "seconds": scores.seconds},
    }
