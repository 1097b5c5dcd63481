"""What every linear mixer shares: projections, convolution, activation, rule call, output norm and gate.

Shapes: B batch, T tokens, H heads, HKV projected key/value heads, K key dim, V value dim, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.first_value import FirstValue
from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.mixer import Mixer, Rotary
from hybridattn.nn.norm import HeadGroupNorm, RMSNorm
from hybridattn.nn.options import LinearAttentionOptions
from hybridattn.nn.state import MixerState
from hybridattn.nn.token_shift import ProjectionInputs


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over the last `width` tokens; starts as the identity (last tap 1, others 0)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, width))
        nn.init.ones_(self.weight[..., -1])


class LinearAttention(Mixer):
    """Base of the linear mixers; a subclass names its rule's ops and computes its gates.

    x -> [token shift] -> q, k, v projections -> [q/k norm] -> [rotary] -> [short convolution] -> activation
    -> [L2 norm of q, k] -> [value residual] -> [keys scaled by the gates] -> rule -> [RMSNorm per head]
    -> [activation(g_proj x)] -> o_proj.
    """

    is_linear = True
    options: LinearAttentionOptions
    chunk_rule: ClassVar[Callable[..., Any]]
    """The rule over many tokens, ops.chunk_*."""
    step_rule: ClassVar[Callable[..., Any]]
    """The rule over one token with its state in place, ops.step_*."""

    def __init__(self, options: LinearAttentionOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        heads, kv_heads, hidden = options.num_heads, options.projected_kv_heads, options.hidden_size
        queries, keys = heads * options.head_dim, kv_heads * options.head_dim
        values, outputs = kv_heads * options.value_head_dim, heads * options.value_head_dim
        self.q_proj = nn.Linear(hidden, queries, bias=options.qkv_bias)
        self.k_proj = nn.Linear(hidden, keys, bias=options.qkv_bias)
        self.v_proj = nn.Linear(hidden, values, bias=options.qkv_bias)
        self.o_proj = nn.Linear(outputs, hidden, bias=options.output_bias)
        self.q_norm = RMSNorm(options.head_dim, options.norm_eps) if options.qk_norm else None
        self.k_norm = RMSNorm(options.head_dim, options.norm_eps) if options.qk_norm else None
        width = options.short_convolution
        self.q_conv1d = ShortConvolution(queries, width) if width else None
        self.k_conv1d = ShortConvolution(keys, width) if width else None
        self.v_conv1d = ShortConvolution(values, width) if width else None
        self.g_proj = self._gate_projection(outputs) if options.output_gate else None
        self.o_norm = self._output_norm() if options.output_norm else None

    @abstractmethod
    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        """Gates by name, each [B, T, H] or [B, T, H, K], fp32 or wider. Zero must mean "leave the state alone"."""

    def inputs(
        self, hidden_states: Tensor, padded: Tensor | None, cu_seqlens: Tensor | None, state: MixerState | None
    ) -> ProjectionInputs:
        """What the projections read; `padded` [B, T, 1] is true where a position is padding."""
        return ProjectionInputs(hidden_states)

    def values(self, v: Tensor, x: ProjectionInputs, first_value: FirstValue | None) -> Tensor:
        """The values that the rule reads [B, T, H, V]."""
        return v

    def writes(self, k: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(keys as they are written [B, T, H, K], the rule's inputs by argument name), given the gates."""
        return k, gates

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
        options, (batch, tokens, _) = self.options, hidden_states.shape
        padded = self._padded(padding_mask, batch, tokens)
        x = self.inputs(hidden_states, padded, cu_seqlens, state)
        q, k, v = self.q_proj(x["q_proj"]), self.k_proj(x["k_proj"]), self.v_proj(x["v_proj"])
        q, k = q.unflatten(-1, (-1, options.head_dim)), k.unflatten(-1, (-1, options.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if options.rotary == "keep" and rotary is not None:
            q, k = ops.apply_rotary(q, *rotary), ops.apply_rotary(k, *rotary)
        q, k = q.flatten(-2).to(v.dtype), k.flatten(-2).to(v.dtype)
        if padded is not None:
            q, k, v = (y.masked_fill(padded, 0) for y in (q, k, v))
        q, k, v = self._convolve(q, k, v, cu_seqlens, state)
        if options.activation == "silu":
            v = F.silu(v)
            if not options.l2_norm:  # which takes SiLU along
                q, k = F.silu(q), F.silu(k)
        gates = self.gates(x)
        if padded is not None:
            # After the convolution a padded position may be non-zero again only for right padding; gates decide alone.
            k, v = k.masked_fill(padded, 0), v.masked_fill(padded, 0)
            gates = {
                name: gate.masked_fill(padded.reshape(batch, tokens, *[1] * (gate.dim() - 2)), 0)
                for name, gate in gates.items()
            }
        q, k = q.unflatten(-1, (-1, options.head_dim)), k.unflatten(-1, (-1, options.head_dim))
        v = v.unflatten(-1, (-1, options.value_head_dim))
        if options.l2_norm:
            q, k = (ops.l2_normalize(y, activation=options.activation) for y in (q, k))
        if k.shape[2] != options.num_heads:
            k, v = (y.repeat_interleave(options.num_heads // y.shape[2], dim=2) for y in (k, v))
        v = self.values(v, x, first_value)
        k, inputs = self.writes(k, gates)
        out = self._rule(q, k, v, inputs, cu_seqlens, state)
        if state is not None:
            state.seen += tokens
        return self.o_proj(self._gated(out, x).flatten(-2)), state

    def _padded(self, padding_mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
        """[B, T, 1] true where a position is padding."""
        if padding_mask is None:
            return None
        if padding_mask.dim() != 2 or padding_mask.shape[0] != batch or padding_mask.shape[1] < tokens:
            raise ValueError(
                f"{self.kind}: padding_mask must be [{batch}, {tokens}] (or cover earlier positions too); "
                f"got {list(padding_mask.shape)}"
            )
        return padding_mask[:, -tokens:].logical_not().unsqueeze(-1)

    def _convolve(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.q_conv1d is None or self.k_conv1d is None or self.v_conv1d is None:
            return q, k, v
        streams, layers = (q, k, v), (self.q_conv1d, self.k_conv1d, self.v_conv1d)

        def convolved(y: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
            rows = y if cu_seqlens is None else y.reshape(1, -1, y.shape[2])
            return ops.short_convolution(rows, weight.to(y.dtype), state=past, cu_seqlens=cu_seqlens).reshape(y.shape)

        if state is None:
            q, k, v = (convolved(y, layer.weight.squeeze(1), None) for y, layer in zip(streams, layers, strict=True))
            return q, k, v
        x = torch.cat(streams, dim=-1)
        width = self.options.short_convolution
        # A copy: a Transformers cache writes the new inputs into the same memory.
        past = state.convolution
        past = x.new_zeros(x.shape[0], x.shape[2], width - 1) if past is None else past.to(x.dtype, copy=True)
        state.convolution = torch.cat([past, x.transpose(1, 2)], dim=-1)[..., -(width - 1) :]
        weight = torch.cat([layer.weight for layer in layers]).squeeze(1)
        x = convolved(x, weight, past if cu_seqlens is None else None)  # documents begin anew
        return x.split([y.shape[-1] for y in streams], dim=-1)

    def _rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: dict[str, Tensor],
        cu_seqlens: Tensor | None,
        state: MixerState | None,
    ) -> Tensor:
        rule = type(self)
        past = None if state is None else state.recurrent
        if state is not None and past is not None and q.shape[1] == 1 and not torch.is_grad_enabled():
            out = rule.step_rule(q, k, v, **inputs, state=past)
            state.recurrent = past
            return out
        shape = v.shape
        if cu_seqlens is not None:
            q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
            inputs = {name: x.flatten(0, 1).unsqueeze(0) for name, x in inputs.items()}
        out, final = rule.chunk_rule(
            q, k, v, **inputs, initial_state=past, output_final_state=state is not None, cu_seqlens=cu_seqlens
        )
        if state is not None:
            state.recurrent = final
        return out.reshape(shape)

    def _gate_projection(self, outputs: int) -> nn.Module:
        hidden, rank = self.options.hidden_size, self.options.output_gate_low_rank_dim
        if not rank:
            return nn.Linear(hidden, outputs, bias=False)
        inner = "sigmoid" if self.options.gate_activation == "inner_sigmoid" else "none"
        return LowRank(hidden, rank, outputs, activation=inner)

    def _output_norm(self) -> RMSNorm | HeadGroupNorm:
        return RMSNorm(self.options.value_head_dim, self.options.norm_eps)

    def _gated(self, out: Tensor, x: ProjectionInputs) -> Tensor:
        gate = None if self.g_proj is None else self.g_proj(x["g_proj"]).view_as(out)
        activation = self.options.gate_activation
        if isinstance(self.o_norm, RMSNorm) and gate is not None and activation == "silu":
            return ops.gated_rms_norm(out, gate, self.o_norm.weight, self.o_norm.eps)
        out = out if self.o_norm is None else self.o_norm(out)
        if gate is None or activation == "inner_sigmoid":
            return out if gate is None else out * gate
        return out * (gate.sigmoid() if activation == "sigmoid" else F.silu(gate))
