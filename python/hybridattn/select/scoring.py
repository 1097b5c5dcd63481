"""Scores every layer by a criterion: `score_layers` for models and data, `race_layers` over an evaluator of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hybridattn.data import TokenData
from hybridattn.distill import Stage
from hybridattn.select.criteria import Scoring, build_criterion
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator, Line, silent
from hybridattn.select.layer_scores import LayerScores
from hybridattn.select.options import ScoreOptions


def score_layers(
    student: Any,
    teacher: nn.Module,
    data: TokenData,
    options: ScoreOptions | None = None,
    *,
    criterion: str | None = None,
    keep: int | None = None,
    stage: Stage | None = None,
    tokenizer: Any = None,
    batch_size: int = 8,
    run_dir: str | Path | None = None,
    progress: Line = silent,
) -> LayerScores:
    """Importance of every layer of an aligned student.

    Args:
        student: aligned, with a mixer in every layer.
        teacher: the model it came from.
        data: its held-out documents score the candidates; its training documents train them where `options` asks so.
        criterion: a name of `hybridattn.select.criteria.CRITERIA`, in the place of the one in `options`.
        keep: how many layers are wanted; racing and ``jaccard`` need it.
        stage: stage-2 training of the candidates, for ``options.max_steps > 0`` (``ha.presets.score``).
        tokenizer: the teacher's, for criteria that ask questions in text.
        batch_size: sequences per forward pass of a scoring.
        run_dir: folder of the measurements; a search that was killed goes on from there and repeats none of them.
        progress: called with one line of text per piece of work.

    Raises:
        ValueError: options that do not go together, too few held-out sequences, or a `run_dir` of other models or data.

    Example:
        >>> scores = ha.score_layers(student, teacher, data, criterion="removal", keep=8)
        >>> hybrid = ha.keep_softmax(student, teacher, scores.top(k=8))
    """
    options = options or ScoreOptions()
    if criterion is not None:
        options = replace(options, criterion=criterion)
    held_out = data.held_out(options.held_out_sequences, batch_size)
    evaluator = CandidateEvaluator(student, teacher, held_out, run_dir, "float32" if stage is None else stage.dtype)
    return race_layers(evaluator, options, keep=keep, stage=stage, data=data, tokenizer=tokenizer, progress=progress)


def race_layers(
    evaluator: LayerSetEvaluator,
    options: ScoreOptions | None = None,
    *,
    keep: int | None = None,
    stage: Stage | None = None,
    data: Any = None,
    tokenizer: Any = None,
    progress: Line = silent,
) -> LayerScores:
    """`score_layers` over an evaluator of your own; `stage`, `data`, `tokenizer` as there.

    Raises:
        ValueError: options that do not go together, a criterion that looks into models when the evaluator has none, or
            too few held-out sequences for the asked confidence.
    """
    options = options or ScoreOptions()
    scoring = Scoring(evaluator, options, keep, stage, data, tokenizer, progress)
    return build_criterion(options.criterion, options.options)(scoring)
