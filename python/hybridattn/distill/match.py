"""Stage 2, match: the whole hybrid learns the teacher's distribution over the next token.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import fingerprint, matrix_weights
from hybridattn.distill.loop import BatchSource, Trainer
from hybridattn.distill.objective import counted
from hybridattn.distill.precision import Precision
from hybridattn.distill.stage import Stage
from hybridattn.distill.stage_run import OnProgress, StageResult, run_stage, silent
from hybridattn.distill.whole_model import WholeModelObjective

TokenWeights = Callable[[Batch], Tensor]
"""Batch -> weight [B, T] of each token in the loss, >= 0; it must not depend on how rows are grouped into batches."""


class MatchObjective(WholeModelObjective):
    """KL between the teacher's and the student's distributions, a mean over tokens.

    Raises:
        ValueError: student and teacher share a parameter or have different vocabularies.
    """

    name = "match"
    losses = ("forward", "reverse", "jsd")

    def __init__(
        self, student: Any, teacher: nn.Module, stage: Stage, token_weights: TokenWeights | None = None
    ) -> None:
        super().__init__(student, stage)
        self.teacher = teacher
        self.token_weights = token_weights
        self.kind = stage.resolved_loss(*self.losses)
        of_teacher = {parameter.data_ptr() for parameter in teacher.parameters()}
        for name, parameter in student.named_parameters():
            if parameter.data_ptr() in of_teacher:
                raise ValueError(
                    f"match: student and teacher share {name}: training the one would change the other; "
                    "use copy.deepcopy(student)"
                )
        vocabularies = hf.head_weight(student).shape[0], hf.head_weight(teacher).shape[0]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(
                f"match: the student's vocabulary has {vocabularies[0]} entries, the teacher's {vocabularies[1]}"
            )

    def weights(self, batch: Batch) -> Tensor:
        if self.token_weights is None:
            return counted(batch)
        weights = self.token_weights(batch).float()
        if weights.shape != batch.input_ids.shape or not bool((weights >= 0).all()):
            raise ValueError(
                f"match: token_weights must be >= 0 and of shape {list(batch.input_ids.shape)}, got "
                f"{list(weights.shape)} from {float(weights.min())}"
            )
        return weights * counted(batch)

    def backward(self, batch: Batch, weights: Tensor, total: float, precision: Precision) -> Tensor:
        with precision.forward():
            with torch.no_grad():
                teacher_hidden = hf.hidden_states(self.teacher, batch)
            student_hidden = hf.hidden_states(self.student, batch)
        with precision.backward():
            divergence = ops.linear_kl_divergence(
                precision.narrowed(student_hidden),
                precision.narrowed(hf.head_weight(self.student)),
                precision.narrowed(teacher_hidden),
                precision.narrowed(hf.head_weight(self.teacher).detach()),
                weights=weights,
                temperature=self.stage.temperature,
                kind=self.kind,
                reduction="sum",
            )
            share = divergence / total
            share.backward()
        return share.detach().float().reshape(1)

    def flops(self, tokens: int) -> float:
        return super().flops(tokens) + 2.0 * tokens * matrix_weights(self.teacher)

    def recipe(self) -> dict[str, Any]:
        weights = self.token_weights
        name = (
            None
            if weights is None
            else getattr(weights, "fingerprint", getattr(weights, "__qualname__", repr(weights)))
        )
        return super().recipe() | {"teacher": fingerprint(self.teacher), "token_weights": name}


def match(
    student: Any,
    teacher: nn.Module,
    data: BatchSource,
    stage: Stage,
    *,
    token_weights: TokenWeights | None = None,
    run_dir: str | Path | None = None,
    progress: OnProgress = silent,
) -> StageResult:
    """Stage 2 (method.md, section 2): trains the whole student in place, mixers at `stage.mixer_lr`, the rest at `lr`.

    Args:
        student: a hybrid that shares no parameter with the teacher (`keep_softmax` makes one).
        token_weights: batch -> weight [B, T] of each token in the mean, for example by how much it needs far context.
        data, run_dir, progress: as in `align`.

    Returns:
        StageResult with the loss (nats per token) of every step.

    Raises:
        ValueError: shared parameters, different vocabularies, a run directory of another recipe, a damaged checkpoint.
        NonFiniteLoss: naming step, documents and layer.
        OSError: a full disk; the previous checkpoint is intact.
    """
    objective = MatchObjective(student, teacher, stage, token_weights)
    return run_stage(Trainer(objective, stage, data), run_dir, progress)
