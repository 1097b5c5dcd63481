"""Linear layers against PyTorch's.

Letters: M rows, K features in, N features out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Contenders, Goal, Work, benchmark
from hybridattn import ops

CASES = [{"M": 2048, "K": 576, "N": 1536}, {"M": 2048, "K": 1024, "N": 1024}, {"M": 256, "K": 1024, "N": 4096}]
TINY = {"M": 24, "K": 8, "N": 40}


def inputs(M: int, K: int, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in ((M, K), (N, K)))


@benchmark(
    "linear/forward",
    cases=CASES,
    tiny=TINY,
    dtypes=("float32", "float64"),
    goals=[Goal("torch eager", 1.0)],
    work=lambda M, K, N: Work(flops=2 * M * K * N),
    memory=False,
)
def forward(M: int, K: int, N: int, dtype: torch.dtype) -> Contenders:
    """A linear layer, forward; hybridattn chooses between its own products and PyTorch's."""
    x, weight = inputs(M, K, N, dtype)
    return {
        "hybridattn": lambda: ops.linear(x, weight),
        "own products": lambda: ops.linear(x, weight, backend="native"),
        "torch eager": lambda: F.linear(x, weight),
    }


@benchmark(
    "linear/forward_backward",
    cases=CASES,
    tiny=TINY,
    dtypes=("float32",),
    goals=[Goal("torch eager", 1.0)],
    work=lambda M, K, N: Work(flops=6 * M * K * N),
    memory=False,
)
def forward_backward(M: int, K: int, N: int, dtype: torch.dtype) -> Contenders:
    """A linear layer with the gradients of x and weight."""
    leaves = [leaf.requires_grad_() for leaf in inputs(M, K, N, dtype)]

    def gradients(linear: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        out = linear(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return {
        "hybridattn": lambda: gradients(ops.linear),
        "own products": lambda: gradients(lambda x, weight: ops.linear(x, weight, backend="native")),
        "torch eager": lambda: gradients(F.linear),
    }
