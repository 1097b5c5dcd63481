"""Objective: what a stage trains, and how one micro-batch's gradient is computed. The loop (loop.py) does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridattn.data import Batch
from hybridattn.distill.precision import Precision


def counted(batch: Batch) -> Tensor:
    """[B, T] fp32: 1 where a token counts in the loss, 0 elsewhere."""
    if batch.loss_mask is not None:
        return batch.loss_mask.float()
    return torch.ones(batch.input_ids.shape, device=batch.input_ids.device)


class Objective(ABC):
    """A loss that is a weighted mean over the tokens of an optimiser step.

    Attributes:
        name: of the stage.
        student: the model that trains.
        parts: names of the values that `backward` returns, e.g. layers.
    """

    name: ClassVar[str]
    student: Any
    parts: list[str]

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, each parameter once."""

    def mixers(self) -> Iterable[nn.Module]:
        """Modules whose parameters learn at the mixers' rate."""
        return self.student.mixers().values()

    @abstractmethod
    def weights(self, batch: Batch) -> Tensor:
        """Weight [B, T] fp32 of each token in the mean; 0 = does not count."""

    @abstractmethod
    def backward(self, batch: Batch, weights: Tensor, total: float, precision: Precision) -> Tensor:
        """Adds the gradient of sum(weights * loss) / total to the parameters.

        Args:
            weights: of this micro-batch, [B, T]; `total` is their sum over the whole optimiser step.

        Returns:
            The same quantity per part, detached, fp32 [parts]; the stage's loss is their mean.
        """

    @abstractmethod
    def flops(self, tokens: int) -> float:
        """Operations for `tokens` training tokens; counts the weights' multiply-adds (two each), not attention scores."""

    def recipe(self) -> dict[str, Any]:
        """What a resumed run must have in common with the interrupted one, besides the stage's own fields."""
        return {}

    def training(self) -> AbstractContextManager[object]:
        """Context in which the student trains; on leaving, the student is as its user had it."""
        return nullcontext()

    def explain(self, batch: Batch) -> str:
        """Where a loss that is not finite comes from, or ""."""
        return ""
