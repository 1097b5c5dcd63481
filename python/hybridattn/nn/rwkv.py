"""RAD-RWKV6 and RAD-RWKV7: RWKV's state updates in the place of attention, with its rotary positions and its projections.

Source of both: Goldstein et al., "RADLADS", arXiv 2505.03005: no output norm; instead keys are scaled so that the state's
size does not depend on its decay ("state balancing").

Shapes: B batch, T tokens, H heads, K key dim, V value dim, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.first_value import FirstValue
from hybridattn.nn.linear_attention import LinearAttention
from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.norm import HeadGroupNorm, RMSNorm
from hybridattn.nn.options import MixerOptions, Rwkv6Options, Rwkv7Options
from hybridattn.nn.state import MixerState
from hybridattn.nn.token_shift import ProjectionInputs, TokenShift, previous_tokens

LONGEST_STEP = 5.0
"""RWKV-6's log decay is kept above minus this."""
FASTEST_DECAY = math.exp(-0.5)
"""RWKV-7's log decay lies in (-FASTEST_DECAY, 0)."""
GROUP_NORM_EPS = 1e-5
"""RWKV's is V times this on an output without the scale K^(-1/2), which for K = V is the same."""


def initial_speeds(heads: int, head_dim: int) -> Tensor:
    """[H K] rising over a head's channels from -6 to -1: from a memory of hundreds of tokens to one of a few."""
    return torch.linspace(-6.0, -1.0, head_dim).repeat(heads)


class Rwkv6(LinearAttention):
    """S = diag(w) S + (1 - w) k v^T with w = exp(-exp(w0 + w_lora x)) >= e^-5; w_lora starts at 0.

    Source: Peng et al., "Eagle and Finch", arXiv 2404.05892, without its bonus.

    Options of both kinds, without effect at first: `token_shift` (token_shift.py), and `value_residual`, which makes the
    values v + v_scale * sigmoid(v0 + v_lora x) * (first - v), `first` being the values of the model's first mixer.
    Published models have v_scale = 1 (RWKV-7, arXiv 2503.14456); here it is learned, from 0.
    """

    kind = "rwkv6"
    options_type: ClassVar[type[MixerOptions]] = Rwkv6Options
    options: Rwkv6Options
    keep_in_fp32: ClassVar[tuple[str, ...]] = ("w0",)
    chunk_rule: ClassVar[Callable[..., Any]] = ops.chunk_gla
    step_rule: ClassVar[Callable[..., Any]] = ops.step_gla
    shifted: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "g_proj", "w_lora")
    """The projections that a token shift mixes for, where the mixer has them."""

    def __init__(self, options: Rwkv6Options, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        hidden, heads = options.hidden_size, options.num_heads
        keys, values = heads * options.head_dim, heads * options.value_head_dim
        self.w_lora = LowRank(hidden, options.gate_low_rank_dim, keys, activation="tanh", from_zero=True)
        self.w0 = nn.Parameter(initial_speeds(heads, options.head_dim))
        self.token_shift: TokenShift | None = None
        if options.token_shift != "none":
            names = [name for name in self.shifted if name != "g_proj" or options.output_gate]
            self.token_shift = TokenShift(options.token_shift, hidden, options.shift_low_rank_dim, names)
        self.v_lora: LowRank | None = None
        if options.value_residual:
            self.v_lora = LowRank(hidden, options.value_low_rank_dim, values, from_zero=True)
            self.v0, self.v_scale = nn.Parameter(torch.zeros(values)), nn.Parameter(torch.zeros(values))

    def _per_channel(self, bias: Tensor, projection: LowRank, x: Tensor) -> Tensor:
        """bias + projection(x) [B, T, H, K or V], fp32 or wider."""
        raw = projection(x)
        dtype = torch.promote_types(raw.dtype, torch.float32)
        return (bias.to(dtype) + raw.to(dtype)).unflatten(-1, (self.options.num_heads, -1))

    def _output_norm(self) -> RMSNorm | HeadGroupNorm:
        if self.options.group_norm:
            return HeadGroupNorm(self.options.num_heads, self.options.value_head_dim, GROUP_NORM_EPS)
        return super()._output_norm()

    def inputs(
        self, hidden_states: Tensor, padded: Tensor | None, cu_seqlens: Tensor | None, state: MixerState | None
    ) -> ProjectionInputs:
        if self.token_shift is None:
            return ProjectionInputs(hidden_states)
        return self.token_shift(hidden_states, previous_tokens(hidden_states, padded, cu_seqlens, state))

    def values(self, v: Tensor, x: ProjectionInputs, first_value: FirstValue | None) -> Tensor:
        first = None if self.v_lora is None or first_value is None else first_value.seen_by(self, v)
        if first is None or self.v_lora is None:
            return v
        opened = self._per_channel(self.v0, self.v_lora, x["v_proj"]).sigmoid()
        share = self.v_scale.to(opened).view(opened.shape[-2:]) * opened
        return torch.addcmul(v, share.to(v.dtype), first - v)

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        speed = self._per_channel(self.w0, self.w_lora, x["w_lora"])
        return {"g": -speed.clamp_max(math.log(LONGEST_STEP)).exp()}

    def writes(self, k: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.options.state_balancing:
            k = (k * -torch.expm1(gates["g"])).to(k.dtype)
        return k, gates


class Rwkv7(Rwkv6):
    """S = diag(w) S - (a kk) (kk^T S) + (1 - w + a) k v^T, kk = k / |k|; w = exp(-e^-0.5 sigmoid(w0 + w_lora x)) and the
    in-context learning rate a = sigmoid(a0 + a_lora x), per channel; both projections of low rank start at 0.

    Source: Peng et al., "RWKV-7 Goose", arXiv 2503.14456, without its bonus.
    """

    kind = "rwkv7"
    options_type = Rwkv7Options
    options: Rwkv7Options
    keep_in_fp32 = ("w0", "a0")
    chunk_rule = ops.chunk_dplr_delta_rule
    step_rule = ops.step_dplr_delta_rule
    shifted = (*Rwkv6.shifted, "a_lora")

    def __init__(self, options: Rwkv7Options, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        channels = options.num_heads * options.head_dim
        self.a_lora = LowRank(options.hidden_size, options.rate_low_rank_dim, channels, from_zero=True)
        self.a0 = nn.Parameter(torch.zeros(channels))

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        speed = self._per_channel(self.w0, self.w_lora, x["w_lora"])
        rate = self._per_channel(self.a0, self.a_lora, x["a_lora"])
        return {"g": -FASTEST_DECAY * speed.sigmoid(), "rate": rate.sigmoid()}

    def writes(self, k: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        decay, rate = gates["g"], gates["rate"]
        removed = ops.l2_normalize(k)
        if self.options.state_balancing:
            k = (k * (rate - torch.expm1(decay))).to(k.dtype)
        return k, {"g": decay, "a": -removed, "b": (removed * rate).to(removed.dtype)}
