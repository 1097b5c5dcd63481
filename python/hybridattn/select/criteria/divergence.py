"""GA-S2 and GR-S2: held-out KL of the hybrid with softmax in one layer only, or everywhere but in one."""

from __future__ import annotations

from typing import ClassVar, Literal

from hybridattn import _C
from hybridattn.distill import Stage
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.evaluator import CandidateEvaluator
from hybridattn.select.training_race import train_and_record


def addition_sets(num_layers: int) -> list[list[int]]:
    """Per layer, the candidate that keeps softmax there alone."""
    return [[layer] for layer in range(num_layers)]


def removal_sets(num_layers: int) -> list[list[int]]:
    """Per layer, the candidate that keeps softmax everywhere else."""
    return [[other for other in range(num_layers) if other != layer] for layer in range(num_layers)]


class Addition(RegisteredCriterion):
    """Restore softmax in one layer of the all-linear student; important layers leave the least KL."""

    name: ClassVar[str] = "ga_s2"
    title: ClassVar[str] = "Addition (GA-S2)"
    label: ClassVar[str] = "held-out KL"
    important: ClassVar[Literal["high", "low"]] = "low"
    trains_candidates: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2512.20569, GA-S2"
    deviations: ClassVar[str] = (
        "losses are held out, paired and have intervals; candidates may race, or be scored untrained (`max_steps = 0`)"
    )
    explanation: ClassVar[str] = (
        "Softmax is restored in one layer of the all-linear student alone (GA-S2, as published): important layers leave "
        "the least KL."
    )

    def measure(self, scoring: Scoring) -> Found:
        return race(addition_sets(scoring.evaluator.num_layers), self.important, scoring)


class Removal(RegisteredCriterion):
    """Linearise one layer of the teacher; important layers hurt most."""

    name: ClassVar[str] = "gr_s2"
    title: ClassVar[str] = "Removal (GR-S2)"
    label: ClassVar[str] = "held-out KL"
    important: ClassVar[Literal["high", "low"]] = "high"
    trains_candidates: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2512.20569, GR-S2"
    deviations: ClassVar[str] = Addition.deviations
    explanation: ClassVar[str] = "Each layer of the teacher is made linear alone (GR-S2): important layers hurt most."

    def measure(self, scoring: Scoring) -> Found:
        return race(removal_sets(scoring.evaluator.num_layers), self.important, scoring)


def race(kept: list[list[int]], important: Literal["high", "low"], scoring: Scoring) -> Found:
    """Scores the candidate `kept[layer]` of every layer, untrained or trained by stage 2 in a race.

    Raises:
        ValueError: options that do not go together, or too few held-out sequences for the asked confidence.
    """
    evaluator, options = scoring.evaluator, scoring.options
    contest = _C.select.Race(
        num_layers=evaluator.num_layers,
        keep=scoring.keep,
        mode=options.mode,
        steps_per_round=options.steps_per_round,
        max_steps=options.max_steps,
        confidence=options.confidence,
        min_rounds=options.min_rounds,
        jaccard_threshold=options.jaccard_threshold,
        jaccard_window=options.jaccard_window,
        direction="higher" if important == "high" else "lower",
    )
    if options.max_steps == 0:
        for layer, losses in enumerate(evaluator.losses(kept, scoring.progress) if contest.next() is not None else []):
            contest.record(layer, losses)
    elif scoring.stage is None or scoring.data is None or not isinstance(evaluator, CandidateEvaluator):
        raise ValueError("score_layers: max_steps > 0 trains candidates; give `stage` and `data`")
    else:
        if contest.next() is not None:
            contest.check_sequences(evaluator.num_sequences)
        stage = _lasting(scoring.stage, options.max_steps)
        line = lambda layer, text: scoring.progress(f"layer {layer} of {len(kept)}  {text}")  # noqa: E731
        train_and_record(contest, evaluator, kept, stage, scoring.data, line)
    samples = {candidate["layer"]: candidate["losses"] for candidate in contest.to_json()["candidates"]}
    return Found(contest.ranking(), samples)


def _lasting(stage: Stage, steps: int) -> Stage:
    """`stage` with a budget of `steps` steps, so that its schedule ends where the race does."""
    return stage.model_copy(update={"tokens": steps * stage.tokens_per_step})
