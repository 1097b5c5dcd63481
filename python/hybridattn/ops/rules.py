"""Linear-attention rules: ``naive_`` (the specification), ``chunk_`` (training, prefill) and ``step_`` (decoding).

Shapes, everywhere: ``q, k [B, T, H, K]``, ``v [B, T, HV, V]`` with HV a multiple of H (value head i reads query/key head
``i // (HV / H)``), log gates ``g [B, T, HV] <= 0``, ``beta [B, T, HV]`` in [0, 2], states ``[B, HV, K, V]`` in fp32 (fp64 for
fp64 inputs). ``scale`` is K^-1/2 by default. ``cu_seqlens [N + 1]`` (integers) packs N documents into a batch of one; states
are then ``[N, HV, K, V]``. Names and layouts are those of flash-linear-attention.
"""

from __future__ import annotations

from torch import Tensor

from hybridattn.ops.rule_calls import Inputs, Result, call_chunk, call_naive, call_step


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
    return call_naive(
        "gated_delta_rule", Inputs(q, k, v, g, beta), scale, initial_state, output_final_state, cu_seqlens
    )


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
    return call_chunk(
        "gated_delta_rule",
        Inputs(q, k, v, g, beta),
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        chunk_size,
        backend,
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
    return call_step("gated_delta_rule", Inputs(q, k, v, g, beta), state, scale, backend)


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
    return call_naive("delta_rule", Inputs(q, k, v, beta=beta), scale, initial_state, output_final_state, cu_seqlens)


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
    return call_chunk(
        "delta_rule",
        Inputs(q, k, v, beta=beta),
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        chunk_size,
        backend,
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
    return call_step("delta_rule", Inputs(q, k, v, beta=beta), state, scale, backend)


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
    return call_naive("lightning", Inputs(q, k, v, g), scale, initial_state, output_final_state, cu_seqlens)


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
    return call_chunk(
        "lightning", Inputs(q, k, v, g), scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend
    )


def step_lightning(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return call_step("lightning", Inputs(q, k, v, g), state, scale, backend)


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
    return call_naive("linear_attention", Inputs(q, k, v), scale, initial_state, output_final_state, cu_seqlens)


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
    return call_chunk(
        "linear_attention",
        Inputs(q, k, v),
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
    return call_step("linear_attention", Inputs(q, k, v), state, scale, backend)
