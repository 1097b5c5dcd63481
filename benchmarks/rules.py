"""The chunked gated delta rule against Transformers' torch function: what a CPU user has without this library.

Letters: B batch, T tokens, H heads, D key and value dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.registry import Contenders, benchmark
from hybridattn import ops

Rule = Callable[..., tuple[Tensor, Tensor | None]]

RULES: dict[str, Rule] = {"hybridattn": ops.chunk_gated_delta_rule, "transformers": torch_chunk_gated_delta_rule}

SHAPES: dict[str, Any] = {
    "cases": [{"B": 1, "T": 1024, "H": 16, "D": 64}, {"B": 1, "T": 1024, "H": 16, "D": 128}],
    "quick": [{"B": 1, "T": 256, "H": 4, "D": 64}],
    "tiny": {"B": 1, "T": 96, "H": 2, "D": 16},
}


def inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [B, T, H, D], g and beta [B, T, H], with keys and gates as a Gated DeltaNet layer has them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (F.silu(torch.randn(B, T, H, D, generator=generator)).to(dtype) for _ in range(3))
    g = -F.softplus(torch.randn(B, T, H, generator=generator))
    beta = torch.rand(B, T, H, generator=generator)
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta.to(dtype)]


@benchmark("chunk_gated_delta_rule/forward", goals={"time": 1.0}, **SHAPES)
def forward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule, forward without gradient."""
    given = inputs(B, T, H, D, dtype)

    def run(rule: Rule) -> Callable[[], object]:
        return torch.no_grad()(lambda: rule(*given)[0])

    return {name: run(rule) for name, rule in RULES.items()}


@benchmark("chunk_gated_delta_rule/forward_backward", goals={"time": 1.0, "memory": 2.0}, **SHAPES)
def forward_backward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule with the gradients of q, k, v, g and beta."""
    given = [x.requires_grad_() for x in inputs(B, T, H, D, dtype)]
    grad_out = torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(1)).to(dtype)

    def run(rule: Rule) -> Callable[[], object]:
        return lambda: torch.autograd.grad(rule(*given)[0], given, grad_out)

    return {name: run(rule) for name, rule in RULES.items()}
