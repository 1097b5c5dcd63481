"""Losses of distillation: from mixer outputs (`alignment_loss`) and from hidden states without [tokens, vocabulary].

Shapes: D hidden size, V vocabulary; leading dimensions are tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridattn.ops.backend import choose_backend, forced_dense_backend, record_call

_ops = torch.ops.hybridattn


def alignment_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    kind: str = "l2_norm",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """How far a mixer's output is from the teacher's, per token.

    Args:
        prediction, target: ``[..., D]``.
        mask: ``[...]`` bool, True where a token counts.
        kind: ``l2_norm``: |target - prediction|_2 D^-1/2 (RADLADS, arXiv 2505.03005, step 1); ``squared``: its square;
            ``cosine``: 1 - cos.
        reduction: ``mean`` (over tokens that count), ``sum`` or ``none``.
        backend: forces ``native`` or ``aten``; ``cosine`` is a composition of ATen ops on both.

    Raises:
        ValueError: shapes disagree, a name is unknown, or the backend cannot compute on `prediction`.
    """
    chosen = choose_backend("alignment_loss", forced_dense_backend("alignment_loss", backend), prediction)
    record_call("alignment_loss", "aten" if kind == "cosine" else chosen)
    return _ops.alignment_loss(prediction, target, mask, kind, reduction, chosen)


def _reduced(total: Tensor, loss: Tensor, weight: Tensor | int, hidden: Tensor, reduction: str, op: str) -> Tensor:
    if reduction == "none":
        return loss.view(hidden.shape[:-1])
    if reduction == "sum":
        return total
    if reduction != "mean":
        raise ValueError(f"{op}: unknown reduction '{reduction}', known are mean, sum, none")
    return total / weight


def linear_kl_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    kind: str = "forward",
    jsd_beta: float = 0.5,
    reduction: str = "mean",
    chunk_size: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Divergence of the student's from the teacher's next-token distribution, in nats, summed over the vocabulary.

    Logits exist for `chunk_size` tokens at a time, in fp32 (fp64 for fp64 hidden states).

    Args:
        student_hidden: ``[..., D]``; teacher_hidden: ``[..., D']``; heads: ``[V, D]`` and ``[V, D']``.
        weights: ``[...]`` per token, 0 = ignored.
        temperature: divides the logits; the loss gets the factor temperature^2 (Hinton et al., arXiv 1503.02531).
        kind: ``forward`` KL(teacher || student), ``reverse`` KL(student || teacher), or ``jsd`` (arXiv 2306.13649).
        reduction: ``mean`` over the sum of weights, ``sum``, or ``none`` (per token, without gradient).
        chunk_size: tokens per chunk; 0 chooses.
        backend: forces one of `hybridattn.ops.BACKENDS`; the native one computes ``forward`` and ``reverse``.

    Returns:
        A scalar with gradients for `student_hidden` and `student_head`, or ``[...]``.

    Raises:
        ValueError: shapes or vocabularies disagree, or an option is out of range.
    """
    op = "linear_kl_divergence"
    forced = forced_dense_backend(op, backend)
    record_call(op, "aten" if kind == "jsd" else choose_backend(op, forced, student_hidden))
    with torch.set_grad_enabled(torch.is_grad_enabled() and reduction != "none"):
        total, loss, _, _ = _ops.linear_kl_divergence(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            weights,
            temperature,
            kind,
            jsd_beta,
            chunk_size,
            backend=forced or "auto",
        )
    weight = loss.numel() if weights is None else weights.to(loss.dtype).sum()
    return _reduced(total, loss, weight, student_hidden, reduction, op)


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, *, reduction: str = "mean", chunk_size: int = 0
) -> Tensor:
    """Cross-entropy in nats from hidden states.

    Args:
        hidden: ``[..., D]``; head: ``[V, D]``.
        labels: ``[...]`` int64; -100 is ignored.
        reduction: ``mean`` over the labels that count, ``sum``, or ``none`` (0 where ignored, without gradient).

    Raises:
        ValueError: shapes disagree or a label is out of range.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and reduction != "none"):
        total, loss, _, _ = _ops.linear_cross_entropy(hidden, head, labels, chunk_size)
    return _reduced(total, loss, labels.ne(-100).sum(), hidden, reduction, "linear_cross_entropy")
