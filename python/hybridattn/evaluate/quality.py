"""Held-out KL from the teacher and perplexity, one number per sequence so that models can be compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch


def _row_means(per_token: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid tokens of each row: [B, T] -> [B]."""
    if mask is None:
        return per_token.mean(1)
    weights = mask.to(per_token.dtype)
    return (per_token * weights).sum(1) / weights.sum(1).clamp(min=1)


@torch.no_grad()
@hf.native_layers()
def kl(student: nn.Module, teacher: nn.Module, batches: Iterable[Batch], temperature: float = 1.0) -> Tensor:
    """Forward KL(teacher || student) in nats per token, one mean per held-out sequence.

    Args:
        student, teacher: models with a common vocabulary, plain Transformers decoders or hybrids.
        batches: held-out batches of B sequences of T tokens.

    Returns:
        fp32 tensor ``[sequences]`` on the CPU.

    Raises:
        ValueError: when there is no batch, or the vocabularies differ.
    """
    rows = []
    for batch in batches:
        per_token = ops.linear_kl_divergence(
            hf.hidden_states(student, batch),
            hf.head_weight(student),
            hf.hidden_states(teacher, batch),
            hf.head_weight(teacher),
            temperature=temperature,
            reduction="none",
        )
        rows.append(_row_means(per_token.view(batch.input_ids.shape), batch.loss_mask).float().cpu())
    if not rows:
        raise ValueError("kl: no held-out batch was given; raise `held_out` or use a longer corpus")
    return torch.cat(rows)


def next_token_labels(batch: Batch) -> Tensor:
    """Labels [B, T]: the next token of the same document; -100 where there is none."""
    labels = torch.full_like(batch.input_ids, -100)
    labels[:, :-1] = batch.input_ids[:, 1:]
    if batch.position_ids is not None:
        labels[:, :-1][batch.position_ids[:, 1:] == 0] = -100
    if batch.loss_mask is not None:
        labels[~batch.loss_mask] = -100
    return labels


@torch.no_grad()
@hf.native_layers()
def perplexity(model: nn.Module, batches: Iterable[Batch]) -> float:
    """exp of the mean next-token cross-entropy (nats) over all predictable tokens of `batches`.

    Raises:
        ValueError: when `batches` holds no predictable token.
    """
    total, count = 0.0, 0
    for batch in batches:
        labels = next_token_labels(batch)
        hidden = hf.hidden_states(model, batch)
        total += ops.linear_cross_entropy(hidden, hf.head_weight(model), labels, reduction="sum").item()
        count += int((labels != -100).sum())
    if count == 0:
        raise ValueError("perplexity: the batches hold no token with a next token in the same document")
    return float(torch.tensor(total / count, dtype=torch.float64).exp())
