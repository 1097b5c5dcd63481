"""Losses from hidden states against the same composed in torch, with all logits.

Letters: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compiled import Compiled
from benchmarks.registry import Contenders, Goal, Work, benchmark
from hybridattn import ops


def eager_kl(student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    """KL(teacher || student) per token, averaged, as one writes it in torch."""
    student = F.log_softmax(F.linear(student_hidden, student_head), -1)
    with torch.no_grad():
        teacher = F.log_softmax(F.linear(teacher_hidden, teacher_head), -1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def bound(N: int, D: int, V: int, dtype: torch.dtype) -> dict[str, float]:
    """MiB by part: inputs, results, and one chunk of student and teacher logits."""
    chunk = min(N, max(16, (8 << 20) // V, D // 4))  # the op's own choice
    floats = {"inputs": 2 * (N + V) * D, "gradients": (N + V) * D, "logits of a chunk, twice": 2 * chunk * V}
    return {name: round(count * dtype.itemsize / 2**20, 4) for name, count in floats.items()}


PRODUCTS = "its matrix products by torch"
GOALS = [
    Goal("torch eager", 1.4, where={"dtype": "float32"}),
    Goal("torch compiled", 1.1, where={"dtype": "float32"}),
    Goal("torch eager", 2.0, where={"dtype": "bfloat16", "amx": True}),
    Goal("torch compiled", 1.5, where={"dtype": "bfloat16", "amx": True}),
    Goal("memory bound", 1.0, "memory"),
]


def linear_kl_work(N: int, D: int, V: int) -> Work:
    """Both models' logits, and the gradients of hidden states and head."""
    return Work(flops=4 * 2 * N * D * V, tokens=N)


@benchmark(
    "linear_kl_divergence/forward_backward",
    cases=[{"N": 512, "D": 1024, "V": 32000}],
    tiny={"N": 24, "D": 8, "V": 40},
    dtypes=("float32", "bfloat16"),
    goals=GOALS,
    work=linear_kl_work,
    memory_bound=bound,
    rounds=5,
    other_work=(PRODUCTS,),
)
def linear_kl(N: int, D: int, V: int, dtype: torch.dtype) -> Contenders:
    """KL of student and teacher logits with the gradients of the student's hidden states and head."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(N, D, generator=generator).to(dtype) for _ in range(2)]
    heads = [torch.randn(V, D, generator=generator).mul_(D**-0.5).to(dtype) for _ in range(2)]
    student = [hidden[0].requires_grad_(), heads[0].requires_grad_()]

    def gradients(loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(*student, hidden[1], heads[1]), student)

    def aten(*given: Tensor) -> Tensor:
        return ops.linear_kl_divergence(*given, backend="aten")

    def products() -> object:
        """The four matrix products alone."""
        with torch.no_grad():
            logits = student[0] @ student[1].T
            teacher = hidden[1] @ heads[1].T
            return logits @ student[1], logits.T @ student[0], teacher

    return {
        "hybridattn": lambda: gradients(ops.linear_kl_divergence),
        "torch eager": lambda: gradients(eager_kl),
        "torch compiled": Compiled(eager_kl, gradients),
        "own ATen backend": lambda: gradients(aten),
        PRODUCTS: products,
    }


@benchmark(
    "linear_kl_divergence/large_vocabulary",
    cases=[{"N": 512, "D": 1024, "V": 150000}],
    quick=[{"N": 128, "D": 1024, "V": 150000}],
    tiny={"N": 24, "D": 8, "V": 40},
    threads=(2,),
    dtypes=("float32", "bfloat16"),
    goals=GOALS,
    work=linear_kl_work,
    memory_bound=bound,
    rounds=3,
    other_work=(PRODUCTS,),
)
def large_vocabulary(N: int, D: int, V: int, dtype: torch.dtype) -> Contenders:
    """The same with a vocabulary whose logits fit no cache."""
    return linear_kl(N, D, V, dtype)
