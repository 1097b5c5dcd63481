"""What match and finetune share: every parameter of the student trains, in training form as the stage says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hybridattn import hf
from hybridattn.data import Batch
from hybridattn.distill.embeddings import retie, untie
from hybridattn.distill.fingerprint import describe_mixers, matrix_weights
from hybridattn.distill.objective import Objective
from hybridattn.distill.stage import Stage


class WholeModelObjective(Objective):
    """A loss of the student's predictions."""

    def __init__(self, student: Any, stage: Stage) -> None:
        self.student = student
        self.stage = stage
        self.parts = [self.name]

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.student.named_parameters())

    @contextmanager
    def training(self) -> Iterator[None]:
        with ExitStack() as scope:
            if self.stage.untie_embeddings and untie(self.student) and self.stage.retie_embeddings:
                scope.callback(retie, self.student)
            if self.stage.gradient_checkpointing:
                scope.enter_context(checkpointed(hf.decoder_layers(self.student)))
            # Without dropout: the teacher's distribution is the target, noise only blurs it.
            scope.callback(self.student.train, self.student.training)
            self.student.eval()
            yield

    def explain(self, batch: Batch) -> str:
        """The first decoder layer whose output is not finite."""
        found: list[int] = []
        with ExitStack() as hooks, torch.no_grad():
            for index, layer in enumerate(hf.decoder_layers(self.student)):
                hook = partial(_note_non_finite, found, index)
                hooks.callback(layer.register_forward_hook(hook).remove)
            hf.hidden_states(self.student, batch)
        return f"layer {found[0]}" if found else ""

    def flops(self, tokens: int) -> float:
        return 6.0 * tokens * matrix_weights(self.student)

    def recipe(self) -> dict[str, Any]:
        return {"mixers": describe_mixers(self.student)}


def _note_non_finite(found: list[int], index: int, _layer: nn.Module, _args: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if not hidden.isfinite().all():
        found.append(index)


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Layers keep only their inputs; the backward pass computes their activations a second time."""
    with ExitStack() as scope:
        for layer in layers:
            scope.callback(_restore_forward, layer, layer.__dict__.get("forward"))
            # Not reentrant: that variant drops gradients of layers whose input needs none and of keyword arguments.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield


def _restore_forward(layer: nn.Module, patched: Any) -> None:
    del layer.forward
    if patched is not None:
        layer.forward = patched
