"""HALO's ratio: what a layer is worth for recall over what it is worth for everything else."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from hybridattn import _C
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import removal_sets
from hybridattn.select.criteria.perplexity import next_token_loss
from hybridattn.select.criteria.questions import Measure, answer_values, questions_of, text_task
from hybridattn.select.criteria.sound_layers import Table, rows_of_sound_layers

_EPSILON = 1e-6


class RecallOverQuality(RegisteredCriterion):
    """(max R - R_l) / (max C - C_l + 1e-6): R recall, C quality of the teacher with layer l made linear.

    Attributes:
        tasks: what R is the mean over: ``synthetic`` associative recall, or recall tasks of `hybridattn.evaluate` by name
            or path.
        length: tokens per item; those of a held-out sequence when 0.
        items, seed: how many of each task, and their random stream.
        recall: R is the answers' ``log_probability`` or ``accuracy``.
    """

    name: ClassVar[str] = "halo"
    title: ClassVar[str] = "Recall over quality (HALO)"
    label: ClassVar[str] = "recall lost per quality lost"
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "HALO, arXiv 2601.22156, layer selection"
    deviations: ClassVar[str] = (
        "C is the log-likelihood of held-out text in nats per token, not accuracy on common-sense benchmarks; R is the "
        "answers' log-probability unless `recall = 'accuracy'`; intervals by the bootstrap. Where some layer's C is within "
        "a millionth of the best, the published formula makes its ratio huge whatever R is"
    )
    explanation: ClassVar[str] = (
        "Each layer of the teacher is made linear alone (HALO): important layers cost much recall for little general "
        "quality."
    )

    tasks: list[str] = Field(default=["synthetic"], min_length=1)
    length: int = Field(0, ge=0)
    items: int = Field(32, ge=2)
    seed: int = 0
    recall: Measure = "log_probability"

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        sets = removal_sets(evaluator.num_layers)
        found = [
            answer_values(
                evaluator,
                questions_of(task, scoring, self.length, self.items, self.seed),
                sets,
                "mixer",
                self.recall,
                scoring,
            )
            for task in self.tasks
        ]
        losses, _ = next_token_loss(evaluator, "mixer", scoring)
        quality = [[-loss for loss in row] for row in losses]

        def ratio(means: list[list[float]]) -> list[float]:
            *tasks, likelihood = means
            recall = [sum(values) / len(tasks) for values in zip(*tasks, strict=True)]
            return [
                (max(recall) - r) / (max(likelihood) - c + _EPSILON) for r, c in zip(recall, likelihood, strict=True)
            ]

        def scored(tables: list[Table], keep: int | None) -> list[dict[str, Any]]:
            return _C.select.bootstrap_scores(
                tables, ratio, keep=keep, direction="higher", confidence=scoring.options.confidence, paired=False,
                seed=self.seed,
            )  # fmt: skip

        return Found(rows_of_sound_layers([*found, quality], scoring.keep, scored))

    def check(self, tokenizer: Any, vocabulary: int, seq_len: int) -> None:
        for task in self.tasks:
            if task != "synthetic":
                text_task(task, tokenizer, vocabulary, self.length or seq_len, self.items, self.seed)
