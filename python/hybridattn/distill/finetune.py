"""Stage 3, finetune: next-token cross-entropy on the whole hybrid, usually on longer sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill.loop import BatchSource, Trainer
from hybridattn.distill.precision import Precision
from hybridattn.distill.stage import Stage
from hybridattn.distill.stage_run import OnProgress, StageResult, run_stage, silent
from hybridattn.distill.whole_model import WholeModelObjective
from hybridattn.evaluate.quality import next_token_labels


class FinetuneObjective(WholeModelObjective):
    """Cross-entropy of the next token of the same document, a mean over the tokens that have one."""

    name = "finetune"
    losses = ("cross_entropy",)

    def __init__(self, student: Any, stage: Stage) -> None:
        super().__init__(student, stage)
        stage.resolved_loss(*self.losses)

    def weights(self, batch: Batch) -> Tensor:
        return (next_token_labels(batch) != -100).float()

    def backward(self, batch: Batch, weights: Tensor, total: float, precision: Precision) -> Tensor:
        with precision.forward():
            hidden = hf.hidden_states(self.student, batch)
        with precision.backward():
            entropy = ops.linear_cross_entropy(
                precision.narrowed(hidden),
                precision.narrowed(hf.head_weight(self.student)),
                next_token_labels(batch),
                reduction="sum",
            )
            share = entropy / total
            share.backward()
        return share.detach().float().reshape(1)


def finetune(
    student: Any,
    data: BatchSource,
    stage: Stage,
    *,
    run_dir: str | Path | None = None,
    progress: OnProgress = silent,
) -> StageResult:
    """Stage 3 (method.md, section 2): trains the whole student in place, from where stage 2 left it.

    Args:
        data, run_dir, progress: as in `align`.

    Returns:
        StageResult with the loss (nats per token) of every step.

    Raises:
        ValueError: a run directory of another recipe, a damaged checkpoint, a batch without a predictable token.
        NonFiniteLoss: naming step, documents and layer.
        OSError: a full disk; the previous checkpoint is intact.
    """
    return run_stage(Trainer(FinetuneObjective(student, stage), stage, data), run_dir, progress)
