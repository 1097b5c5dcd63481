"""KimiDeltaAttention: the delta rule under a data-dependent decay per channel.

Shapes: B batch, T tokens, H heads, K key dim, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.deltanet import DeltaNet
from hybridattn.nn.gated_deltanet import initial_decay
from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.options import KimiDeltaAttentionOptions
from hybridattn.nn.token_shift import ProjectionInputs


class KimiDeltaAttention(DeltaNet):
    """S' = diag(e^g) S, then the delta rule; g = -exp(A_log) softplus(f_proj x + dt_bias) per channel, f_proj of low rank.

    A_log [H] has one rate per head, dt_bias [H K] one step per channel. With `gate_lower_bound` the decay is bounded.
    Source: Kimi Team, "Kimi Linear", arXiv 2510.26692.
    """

    kind = "kda"
    options_type = KimiDeltaAttentionOptions
    options: KimiDeltaAttentionOptions
    keep_in_fp32 = ("A_log", "dt_bias")
    chunk_rule = ops.chunk_kda
    step_rule = ops.step_kda

    def __init__(self, options: KimiDeltaAttentionOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        channels = options.num_heads * options.head_dim
        self.f_proj = LowRank(options.hidden_size, options.gate_low_rank_dim, channels)
        self.A_log = nn.Parameter(initial_decay(options.num_heads)[0].float())
        self.dt_bias = nn.Parameter(initial_decay(channels)[1].float())

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        raw = self.f_proj(x["f_proj"])
        dtype = torch.promote_types(raw.dtype, torch.float32)
        raw = (raw.to(dtype) + self.dt_bias.to(dtype)).unflatten(-1, (-1, self.options.head_dim))
        rate, bound = self.A_log.to(dtype).exp().unsqueeze(-1), self.options.gate_lower_bound
        decay = bound * torch.sigmoid(rate * raw) if bound < 0 else -rate * F.softplus(raw)
        return {"g": decay, **super().gates(x)}
