"""DeltaNet: the delta rule without decay.

Shapes: B batch, T tokens, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridattn import ops
from hybridattn.nn.linear_attention import LinearAttention
from hybridattn.nn.options import DeltaNetOptions, MixerOptions
from hybridattn.nn.token_shift import ProjectionInputs


class DeltaNet(LinearAttention):
    """S += beta k (v - S^T k)^T with beta = sigmoid(b_proj x), doubled when negative eigenvalues are allowed.

    Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule", arXiv 2406.06484; the doubled beta:
    Grazzi et al., arXiv 2411.12537.
    """

    kind = "deltanet"
    options_type: ClassVar[type[MixerOptions]] = DeltaNetOptions
    options: DeltaNetOptions
    chunk_rule: ClassVar[Callable[..., Any]] = ops.chunk_delta_rule
    step_rule: ClassVar[Callable[..., Any]] = ops.step_delta_rule

    def __init__(self, options: DeltaNetOptions, layer_idx: int | None = None) -> None:
        super().__init__(options, layer_idx)
        self.b_proj = nn.Linear(options.hidden_size, options.num_heads, bias=False)

    def gates(self, x: ProjectionInputs) -> dict[str, Tensor]:
        raw = self.b_proj(x["b_proj"])
        beta = raw.to(torch.promote_types(raw.dtype, torch.float32)).sigmoid()
        return {"beta": 2 * beta if self.options.allow_negative_eigenvalues else beta}
