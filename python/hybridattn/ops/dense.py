"""Norms, rotary embedding, short convolution and softmax attention.

Shapes: B batch, T tokens (Tq queries, Tk keys), H query heads, HKV key/value heads, K head dim, R rotary width, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridattn.ops.backend import choose_backend, record_call

_ops = torch.ops.hybridattn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, statistics in fp32, as Transformers' LlamaRMSNorm.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.

    Raises:
        ValueError: `weight` does not fit.
    """
    return _ops.rms_norm(x, weight, eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """``rms_norm(x, weight, eps) * SiLU(gate)``, formed in fp32 (fp64 for fp64 inputs).

    Args:
        x, gate: ``[..., D]``.
        weight: ``[D]``.
        backend: forces ``native`` or ``aten``.

    Raises:
        ValueError: shapes disagree, or the backend cannot compute on `x`.
    """
    return _row_norm("gated_rms_norm", x, weight, gate, eps, True, False, backend)


def l2_normalize(x: Tensor, eps: float = 1e-6, *, activation: str = "none", backend: str | None = None) -> Tensor:
    """``x / sqrt(sum(x^2) + eps)`` over the last dimension; a zero vector has a finite gradient.

    Args:
        x: ``[..., D]``.
        activation: "silu" normalises SiLU(x), in one pass; or "none".
        backend: forces ``native`` or ``aten``.

    Raises:
        ValueError: an unknown activation, or the backend cannot compute on `x`.
    """
    if activation not in ("none", "silu"):
        raise ValueError(f"l2_normalize: activation must be 'none' or 'silu', got '{activation}'")
    return _row_norm("l2_normalize", x, None, None, eps, False, activation == "silu", backend)


def _row_norm(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    mean: bool,
    activates: bool,
    backend: str | None,
) -> Tensor:
    return _ops.row_norm(x, weight, gate, eps, mean, activates, _chosen(name, x, backend))


def _chosen(name: str, x: Tensor, backend: str | None) -> str:
    """The backend of one call, recorded."""
    chosen = choose_backend(name, backend, x)
    chosen = "aten" if chosen == "naive" else chosen  # which of rules alone is another computation
    record_call(name, chosen)
    return chosen


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, backend: str | None = None) -> Tensor:
    """Rotates the first R of each head's dimensions, halves paired as in Llama; the same bits on every backend.

    Args:
        x: ``[B, T, H, K]``.
        cos, sin: ``[B or 1, T, R]``, R even and <= K.
        backend: forces ``native`` or ``aten``.

    Returns:
        ``[B, T, H, K]`` in x's dtype.

    Raises:
        ValueError: shapes disagree, or the backend cannot compute on `x`.
    """
    return _ops.apply_rotary(x, cos, sin, False, _chosen("apply_rotary", x, backend))


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Causal depthwise convolution over tokens: ``out_t = sum_i weight[:, i] x_(t - W + 1 + i)``.

    Args:
        x: ``[B, T, D]``.
        weight: ``[D, W]``.
        state: ``[B, D, W - 1]``, the tokens before `x`; zeros when absent.
        cu_seqlens: ``[N + 1]`` documents packed into a batch of one; no tap reaches into another document.
    """
    return _ops.short_convolution(x, weight, bias, state, cu_seqlens)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    sinks: int = 0,
    cu_seqlens: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention over PyTorch's SDPA.

    Args:
        q: ``[B, Tq, H, K]``, the last Tq positions.
        k, v: ``[B, Tk, HKV, K]``, H a multiple of HKV.
        window: keys a query sees at most, its own included; 0 = all.
        sinks: first keys of the sequence that stay visible beside the window (Xiao et al., arXiv 2309.17453).
        cu_seqlens: ``[N + 1]`` documents packed into a batch of one.
        padding_mask: ``[B, Tk]`` bool, true = token.

    Returns:
        ``[B, Tq, H, K]``. With a window, memory is O(T (window + sinks)).

    Raises:
        ValueError: shapes disagree.
    """
    return _ops.softmax_attention(q, k, v, scale, causal, window, sinks, cu_seqlens, padding_mask)
