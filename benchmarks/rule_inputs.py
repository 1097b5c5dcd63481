"""What the benchmarks of linear-attention rules share: their inputs and the operations that a rule counts.

Letters: B batch, T tokens, H heads, D key and value dimension. Operations are counted for chunks of 64 tokens, in the form
that corrects values first and solves then, with full tiles; backward from saved states.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Work

Rule = Callable[..., tuple[Tensor, Tensor | None]]

CHUNK = 64

PRODUCTS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "gated_delta_rule": ((3, 4), (7, 10)),
    "delta_rule": ((3, 4), (7, 10)),
    "kda": ((3, 4), (7, 10)),
    "lightning": ((2, 2), (4, 5)),
    "linear_attention": ((2, 2), (4, 5)),
    "gla": ((2, 2), (4, 5)),
}
"""Rule -> products of one token and head in (forward, backward): with the state (D x D), and inside its chunk (C x D)."""


def rule_work(rule: str, backward: bool) -> Callable[..., Work]:
    """Operations of a rule's call, where they are counted, and its tokens times heads."""

    def work(B: int, T: int, H: int, D: int) -> Work:
        if rule not in PRODUCTS:
            return Work(token_heads=B * T * H)
        passes = PRODUCTS[rule] if backward else PRODUCTS[rule][:1]
        flops = sum(2 * D * D * state + 2 * CHUNK * D * inside for state, inside in passes)
        return Work(flops=B * T * H * flops, token_heads=B * T * H)

    return work


def inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [B, T, H, D], g and beta [B, T, H], with keys and gates as a Gated DeltaNet layer has them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (F.silu(torch.randn(B, T, H, D, generator=generator)).to(dtype) for _ in range(3))
    g = -F.softplus(torch.randn(B, T, H, generator=generator))
    beta = torch.rand(B, T, H, generator=generator)
    if dtype == torch.float64:
        g, beta = g.double(), beta.double()
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta.to(dtype)]


def output_gradient(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(1)).to(dtype)
