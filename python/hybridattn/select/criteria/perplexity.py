"""LM-PPL: held-out next-token loss with a layer's attention left out."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.evaluate.quality import next_token_labels
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import removal_sets
from hybridattn.select.evaluator import CandidateEvaluator
from hybridattn.select.measurement import SetMeasurement


class Bypass(nn.Module):
    """Stands in an attention's place and adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


Without = Literal["bypass", "mixer"]
"""What stands in a layer's place when its attention is taken out: nothing, or the aligned mixer."""


def replacements_of(evaluator: CandidateEvaluator, without: Without) -> dict[int, nn.Module]:
    """Layer -> module in the attention's place."""
    if without == "mixer":
        return dict(evaluator.mixers)
    return {layer: Bypass() for layer in range(evaluator.num_layers)}


def next_token_loss(
    evaluator: CandidateEvaluator, without: Without, scoring: Scoring
) -> tuple[list[list[float]], list[float]]:
    """Cross-entropy in nats per token, per held-out sequence: [layers][sequences] without each layer's attention, and the
    teacher's [sequences]."""
    labels = [next_token_labels(batch) for batch in evaluator.held_out]

    def value(number: int, hidden: Tensor) -> list[float]:
        narrowed = evaluator.precision.narrowed
        with evaluator.precision.backward():
            losses = ops.linear_cross_entropy(
                narrowed(hidden), narrowed(hf.head_weight(evaluator.teacher)), labels[number], reduction="none"
            ).double()
        counts = (labels[number] != -100).sum(1).clamp(min=1)
        return (losses.view_as(labels[number]).sum(1) / counts).tolist()

    measurement = SetMeasurement(
        evaluator, evaluator.held_out, replacements_of(evaluator, without), value, f"next-token loss, {without} "
    )
    everything = list(range(evaluator.num_layers))
    *rows, teacher = measurement([*removal_sets(evaluator.num_layers), everything], scoring.progress)
    return rows, teacher


class BypassedPerplexity(RegisteredCriterion):
    """Held-out perplexity without a layer's attention.

    Attributes:
        without: ``bypass``: nothing in its place; ``mixer``: the aligned mixer.
    """

    name: ClassVar[str] = "lm_ppl"
    title: ClassVar[str] = "Perplexity without the layer (LM-PPL)"
    label: ClassVar[str] = "held-out log perplexity"
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "arXiv 2512.20569, baseline LM-PPL"
    deviations: ClassVar[str] = (
        "the score is the logarithm of the perplexity, a mean over sequences, so that it has an interval; the order of "
        "the layers is the same"
    )
    explanation: ClassVar[str] = (
        "The teacher predicts held-out text without the attention of one layer (LM-PPL): important layers leave the "
        "highest perplexity."
    )

    without: Without = "bypass"

    def measure(self, scoring: Scoring) -> Found:
        rows, _ = next_token_loss(scoring.models(self.name), self.without, scoring)
        return self.ranked(rows, scoring)
