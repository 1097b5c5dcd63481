"""Stage 1, align: each mixer learns to reproduce the attention output of the teacher's layer from the teacher's input.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import describe_mixers, fingerprint, matrix_weights
from hybridattn.distill.loop import BatchSource, Trainer
from hybridattn.distill.objective import Objective, counted
from hybridattn.distill.precision import Precision
from hybridattn.distill.stage import Stage
from hybridattn.distill.stage_run import OnProgress, StageResult, run_stage, silent
from hybridattn.nn import FirstValue


class AlignObjective(Objective):
    """The alignment loss of every linear layer, averaged over layers.

    The teacher runs without gradient. Where one of its attention modules has run, the student's mixer of that layer
    runs on the same input and its loss is back-propagated at once: memory holds one layer's activations at a time.

    Raises:
        ValueError: the student has no mixers, or the teacher lacks one of their layers.
    """

    name = "align"
    losses = ("l2_norm", "squared", "cosine")

    def __init__(self, student: Any, teacher: nn.Module, stage: Stage) -> None:
        self.student, self.teacher = student, teacher
        self.kind = stage.resolved_loss(*self.losses)
        self.by_layer: dict[int, nn.Module] = dict(sorted(student.mixers().items()))
        if not self.by_layer:
            raise ValueError("align: the student has no mixer to train (every layer keeps softmax attention)")
        layers = len(hf.decoder_layers(teacher))
        if max(self.by_layer) >= layers:
            raise ValueError(f"align: a mixer stands in layer {max(self.by_layer)}, the teacher has {layers} layers")
        self.parts = [f"layer {layer}" for layer in self.by_layer]

    def trainable(self) -> dict[str, nn.Parameter]:
        return {
            f"layers.{layer}.{name}": parameter
            for layer, mixer in self.by_layer.items()
            for name, parameter in mixer.named_parameters()
        }

    def weights(self, batch: Batch) -> Tensor:
        return counted(batch)

    @torch.no_grad()
    def backward(self, batch: Batch, weights: Tensor, total: float, precision: Precision) -> Tensor:
        losses = torch.zeros(len(self.by_layer), device=batch.input_ids.device)
        shared = {"cu_seqlens": batch.cu_seqlens, "first_value": FirstValue()}
        with ExitStack() as hooks:
            for index, (layer, mixer) in enumerate(self.by_layer.items()):
                attention = hf.attention(self.teacher, layer)
                hook = partial(self._at_layer, mixer, shared, weights.bool(), total, precision, losses[index])
                hooks.callback(attention.register_forward_hook(hook, with_kwargs=True).remove)
            with precision.forward():
                hf.hidden_states(self.teacher, batch)
        return losses

    def _at_layer(
        self,
        mixer: nn.Module,
        shared: dict[str, Any],
        mask: Tensor,
        total: float,
        precision: Precision,
        loss: Tensor,
        _attention: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """Forward hook of a teacher's attention module: loss and gradient of one layer."""
        hidden = args[0] if args else kwargs["hidden_states"]
        target = output[0] if isinstance(output, tuple) else output
        if not precision.narrow:
            hidden = hidden.to(next(mixer.parameters()).dtype)
        with torch.enable_grad():
            with precision.forward():
                prediction, _ = mixer(hidden, position_embeddings=kwargs.get("position_embeddings"), **shared)
            with precision.backward():
                distance = ops.alignment_loss(prediction, target, mask=mask, kind=self.kind, reduction="sum") / total
                (distance / len(self.by_layer)).backward()
        # The first mixer's graph is gone by now: later ones take its values as they are.
        shared["first_value"].detach()
        loss.copy_(distance.detach())

    def flops(self, tokens: int) -> float:
        mixers = sum(matrix_weights(mixer) for mixer in self.by_layer.values())
        return tokens * (2.0 * matrix_weights(self.teacher, head=False) + 6.0 * mixers)

    def recipe(self) -> dict[str, Any]:
        return {"teacher": fingerprint(self.teacher), "mixers": describe_mixers(self.student)}


def align(
    student: Any,
    teacher: nn.Module,
    data: BatchSource,
    stage: Stage,
    *,
    run_dir: str | Path | None = None,
    progress: OnProgress = silent,
) -> StageResult:
    """Stage 1 (method.md, section 2): trains the student's mixers in place, nothing else.

    Args:
        student: a converted model; it may share every other weight with the teacher.
        teacher: the Transformers model it came from, on the same device.
        data: batches, `hybridattn.data.TokenData`.
        run_dir: folder of this stage, for ``log.jsonl`` and ``checkpoint/``. A run that was interrupted continues
            there, bit-equally on a CPU; a finished one is only loaded.
        progress: called with a `Progress` after every log line.

    Returns:
        StageResult with the loss of every step and of every layer.

    Raises:
        ValueError: no mixers, a run directory of another recipe (naming what differs), a damaged checkpoint.
        NonFiniteLoss: naming step, documents and layer.
        OSError: a full disk; the previous checkpoint is intact.

    Example:
        >>> ha.align(student, teacher, data, ha.presets.align("paper", tokens=1_000_000), run_dir="run/align")
    """
    return run_stage(Trainer(AlignObjective(student, teacher, stage), stage, data), run_dir, progress)
