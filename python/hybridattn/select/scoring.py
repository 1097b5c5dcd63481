"""Scores one layer at a time by a race: addition (GA-S2, arXiv 2512.20569) and removal (GR-S2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hybridattn import _C
from hybridattn.data import TokenData
from hybridattn.distill import Stage
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator, Line, silent


@dataclass(frozen=True)
class ScoreOptions:
    """How layers are scored.

    Attributes:
        criterion: ``removal``: linearise one layer of the teacher, important layers hurt most; ``addition``: restore
            softmax in one layer of the all-linear student, important layers help most.
        mode: ``exhaustive``: every candidate to the end; ``racing``: a candidate stops with its verdict.
        steps_per_round, max_steps: stage-2 training of each candidate; 0 scores without training.
        confidence: probability that no verdict of the race is wrong.
        min_rounds: scorings of a candidate before its first verdict: a guard against curves that cross.
        held_out_sequences: sequences that every candidate is scored on.

    Raises:
        ValueError: an unknown criterion or mode.
    """

    criterion: Literal["removal", "addition"] = "removal"
    mode: Literal["exhaustive", "racing"] = "exhaustive"
    steps_per_round: int = 0
    max_steps: int = 0
    confidence: float = 0.95
    min_rounds: int = 1
    held_out_sequences: int = 64

    def __post_init__(self) -> None:
        for name, known in (("criterion", ("removal", "addition")), ("mode", ("exhaustive", "racing"))):
            if getattr(self, name) not in known:
                raise ValueError(f"ScoreOptions: {name} is {getattr(self, name)!r}, expected {' or '.join(known)}")


@dataclass(frozen=True)
class LayerScores:
    """Importance of every layer, most important first.

    Attributes:
        rows: per layer ``layer``, ``score``, ``low``, ``high``, ``verdict``, ``steps``, ``reason``.
    """

    criterion: str
    rows: list[dict[str, Any]]
    tokens: float
    flops: float

    def top(self, k: int | None = None, fraction: float | None = None) -> list[int]:
        """The most important layers, ascending. Give `k` or `fraction` of all layers.

        Raises:
            ValueError: neither or both are given, or the number is out of range.
        """
        if (k is None) == (fraction is None):
            raise ValueError("top: give exactly one of k and fraction")
        count = _C.select.keep_of_fraction(len(self.rows), fraction) if k is None else k
        if not 0 <= count <= len(self.rows):
            raise ValueError(f"top: k is {count}, expected 0 to {len(self.rows)}")
        return sorted(row["layer"] for row in self.rows[:count])

    def to_json(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "rows": self.rows, "tokens": self.tokens, "flops": self.flops}


def score_layers(
    student: Any,
    teacher: nn.Module,
    data: TokenData,
    options: ScoreOptions | None = None,
    *,
    keep: int | None = None,
    stage: Stage | None = None,
    batch_size: int = 8,
    run_dir: str | Path | None = None,
    progress: Line = silent,
) -> LayerScores:
    """Importance of every layer of an aligned student, by held-out KL(teacher || hybrid).

    Args:
        student: aligned, with a mixer in every layer.
        teacher: the model it came from.
        data: its held-out documents score the candidates; its training documents train them where `options` asks so.
        keep: how many layers are wanted; racing needs it.
        stage: stage-2 training of the candidates, for ``options.max_steps > 0`` (``ha.presets.score``).
        batch_size: sequences per forward pass of a scoring.
        run_dir: folder of the measurements; a search that was killed goes on from there and repeats none of them.
        progress: called with one line of text per piece of work.

    Raises:
        ValueError: options that do not go together, too few held-out sequences, or a `run_dir` of other models or data.

    Example:
        >>> scores = ha.score_layers(student, teacher, data, keep=8)
        >>> hybrid = ha.keep_softmax(student, teacher, scores.top(k=8))
    """
    options = options or ScoreOptions()
    held_out = data.held_out(options.held_out_sequences, batch_size)
    evaluator = CandidateEvaluator(student, teacher, held_out, run_dir, "float32" if stage is None else stage.dtype)
    return race_layers(evaluator, options, keep=keep, stage=stage, data=data, progress=progress)


def race_layers(
    evaluator: LayerSetEvaluator,
    options: ScoreOptions | None = None,
    *,
    keep: int | None = None,
    stage: Stage | None = None,
    data: Any = None,
    progress: Line = silent,
) -> LayerScores:
    """`score_layers` over an evaluator of your own; `stage`, `data` as there.

    Raises:
        ValueError: options that do not go together, or too few held-out sequences for the asked confidence.
    """
    options = options or ScoreOptions()
    layers = range(evaluator.num_layers)
    removal = options.criterion == "removal"
    race = _C.select.Race(
        num_layers=evaluator.num_layers,
        keep=keep,
        mode=options.mode,
        steps_per_round=options.steps_per_round,
        max_steps=options.max_steps,
        confidence=options.confidence,
        min_rounds=options.min_rounds,
        direction="higher" if removal else "lower",
    )
    kept = [[other for other in layers if other != layer] if removal else [layer] for layer in layers]
    if options.max_steps == 0:
        for layer, losses in enumerate(evaluator.losses(kept, progress) if race.next() is not None else []):
            race.record(layer, losses)
    elif stage is None or data is None or not isinstance(evaluator, CandidateEvaluator):
        raise ValueError("score_layers: max_steps > 0 trains candidates; give `stage` and `data`")
    else:
        if race.next() is not None:
            race.check_sequences(evaluator.num_sequences)
        _train_and_record(race, evaluator, kept, _lasting(stage, options.max_steps), data, progress)
    tokens, flops = getattr(evaluator, "tokens", 0), getattr(evaluator, "flops", 0.0)
    return LayerScores(options.criterion, race.ranking(), tokens, flops)


def _train_and_record(
    race: Any, evaluator: CandidateEvaluator, kept: list[list[int]], stage: Stage, data: Any, progress: Line
) -> None:
    parked: set[int] = set()
    while (task := race.next()) is not None:
        layer, from_step, to_step = task
        line = lambda text, layer=layer: progress(f"layer {layer} of {len(kept)}  {text}")  # noqa: E731
        race.record(layer, evaluator.trained_losses(kept[layer], from_step, to_step, stage, data, line))
        parked.add(layer)
        running = {
            row["layer"] for row in race.ranking() if row["verdict"] == "open" and row["steps"] < stage.total_steps
        }
        for over in sorted(parked - running):
            evaluator.forget(kept[over], stage, data)
            parked.discard(over)


def _lasting(stage: Stage, steps: int) -> Stage:
    """`stage` with a budget of `steps` steps, so that its schedule ends where the race does."""
    return stage.model_copy(update={"tokens": steps * stage.tokens_per_step})
