"""AR and AR-MH: how much worse the teacher answers questions about its context without a layer's attention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import removal_sets
from hybridattn.select.criteria.perplexity import Without
from hybridattn.select.criteria.questions import Measure, answer_values, questions_of, text_task


class AssociativeRecall(RegisteredCriterion):
    """Drop in recall of random pairs when one layer loses its softmax attention.

    Attributes:
        task: ``synthetic``: random pairs of the tokens that the held-out sequences are made of; or a recall task of
            `hybridattn.evaluate`, by name or path.
        length: tokens per item; those of a held-out sequence when 0.
        items, seed: how many, and their random stream.
        recall: ``log_probability`` of the answers, or ``accuracy``.
        without: what stands in the layer's place: the aligned ``mixer``, or nothing (``bypass``).
    """

    name: ClassVar[str] = "ar"
    title: ClassVar[str] = "Associative recall (AR)"
    label: ClassVar[str] = "drop in recall"
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "arXiv 2512.20569, baseline AR; the questions: Zoology, arXiv 2312.04927"
    deviations: ClassVar[str] = (
        "the published diagnostic data is not used: questions are built in the model's own tokens; the drop is in nats of "
        "the answers' log-probability, which still tells layers apart where accuracy is 0 or 1 everywhere"
    )
    explanation: ClassVar[str] = (
        "The teacher answers questions about its context (random pairs of tokens) with one layer made linear (AR): "
        "important layers cost the most recall."
    )
    hops: ClassVar[int] = 1

    task: str = "synthetic"
    length: int = Field(0, ge=0)
    items: int = Field(32, ge=2)
    seed: int = 0
    recall: Measure = "log_probability"
    without: Without = "mixer"

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        everything = list(range(evaluator.num_layers))
        questions = questions_of(self.task, scoring, self.length, self.items, self.seed, self.hops)
        sets = [*removal_sets(evaluator.num_layers), everything]
        *rows, teacher = answer_values(evaluator, questions, sets, self.without, self.recall, scoring)
        return self.ranked(
            [[whole - value for whole, value in zip(teacher, row, strict=True)] for row in rows], scoring
        )

    def check(self, tokenizer: Any, vocabulary: int, seq_len: int) -> None:
        if self.task != "synthetic":
            text_task(self.task, tokenizer, vocabulary, self.length or seq_len, self.items, self.seed)


class MultiHopRecall(AssociativeRecall):
    """The same over chains: the value that is found is the next key."""

    name: ClassVar[str] = "ar_mh"
    title: ClassVar[str] = "Associative recall over two hops (AR-MH)"
    source: ClassVar[str] = (
        "arXiv 2512.20569, baseline AR-MH; the questions: Zoology, arXiv 2312.04927, chained as in RULER's variable "
        "tracking, arXiv 2404.06654"
    )
    deviations: ClassVar[str] = "as AR; MH is read as multi-hop: two look-ups, the second with the value of the first"
    explanation: ClassVar[str] = (
        "The teacher follows chains of two look-ups through its context with one layer made linear (AR-MH): important "
        "layers cost the most recall."
    )
    hops: ClassVar[int] = 2
