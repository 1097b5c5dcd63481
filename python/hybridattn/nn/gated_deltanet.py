"""GatedDeltaNet: the delta rule under a data-dependent scalar decay per head.

Shapes: B batch, T tokens, H heads, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.deltanet import DeltaNet
from hybridattn.nn.options import GatedDeltaNetOptions
from hybridattn.nn.token_shift import ProjectionInputs


def initial_decay(heads: int) -> tuple[Tensor, Tensor]:
    """(A_log [H], dt_bias [H]) as Mamba-2 draws them: A ~ U(0, 16), softplus(dt_bias) log-uniform in [0.001, 0.1].

    A is kept above 1e-3, so that its logarithm is finite.
    """
    rate = torch.empty(heads).uniform_(0.0, 16.0).clamp_min(1e-3)
    step = torch.empty(heads).uniform_(-6.907755, -2.302585).exp()
    return rate.log(), step + (-torch.expm1(-step)).log()


class GatedDeltaNet(DeltaNet):
    """S' = e^g S, then the delta rule; g = -exp(A_log) softplus(a_proj x + dt_bias), beta = sigmoid(b_proj x).

    Source: Yang et al., "Gated Delta Networks", arXiv 2412.06464.

    Example:
        >>> mixer = GatedDeltaNet(GatedDeltaNetOptions(hidden_size=64, num_heads=4, num_kv_heads=2, rotary="drop"))
        >>> out, _ = mixer.mix(torch.randn(2, 16, 64))
    """

    kind = "gated_deltanet"
    options_type = GatedDeltaNetOptions
    keep_in_fp32 = ("A_log", "dt_bias")
    chunk_rule = ops.chunk_gated_delta_rule
    step_rule = ops.step_gated_delta_rule

    def __init__(self, options: GatedDeltaNetOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        self.a_proj = nn.Linear(options.hidden_size, options.num_heads, bias=False)
        rate, step = initial_decay(options.num_heads)
        self.A_log, self.dt_bias = nn.Parameter(rate.float()), nn.Parameter(step.float())

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        raw = self.a_proj(x["a_proj"])
        dtype = torch.promote_types(raw.dtype, torch.float32)
        decay = -self.A_log.to(dtype).exp() * F.softplus(raw.to(dtype) + self.dt_bias.to(dtype))
        return {"g": decay, **super().gates(x)}
