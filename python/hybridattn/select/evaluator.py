"""Held-out losses of a set of softmax layers: what every selector measures with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill import MatchObjective, Stage, Trainer
from hybridattn.distill.fingerprint import matrix_weights


class LayerSetEvaluator(Protocol):
    """What selectors need: layers, and one loss per held-out sequence of a hybrid that keeps some of them."""

    num_layers: int

    def losses(self, layers: Iterable[int]) -> list[float]:
        """Held-out loss per sequence when softmax stays in `layers`; lower is better."""
        ...


class CandidateEvaluator:
    """Hybrids made of one student's mixers and the teacher's attention, scored by KL(teacher || hybrid).

    Every set of layers is scored on the same sequences, so differences are paired. The teacher's hidden states are
    computed once. Without training no weight is copied: layers are switched in one model.

    Args:
        student: aligned, with a mixer in every layer.
        teacher: the model it came from.
        held_out: batches that nothing trains on.
    """

    def __init__(self, student: Any, teacher: nn.Module, held_out: Sequence[Batch]) -> None:
        if not held_out:
            raise ValueError("select: no held-out batch; raise `held_out` or use a longer corpus")
        self.student, self.teacher, self.held_out = student, teacher, list(held_out)
        self.mixers = student.mixers()
        self.num_layers = len(hf.decoder_layers(teacher))
        lacking = sorted(set(range(self.num_layers)) - set(self.mixers))
        if lacking:
            raise ValueError(f"select: the student has no mixer in layers {lacking}; score an all-linear student")
        self.tokens, self.flops = 0, 0.0
        self._cache: dict[tuple[int, ...], list[float]] = {}
        with torch.no_grad():
            self._teacher_hidden = [hf.hidden_states(teacher, batch) for batch in self.held_out]

    @property
    def num_sequences(self) -> int:
        return sum(batch.num_sequences for batch in self.held_out)

    def losses(self, layers: Iterable[int]) -> list[float]:
        """Mean KL in nats per token, one per held-out sequence; a set that was scored before costs nothing."""
        kept = tuple(sorted(set(layers)))
        if kept not in self._cache:
            decoder = hf.decoder_layers(self.student)
            try:
                for layer in kept:
                    decoder[layer].self_attn = hf.attention(self.teacher, layer)
                self._cache[kept] = self._measure(self.student)
            finally:
                for layer in kept:
                    decoder[layer].self_attn = self.mixers[layer]
        return self._cache[kept]

    @torch.no_grad()
    def _measure(self, model: Any) -> list[float]:
        rows: list[Tensor] = []
        for batch, teacher_hidden in zip(self.held_out, self._teacher_hidden, strict=True):
            divergence = ops.linear_kl_divergence(
                hf.hidden_states(model, batch),
                hf.head_weight(model),
                teacher_hidden,
                hf.head_weight(self.teacher),
                reduction="none",
            )
            mask = torch.ones_like(divergence) if batch.loss_mask is None else batch.loss_mask.to(divergence.dtype)
            rows.append((divergence * mask).sum(1) / mask.sum(1).clamp(min=1))
            self.tokens += batch.num_tokens
            self.flops += 2.0 * batch.num_tokens * matrix_weights(model)
        return torch.cat(rows).double().tolist()

    def trained(self, layers: Iterable[int], stage: Stage, data: Any) -> TrainedCandidate:
        """A copy of the hybrid that can be trained by the stage-2 loss and scored in between."""
        return TrainedCandidate(self, list(layers), stage, data)


class TrainedCandidate:
    """One hybrid in training; `losses_at` continues where it stopped."""

    def __init__(self, evaluator: CandidateEvaluator, layers: list[int], stage: Stage, data: Any) -> None:
        from hybridattn.convert import keep_softmax

        self.evaluator = evaluator
        self.model = keep_softmax(evaluator.student, evaluator.teacher, layers)
        self.objective = MatchObjective(self.model, evaluator.teacher, stage)
        self.trainer = Trainer(self.objective, stage, data)
        self.trainer.__enter__()

    def losses_at(self, step: int) -> list[float]:
        before = self.trainer.step
        if step > before:
            self.trainer.run(before, step)
            tokens = (step - before) * self.trainer.stage.tokens_per_step
            self.evaluator.tokens += tokens
            self.evaluator.flops += self.objective.flops(tokens)
        return self.evaluator._measure(self.model)

    def close(self) -> None:
        self.trainer.__exit__(None, None, None)
