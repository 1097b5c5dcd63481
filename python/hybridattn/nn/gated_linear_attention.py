"""GatedLinearAttention: the additive rule under a data-dependent decay per channel.

Shapes: B batch, T tokens, H heads, K key dim, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridattn import ops
from hybridattn.nn.linear_attention import LinearAttention
from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.options import GatedLinearAttentionOptions
from hybridattn.nn.token_shift import ProjectionInputs


class GatedLinearAttention(LinearAttention):
    """S = diag(e^g) S + k v^T with g = logsigmoid(gk_proj x) / gate_logit_normalizer, gk_proj of low rank.

    Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635.
    """

    kind = "gla"
    options_type = GatedLinearAttentionOptions
    options: GatedLinearAttentionOptions
    chunk_rule = ops.chunk_gla
    step_rule = ops.step_gla

    def __init__(self, options: GatedLinearAttentionOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        channels = options.num_heads * options.head_dim
        self.gk_proj = LowRank(options.hidden_size, options.gate_low_rank_dim, channels, bias=True)

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        raw = self.gk_proj(x["gk_proj"]).unflatten(-1, (-1, self.options.head_dim))
        decay = F.logsigmoid(raw.to(torch.promote_types(raw.dtype, torch.float32)))
        return {"g": decay / self.options.gate_logit_normalizer}
