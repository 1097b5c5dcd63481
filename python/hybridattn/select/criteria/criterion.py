"""Criterion: what gives every layer one number that says how much its softmax attention matters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from hybridattn.distill import Stage
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator, Line, silent
from hybridattn.select.layer_scores import ChoiceRule, LayerScores, highest, rank_samples
from hybridattn.select.options import ScoreOptions


@dataclass(frozen=True)
class Scoring:
    """What a criterion measures with: the models with their held-out sequences, and how much it may spend.

    Attributes:
        evaluator: student, teacher, held-out sequences and the journal; or losses of layer sets alone, which is enough
            for the criteria that look at nothing else.
        options: mode, confidence and training of the race, for the criteria that train candidates.
        keep: how many layers are wanted; None where that is open.
        stage: stage-2 training of the candidates.
        data: its training documents train candidates and gates; its held-out ones are never trained on.
        tokenizer: the teacher's, for criteria with options that name tasks in text.
        progress: takes one line of text per piece of work.
    """

    evaluator: LayerSetEvaluator
    options: ScoreOptions
    keep: int | None = None
    stage: Stage | None = None
    data: Any = None
    tokenizer: Any = None
    progress: Line = silent

    def models(self, criterion: str) -> CandidateEvaluator:
        """The evaluator, with models.

        Raises:
            ValueError: it knows losses of layer sets only.
        """
        if not isinstance(self.evaluator, CandidateEvaluator):
            raise ValueError(
                f"score_layers: criterion '{criterion}' looks into the models; give a CandidateEvaluator, not a "
                f"{type(self.evaluator).__name__}"
            )
        return self.evaluator


class Criterion(Protocol):
    """How much each layer's softmax attention matters.

    Attributes:
        name: in recipes and calls.
        title: as the literature calls it.
        label: what a score is, with its unit.
        important: whether important layers score high or low.
        source: where the idea was published.
        deviations: where this implementation differs from that, or "none".
        explanation: what is measured, in words for a report.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    label: ClassVar[str]
    important: ClassVar[Literal["high", "low"]]
    source: ClassVar[str]
    deviations: ClassVar[str]
    explanation: ClassVar[str]

    def __call__(self, scoring: Scoring) -> LayerScores:
        """Scores every layer, most important first.

        Raises:
            ValueError: something that the criterion needs is missing from `scoring`, naming it.
        """
        ...


@dataclass(frozen=True)
class Found:
    """Rows, samples and rule of `LayerScores`."""

    rows: list[dict[str, Any]]
    samples: dict[int, list[float]] = field(default_factory=dict)
    rule: ChoiceRule = highest


class RegisteredCriterion(BaseModel, ABC):
    """Base of the criteria that are known by name: fields are the criterion's own options, strictly checked."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: ClassVar[str]
    title: ClassVar[str]
    label: ClassVar[str]
    important: ClassVar[Literal["high", "low"]]
    source: ClassVar[str]
    deviations: ClassVar[str]
    explanation: ClassVar[str]
    trains_candidates: ClassVar[bool] = False
    """Whether ``max_steps`` and ``mode`` mean anything to it."""

    def __call__(self, scoring: Scoring) -> LayerScores:
        before = _spent(scoring.evaluator)
        found = self.measure(scoring)
        tokens, flops, seconds = (now - then for now, then in zip(_spent(scoring.evaluator), before, strict=True))
        return LayerScores(self.name, found.rows, tokens, flops, seconds, found.samples, found.rule)

    @abstractmethod
    def measure(self, scoring: Scoring) -> Found:
        """Scores every layer; its cost is read off the evaluator."""

    def check(self, tokenizer: Any, vocabulary: int, seq_len: int) -> None:
        """Asks whether the criterion can be measured with this tokenizer, before anything is trained.

        Raises:
            ValueError: a task that cannot be asked, naming it.
        """

    def ranked(self, samples: Sequence[Sequence[float]], scoring: Scoring) -> Found:
        """What [layers][sequences] paired values say."""
        rows = rank_samples(samples, self.important, scoring.keep, scoring.options.confidence)
        return Found(rows, {layer: list(values) for layer, values in enumerate(samples)})


def _spent(evaluator: Any) -> tuple[float, float, float]:
    """Tokens, operations and seconds so far; zeros of an evaluator that keeps no ledger."""
    return tuple(getattr(evaluator, name, 0.0) for name in ("tokens", "flops", "seconds"))  # type: ignore[return-value]
