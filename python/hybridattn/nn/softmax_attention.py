"""Softmax attention as a mixer: grouped heads, biases, q/k norm, rotary embedding, window and sinks.

Shapes: B batch, T tokens, H query heads, HKV key/value heads, K head dim, D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.first_value import FirstValue
from hybridattn.nn.mixer import Mixer, Rotary
from hybridattn.nn.norm import RMSNorm
from hybridattn.nn.options import MixerOptions, SlidingWindowOptions, SoftmaxAttentionOptions
from hybridattn.nn.state import MixerState
from hybridattn.ops.backend import forced_dense_backend


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`ops.softmax_attention`, over PyTorch's SDPA if no backend is forced: attention that is kept must not change by a
    bit. `hf.native_layers` puts this library's kernels in its place."""
    return ops.softmax_attention(q, k, v, backend=forced_dense_backend("softmax_attention", None) or "aten", **options)


class SoftmaxAttention(Mixer):
    """The teacher's own attention (Llama, Qwen2, Qwen3, Mistral) with the interface of a mixer.

    Example:
        >>> options = SoftmaxAttentionOptions(hidden_size=64, num_heads=4, num_kv_heads=2, rotary="drop")
        >>> out, state = SoftmaxAttention(options).mix(torch.randn(1, 8, 64), state=MixerState())
    """

    kind = "softmax_attention"
    options_type: ClassVar[type[MixerOptions]] = SoftmaxAttentionOptions
    is_linear = False
    options: SoftmaxAttentionOptions

    def __init__(self, options: SoftmaxAttentionOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        queries, keys = options.num_heads * options.head_dim, options.num_kv_heads * options.head_dim
        self.q_proj = nn.Linear(options.hidden_size, queries, bias=options.qkv_bias)
        self.k_proj = nn.Linear(options.hidden_size, keys, bias=options.qkv_bias)
        self.v_proj = nn.Linear(options.hidden_size, keys, bias=options.qkv_bias)
        self.o_proj = nn.Linear(queries, options.hidden_size, bias=options.output_bias)
        self.q_norm = RMSNorm(options.head_dim, options.norm_eps) if options.qk_norm else None
        self.k_norm = RMSNorm(options.head_dim, options.norm_eps) if options.qk_norm else None

    def mix(
        self,
        hidden_states: Tensor,
        *,
        rotary: Rotary | None = None,
        padding_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: MixerState | None = None,
        first_value: FirstValue | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        self._check(hidden_states, rotary, cu_seqlens, state)
        options = self.options
        q = self.q_proj(hidden_states).unflatten(-1, (options.num_heads, options.head_dim))
        k = self.k_proj(hidden_states).unflatten(-1, (options.num_kv_heads, options.head_dim))
        v = self.v_proj(hidden_states).unflatten(-1, (options.num_kv_heads, options.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if options.rotary == "keep" and rotary is not None:
            q, k = ops.apply_rotary(q, *rotary).to(v.dtype), ops.apply_rotary(k, *rotary).to(v.dtype)
        if padding_mask is not None:
            padding_mask = padding_mask.bool()
        if state is not None:
            k, v, padding_mask = state.extend(k, v, padding_mask)
            state.seen += hidden_states.shape[1]
            if options.window:
                state.forget(options.window, options.sinks)
        shape = q.shape
        if cu_seqlens is not None:
            q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
            padding_mask = None if padding_mask is None else padding_mask.reshape(1, -1)
        out = attention(
            q, k, v, window=options.window, sinks=options.sinks, cu_seqlens=cu_seqlens, padding_mask=padding_mask
        )
        return self.o_proj(out.reshape(shape).flatten(-2)), state


class SlidingWindowAttention(SoftmaxAttention):
    """Softmax attention over the last `window` tokens and the first `sinks` (Xiao et al., arXiv 2309.17453)."""

    kind = "sliding_window"
    options_type = SlidingWindowOptions
