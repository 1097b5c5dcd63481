"""Act-MSE: how far a layer's output moves when its attention becomes a mixer."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.single_layer import Replacement, single_layer_distances


class ActivationError(RegisteredCriterion):
    """Mean squared change of the layer's output; one pass through the teacher scores all layers."""

    name: ClassVar[str] = "act_mse"
    title: ClassVar[str] = "Activation error (Act-MSE)"
    label: ClassVar[str] = "squared change of the layer's output"
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "arXiv 2512.20569, baseline Act-MSE"
    deviations: ClassVar[str] = (
        "the attention is replaced by the aligned mixer; the output is that of the whole decoder layer on the teacher's "
        "hidden states, not normalised by its size, which grows with depth"
    )
    explanation: ClassVar[str] = (
        "Each layer's attention is replaced by its mixer on the teacher's own hidden states (Act-MSE): important layers' "
        "outputs change most. What the change does to the prediction is not asked."
    )

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        return self.ranked(single_layer_distances(evaluator, self.name, _squared_change, scoring.progress), scoring)


def _squared_change(replacement: Replacement) -> Tensor:
    return (replacement.replaced.double() - replacement.kept.double()).square().mean(-1)
