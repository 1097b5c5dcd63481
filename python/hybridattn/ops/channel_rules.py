"""Rules whose state decays per channel: gated linear attention, Kimi delta attention, and RWKV-7's generalised delta rule.

As in `hybridattn.ops.rules`, but the log gates are ``g [B, T, HV, K] <= 0``, one per row of the state, and the
generalised rule reads ``a, b [B, T, H, K]`` besides.
"""

from __future__ import annotations

from torch import Tensor

from hybridattn.ops.rule_calls import Inputs, Result, call_chunk, call_naive, call_step


def naive_gla(
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
    """Gated linear attention (Yang et al., arXiv 2312.06635, eq. 3). Token by token: the specification.

    ``S = diag(exp(g_t)) S + k_t v_t^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return call_naive("gla", Inputs(q, k, v, g), scale, initial_state, output_final_state, cu_seqlens)


def chunk_gla(
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
    """`naive_gla` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    inputs = Inputs(q, k, v, g)
    return call_chunk("gla", inputs, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend)


def step_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return call_step("gla", Inputs(q, k, v, g), state, scale, backend)


def naive_kda(
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
    """Kimi delta attention (Kimi Linear, arXiv 2510.26692). Token by token: the specification.

    ``S' = diag(exp(g_t)) S;  S = S' + k_t (beta_t (v_t - S'^T k_t))^T;  o_t = scale S^T q_t``

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return call_naive("kda", Inputs(q, k, v, g, beta), scale, initial_state, output_final_state, cu_seqlens)


def chunk_kda(
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
    """`naive_kda` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    inputs = Inputs(q, k, v, g, beta)
    return call_chunk("kda", inputs, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend)


def step_kda(
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
    return call_step("kda", Inputs(q, k, v, g, beta), state, scale, backend)


def naive_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """The generalised delta rule of RWKV-7 (Peng et al., arXiv 2503.14456), diagonal plus low rank. Token by token.

    ``S = diag(exp(g_t)) S + b_t (a_t^T S) + k_t v_t^T;  o_t = scale S^T q_t``, where a reads the state before it decays.

    A chunk is solved as a triangular system; for a stable recurrence ``|a|`` and ``|b|`` should not exceed 1.

    Returns:
        ``(out [B, T, HV, V] in v's dtype, final state or None)``.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return call_naive(
        "dplr_delta_rule", Inputs(q, k, v, g, a=a, b=b), scale, initial_state, output_final_state, cu_seqlens
    )


def chunk_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str | None = None,
) -> Result:
    """`naive_dplr_delta_rule` in chunks of `chunk_size` tokens, differentiable in every floating argument.

    Arithmetic is fp32 (fp64 for fp64 inputs) whatever the inputs' dtype. `backend` forces one of
    `hybridattn.ops.BACKENDS`.
    """
    inputs = Inputs(q, k, v, g, a=a, b=b)
    return call_chunk(
        "dplr_delta_rule", inputs, scale, initial_state, output_final_state, cu_seqlens, chunk_size, backend
    )


def step_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One token (T = 1); `state` [B, HV, K, V] is updated in place. Returns ``[B, 1, HV, V]``. Not differentiable."""
    return call_step("dplr_delta_rule", Inputs(q, k, v, g, a=a, b=b), state, scale, backend)
