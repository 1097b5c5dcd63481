"""Lightning: additive linear attention with a fixed decay per head.

Shapes: B batch, T tokens, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hybridattn import ops
from hybridattn.nn.linear_attention import LinearAttention
from hybridattn.nn.options import LightningOptions
from hybridattn.nn.token_shift import ProjectionInputs


def decay_slopes(heads: int, family: str) -> list[float]:
    """Log decay per token of each head, all < 0.

    "lightning": -2^(-8 h / H), h = 1..H, the ALiBi slopes that Lightning Attention uses (Qin et al., arXiv 2401.04658;
    MiniMax-01, arXiv 2501.08313). "retnet": log(1 - 2^(-5 - h)), h = 0..H-1 (Sun et al., arXiv 2307.08621, eq. 8).
    """
    if family == "lightning":
        return [-(2.0 ** (-8.0 * (head + 1) / heads)) for head in range(heads)]
    return [math.log1p(-(2.0 ** (-5.0 - head))) for head in range(heads)]


class Lightning(LinearAttention):
    """S = e^(g_h) S + k v^T with g_h fixed by the head's index."""

    kind = "lightning"
    options_type = LightningOptions
    options: LightningOptions
    chunk_rule = ops.chunk_lightning
    step_rule = ops.step_lightning

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        hidden_states = x.hidden_states
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        slopes = decay_slopes(self.options.num_heads, self.options.decay_slopes)
        decay = torch.tensor(slopes, dtype=dtype, device=hidden_states.device)
        return {"g": decay.expand(*hidden_states.shape[:2], -1)}
