"""Linear-attention rules: ``naive_`` (the specification), ``chunk_`` (training, prefill) and ``step_`` (decoding).

Shapes, everywhere: ``q, k [B, T, H, K]``, ``v [B, T, HV, V]`` with HV a multiple of H (value head i reads query/key head
``i // (HV / H)``), log gates ``g [B, T, HV] <= 0``, ``beta [B, T, HV]`` in [0, 2], states ``[B, HV, K, V]`` in fp32 (fp64 for
fp64 inputs). ``scale`` is K^-1/2 by default. ``cu_seqlens [N + 1]`` (integers) packs N documents into a batch of one; states
are then ``[N, HV, K, V]``. Names and layouts are those of flash-linear-attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridattn.ops.backend import choose_backend, record_call

Result = tuple[Tensor, Tensor | None]


def _scale(scale: float | None, k: Tensor) -> float:
    return k.shape[-1] ** -0.5 if scale is None else scale


def _naive(
    rule: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> Result:
    op = getattr(torch.ops.hybridattn, f"naive_{rule}")
    out, state = op(q, k, v, g, beta, _scale(scale, k), initial_state, cu_seqlens)
    return out, state if output_final_state else None


def _chunk(
    rule: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    backend: str | None,
) -> Result:
    name = f"chunk_{rule}"
    chosen = choose_backend(name, backend, v)
    record_call(name, chosen)
    if chosen == "naive":
        return _naive(rule, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)
    op = getattr(torch.ops.hybridattn, name)
    out, state, _ = op(q, k, v, g, beta, _scale(scale, k), initial_state, cu_seqlens, chunk_size, False, chosen)
    return out, state if output_final_state else None


def _step(
    rule: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float | None,
    backend: str | None,
) -> Tensor:
    name = f"step_{rule}"
    chosen = choose_backend(name, backend, v)
    if chosen == "naive":
        chosen = "aten"  # a step is the recurrence
    record_call(name, chosen)
    return getattr(torch.ops.hybridattn, name)(q, k, v, g, beta, state, _scale(scale, k), chosen)


def naive_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """Gated delta rule (Yang et al., "Gated Delta Networks", arXiv 2412.06464, eq. 10). Token by token: the specification.

    ``S' = exp(g_t) S;  S = S' + k_t (beta_t (v_t - S'^T k_t))^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return _naive("gated_delta_rule", q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str | None = None,
) -> Result:
    """`naive_gated_delta_rule` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    return _chunk(
        "gated_delta_rule", q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend
    )


def step_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return _step("gated_delta_rule", q, k, v, g, beta, state, scale, backend)


def naive_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """Delta rule (Yang et al., arXiv 2406.06484). Token by token: the specification.

    ``S = S + k_t (beta_t (v_t - S^T k_t))^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return _naive("delta_rule", q, k, v, None, beta, scale, initial_state, output_final_state, cu_seqlens)


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str | None = None,
) -> Result:
    """`naive_delta_rule` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    return _chunk(
        "delta_rule", q, k, v, None, beta, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend
    )


def step_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return _step("delta_rule", q, k, v, None, beta, state, scale, backend)


def naive_lightning(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """Scalar-decay additive attention (Lightning, RetNet, Mamba-2 style). Token by token: the specification.

    ``S = exp(g_t) S + k_t v_t^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return _naive("lightning", q, k, v, g, None, scale, initial_state, output_final_state, cu_seqlens)


def chunk_lightning(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str | None = None,
) -> Result:
    """`naive_lightning` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    return _chunk(
        "lightning", q, k, v, g, None, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend
    )


def step_lightning(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return _step("lightning", q, k, v, g, None, state, scale, backend)


def naive_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """Additive linear attention without decay, feature map or normaliser. Token by token: the specification.

    ``S = S + k_t v_t^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return _naive("linear_attention", q, k, v, None, None, scale, initial_state, output_final_state, cu_seqlens)


def chunk_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str | None = None,
) -> Result:
    """`naive_linear_attention` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    return _chunk(
        "linear_attention",
        q,
        k,
        v,
        None,
        None,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        chunk_size,
        backend,
    )


def step_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, state: Tensor, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return _step("linear_attention", q, k, v, None, None, state, scale, backend)
