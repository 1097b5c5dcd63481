"""Linear layers, gated units, norms, rotary embedding, short convolution and softmax attention.

Shapes: B batch, T tokens (Tq queries, Tk keys), H query heads, HKV key/value heads, K head dim, R rotary width, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridattn.ops.backend import choose_backend, forced_dense_backend, record_call

_ops = torch.ops.hybridattn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """``x W^T + bias``, as `torch.nn.functional.linear`.

    Without a forced backend, this library's matrix products compute where they are faster than PyTorch's: in float32 and
    float64 on CPUs with AVX-512 that are not Intel's, from 16 rows on.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``.
        backend: forces ``native`` or ``aten``.

    Returns:
        ``[..., N]``.

    Raises:
        ValueError: shapes disagree, or the backend cannot compute on `x`.
    """
    chosen = forced_dense_backend("linear", backend) or "auto"
    if not torch.compiler.is_compiling():
        record_call("linear", "native" if _ops.linear_runs_native(x, weight, chosen) else "aten")
    return _ops.linear(x, weight, bias, chosen)


def swiglu(x: Tensor, y: Tensor, *, backend: str | None = None) -> Tensor:
    """``SiLU(x) * y``, rounded once (Shazeer, arXiv 2002.05202).

    Args:
        x, y: ``[...]`` of one dtype.
        backend: forces ``native`` or ``aten``.

    Raises:
        ValueError: shapes or dtypes disagree, or the backend cannot compute on `x`.
    """
    return _ops.swiglu(x, y, _chosen("swiglu", x, backend))


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, formed in fp32 (fp64 for fp64 inputs).

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        backend: forces ``native`` or ``aten``.

    Raises:
        ValueError: `weight` does not fit, or the backend cannot compute on `x`.
    """
    return _row_norm("rms_norm", x, weight, None, eps, True, False, backend)


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
    return _row_norm("l2_normalize", x, None, None, eps, False, _is_silu("l2_normalize", activation), backend)


def _is_silu(op: str, activation: str) -> bool:
    if activation not in ("none", "silu"):
        raise ValueError(f"{op}: activation must be 'none' or 'silu', got '{activation}'")
    return activation == "silu"


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
    chosen = choose_backend(name, forced_dense_backend(name, backend), x)
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
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    """Causal depthwise convolution over tokens: ``out_t = bias + sum_i weight[:, i] x_(t - W + 1 + i)``, activated.

    Args:
        x: ``[B, T, D]``.
        weight: ``[D, W]``.
        bias: ``[D]``.
        state: ``[B, D, W - 1]``, the tokens before `x`; zeros when absent. Not together with documents.
        cu_seqlens: ``[N + 1]`` documents packed into a batch of one; no tap reaches into another document.
        activation: of the result: "silu", in the same pass; or "none".
        backend: forces ``native`` or ``aten``.

    Returns:
        ``[B, T, D]`` in x's dtype.

    Raises:
        ValueError: shapes disagree, an unknown activation, or the backend cannot compute on `x`.
    """
    activates = _is_silu("short_convolution", activation)
    chosen = _chosen("short_convolution", x, backend)
    return _ops.short_convolution(x, weight, bias, state, cu_seqlens, activates, chosen)


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
    backend: str | None = None,
) -> Tensor:
    """Softmax attention, in blocks that never hold all scores (Dao, "FlashAttention-2", arXiv 2307.08691).

    Without a forced backend this library's kernels compute wherever they can, but for bfloat16 without window, documents
    and padding on CPUs with AMX, which PyTorch's SDPA uses too. Autocast converts the inputs, as it does those of SDPA.

    Args:
        q: ``[B, Tq, H, K]``, the last Tq positions.
        k: ``[B, Tk, HKV, K]``, H a multiple of HKV.
        v: ``[B, Tk, HKV, V]``.
        scale: multiplies ``q k^T``; ``K^-1/2`` when absent.
        causal: a query sees the keys up to its own position.
        window: keys a query sees at most, its own included; 0 = all.
        sinks: first keys of the sequence that stay visible beside the window (Xiao et al., arXiv 2309.17453).
        cu_seqlens: ``[N + 1]`` documents packed into a batch of one.
        padding_mask: ``[B, Tk]`` bool, true = token.
        backend: forces ``native`` or ``aten``, which is PyTorch's SDPA.

    Returns:
        ``[B, Tq, H, V]``. Memory is O(T); over SDPA it is O(T (window + sinks)) with a window.

    Raises:
        ValueError: shapes disagree, or the backend cannot compute on `q`.
    """
    chosen = forced_dense_backend("softmax_attention", backend) or "auto"
    if not torch.compiler.is_compiling():
        native = _ops.softmax_attention_runs_native(q, k, v, window, cu_seqlens, padding_mask, chosen)
        record_call("softmax_attention", "native" if native else "aten")
    return _ops.softmax_attention(q, k, v, scale, causal, window, sinks, cu_seqlens, padding_mask, chosen)
