"""What can be wrong with a recipe, found before anything is trained: against the teacher's config, then against the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridattn import _C, select
from hybridattn.distill.align import AlignObjective
from hybridattn.distill.finetune import FinetuneObjective
from hybridattn.distill.match import MatchObjective
from hybridattn.hf import check_teacher
from hybridattn.run.choice import PLANS, SCORED, candidate_stage, finalist_stage, scoring_table
from hybridattn.select.criteria import build_criterion

if TYPE_CHECKING:
    from hybridattn.run.pipeline import Pipeline
    from hybridattn.run.recipe import Recipe, ScoringTable

_LOSSES = {objective.name: objective.losses for objective in (AlignObjective, MatchObjective, FinetuneObjective)}


def _check_plans(recipe: Recipe, num_layers: int) -> None:
    scored = (*SCORED, *recipe.compare.scores)
    strategies = ("auto", "ranking", "sequential", "explicit", *scored, *PLANS)
    if recipe.select.strategy not in strategies:
        raise ValueError(f"select.strategy: unknown '{recipe.select.strategy}'; known are {', '.join(strategies)}")
    for name in recipe.select.proposals:
        if name not in scored:
            raise ValueError(f"select.proposals: unknown '{name}'; known are {', '.join(scored)}")
    plans = ("all_linear", "auto", "ranking", "sequential", *scored, *PLANS)
    for plan in recipe.compare.plans:
        name, colon, argument = plan.partition(":")
        if name.replace(",", "").isdigit():
            select.explicit_plan(num_layers, [int(part) for part in name.split(",") if part])
        elif name not in plans:
            raise ValueError(f"compare.plans: unknown '{plan}'; known are {', '.join(plans)}, or layers as 0,5,7")
        elif colon and plan != "uniform:all" and (name not in ("uniform", "random") or not argument.isdigit()):
            raise ValueError(
                f"compare.plans: '{plan}': expected uniform:OFFSET or random:SEED, a whole number each, or uniform:all"
            )


def _scorings(recipe: Recipe) -> list[tuple[str, ScoringTable]]:
    """The scorings that the choice and its rivals ask for, each with the table's name in the recipe."""
    wanted = {recipe.select.strategy, *(plan.partition(":")[0] for plan in recipe.compare.plans)}
    if "auto" in wanted:
        wanted |= set(recipe.select.proposals)
    tables = [(f"compare.scores.{name}", table) for name, table in recipe.compare.scores.items() if name in wanted]
    if wanted & {"ranking", "sequential"}:
        tables.append(("score", recipe.score))
    # Criteria by their own names take the rest from [score].
    tables += [
        ("score", scoring_table(recipe, name)) for name in sorted(wanted & set(SCORED) - set(recipe.compare.scores))
    ]
    return tables


def _trains_finalists(recipe: Recipe) -> bool:
    return recipe.select.finalists > 1 and "auto" in {recipe.select.strategy, *recipe.compare.plans}


def check_recipe(pipeline: Pipeline, config: Any) -> None:
    """The recipe against the teacher's config: stages, losses, layers, plans.

    Raises:
        ValueError: an unsupported teacher, an unknown field, preset, loss or plan, or layers that do not exist.
    """
    recipe = pipeline.recipe
    check_teacher(config)
    recipe.select.budget(config.num_hidden_layers)
    if recipe.select.window is not None and recipe.select.window >= recipe.data.seq_len:
        raise ValueError(
            f"select.window is {recipe.select.window}, expected fewer tokens than the {recipe.data.seq_len} of a sequence"
        )
    _check_plans(recipe, config.num_hidden_layers)
    for name, losses in _LOSSES.items():
        table = getattr(recipe, name)
        if table is not None:
            try:
                pipeline.stage(name, table).resolved_loss(*losses)
            except (ValueError, TypeError) as error:
                raise ValueError(f"[{name}]: {error}") from error
    if _trains_finalists(recipe):
        try:
            finalist_stage(pipeline).resolved_loss(*MatchObjective.losses)
        except (ValueError, TypeError) as error:
            raise ValueError(f"[select]: {error}") from error
    for name, table in _scorings(recipe):
        try:
            criterion = build_criterion(table.criterion, table.options)
        except ValueError as error:
            raise ValueError(f"[{name}]: {error}") from error
        if table.max_steps and criterion.trains_candidates:
            try:
                candidate_stage({"seq_len": recipe.data.seq_len} | table.stage).resolved_loss(*MatchObjective.losses)
            except (ValueError, TypeError) as error:
                raise ValueError(f"[{name}.stage]: {error}") from error


def check_data(pipeline: Pipeline, config: Any) -> None:
    """The recipe against the corpus and the tokenizer: lengths, held-out sequences, recall tasks.

    Raises:
        ValueError: a corpus too short for a stage, too few held-out sequences for what is asked of them, or a recall task
            that cannot be asked with this tokenizer.
    """
    recipe = pipeline.recipe
    data = pipeline.data()
    for name in _LOSSES:
        if (table := getattr(recipe, name)) is not None:
            pipeline.data(pipeline.stage(name, table).seq_len)
    data.held_out(recipe.eval.held_out_sequences)
    scorings, budget = _scorings(recipe), recipe.select.budget(config.num_hidden_layers)
    if scorings or budget is None or {"auto", "sequential"} & {recipe.select.strategy, *recipe.compare.plans}:
        data.held_out(recipe.score.held_out_sequences)
    if _trains_finalists(recipe):
        table, stage = recipe.select, finalist_stage(pipeline)
        pipeline.data(stage.seq_len)
        finalists = select.finalist_race(table.finalists, stage, table.rounds, table.confidence)
        try:
            finalists.check_sequences(recipe.score.held_out_sequences)
        except ValueError as error:
            raise ValueError(f"[select]: {error}") from error
    for name, table in scorings:
        criterion = build_criterion(table.criterion, table.options)
        try:
            criterion.check(pipeline.tokenizer, config.vocab_size, recipe.data.seq_len)
        except ValueError as error:
            raise ValueError(f"[{name}]: {error}") from error
        if not criterion.trains_candidates:
            continue
        race = _C.select.Race(
            num_layers=config.num_hidden_layers,
            # Where K is to be measured, the check is for the K that needs the most sequences.
            keep=config.num_hidden_layers // 2 if budget is None else budget,
            mode=table.mode,
            steps_per_round=table.steps_per_round,
            max_steps=table.max_steps,
            confidence=table.confidence,
            jaccard_threshold=table.jaccard_threshold,
            jaccard_window=table.jaccard_window,
        )
        if race.next() is not None:
            try:
                race.check_sequences(recipe.score.held_out_sequences)
            except ValueError as error:
                raise ValueError(f"[{name}]: {error}") from error
    pipeline.suite().check(config.vocab_size)
