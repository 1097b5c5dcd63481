"""RAD-RWKV6 and RAD-RWKV7: RWKV's state updates in the place of attention, with its rotary positions and its projections.

Source of both: Goldstein et al., "RADLADS", arXiv 2505.03005: no output norm; instead keys are scaled so that the state's
size does not depend on its decay ("state balancing").

Shapes: B batch, T tokens, H heads, K key dim, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.linear_attention import LinearAttention, LowRank
from hybridattn.nn.options import MixerOptions, Rwkv6Options, Rwkv7Options

LONGEST_STEP = 5.0
"""RWKV-6's log decay is kept above minus this."""
FASTEST_DECAY = math.exp(-0.5)
"""RWKV-7's log decay lies in (-FASTEST_DECAY, 0)."""


def initial_speeds(heads: int, head_dim: int) -> Tensor:
    """[H K] rising over a head's channels from -6 to -1: from a memory of hundreds of tokens to one of a few."""
    return torch.linspace(-6.0, -1.0, head_dim).repeat(heads)


class Rwkv6(LinearAttention):
    """S = diag(w) S + (1 - w) k v^T with w = exp(-exp(w0 + w_lora x)) >= e^-5; w_lora starts at 0.

    Source: Peng et al., "Eagle and Finch", arXiv 2404.05892, without its bonus and token shift.
    """

    kind = "rwkv6"
    options_type: ClassVar[type[MixerOptions]] = Rwkv6Options
    options: Rwkv6Options
    keep_in_fp32: ClassVar[tuple[str, ...]] = ("w0",)
    chunk_rule: ClassVar[Callable[..., Any]] = ops.chunk_gla
    step_rule: ClassVar[Callable[..., Any]] = ops.step_gla

    def __init__(self, options: Rwkv6Options, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        channels = options.num_heads * options.head_dim
        self.w_lora = LowRank(options.hidden_size, options.gate_low_rank_dim, channels, tanh=True)
        nn.init.zeros_(self.w_lora.up.weight)
        self.w0 = nn.Parameter(initial_speeds(options.num_heads, options.head_dim))

    def _per_channel(self, bias: Tensor, projection: LowRank, hidden_states: Tensor) -> Tensor:
        """bias + projection(x) [B, T, H, K], fp32 or wider."""
        raw = projection(hidden_states)
        dtype = torch.promote_types(raw.dtype, torch.float32)
        return (bias.to(dtype) + raw.to(dtype)).unflatten(-1, (-1, self.options.head_dim))

    def gates(self, hidden_states: Tensor) -> dict[str, Tensor]:
        speed = self._per_channel(self.w0, self.w_lora, hidden_states)
        return {"g": -speed.clamp_max(math.log(LONGEST_STEP)).exp()}

    def writes(self, k: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.options.state_balancing:
            k = (k * -torch.expm1(gates["g"])).to(k.dtype)
        return k, gates


class Rwkv7(Rwkv6):
    """S = diag(w) S - (a kk) (kk^T S) + (1 - w + a) k v^T, kk = k / |k|; w = exp(-e^-0.5 sigmoid(w0 + w_lora x)) and the
    in-context learning rate a = sigmoid(a0 + a_lora x), per channel; both projections of low rank start at 0.

    Source: Peng et al., "RWKV-7 Goose", arXiv 2503.14456, without its bonus, token shift and value residual.
    """

    kind = "rwkv7"
    options_type = Rwkv7Options
    options: Rwkv7Options
    keep_in_fp32 = ("w0", "a0")
    chunk_rule = ops.chunk_dplr_delta_rule
    step_rule = ops.step_dplr_delta_rule

    def __init__(self, options: Rwkv7Options, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        channels = options.num_heads * options.head_dim
        self.a_lora = LowRank(options.hidden_size, options.rate_low_rank_dim, channels)
        nn.init.zeros_(self.a_lora.up.weight)
        self.a0 = nn.Parameter(torch.zeros(channels))

    def gates(self, hidden_states: Tensor) -> dict[str, Tensor]:
        speed = self._per_channel(self.w0, self.w_lora, hidden_states)
        rate = self._per_channel(self.a0, self.a_lora, hidden_states)
        return {"g": -FASTEST_DECAY * speed.sigmoid(), "rate": rate.sigmoid()}

    def writes(self, k: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        decay, rate = gates["g"], gates["rate"]
        removed = ops.l2_normalize(k)
        if self.options.state_balancing:
            k = (k * (rate - torch.expm1(decay))).to(k.dtype)
        return k, {"g": decay, "a": -removed, "b": (removed * rate).to(removed.dtype)}
