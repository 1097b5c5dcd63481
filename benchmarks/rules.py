"""Linear-attention rules against Transformers' torch functions (what a CPU user has without this library) and against this
library's own composition of ATen ops.

Letters: B batch, T tokens, H heads, D key and value dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from benchmarks.registry import Contenders, benchmark
from hybridattn import ops

Rule = Callable[..., tuple[Tensor, Tensor | None]]


def with_instruction_set(name: str) -> Rule:
    """The native chunked gated delta rule with one instruction set."""

    def rule(*given: Tensor) -> tuple[Tensor, Tensor | None]:
        with ops.use_instruction_set(name):
            return ops.chunk_gated_delta_rule(*given, backend="native")

    return rule


def with_aten(*given: Tensor) -> tuple[Tensor, Tensor | None]:
    return ops.chunk_gated_delta_rule(*given, backend="aten")


RULES: dict[str, Rule] = {
    "hybridattn": ops.chunk_gated_delta_rule,
    "transformers": torch_chunk_gated_delta_rule,
    "own ATen backend": with_aten,
    "own AVX2 kernels": with_instruction_set("avx2" if "avx2" in ops.instruction_sets() else "portable"),
}

SHAPES: dict[str, Any] = {
    "cases": [{"B": 1, "T": 1024, "H": 16, "D": 64}, {"B": 1, "T": 1024, "H": 16, "D": 128}],
    "quick": [{"B": 1, "T": 256, "H": 4, "D": 64}],
    "tiny": {"B": 1, "T": 96, "H": 2, "D": 16},
}


def forward_flops(B: int, T: int, H: int, D: int) -> float:
    """Of the solve form with chunks of 64 tokens, full tiles: three products with the state, four inside a chunk."""
    return B * T * H * (3 * 2 * D * D + 4 * 2 * 64 * D)


def forward_backward_flops(B: int, T: int, H: int, D: int) -> float:
    """The forward pass, and backward from saved states: seven products with the state, ten inside a chunk."""
    return forward_flops(B, T, H, D) + B * T * H * (7 * 2 * D * D + 10 * 2 * 64 * D)


def inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [B, T, H, D], g and beta [B, T, H], with keys and gates as a Gated DeltaNet layer has them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (F.silu(torch.randn(B, T, H, D, generator=generator)).to(dtype) for _ in range(3))
    g = -F.softplus(torch.randn(B, T, H, generator=generator))
    beta = torch.rand(B, T, H, generator=generator)
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta.to(dtype)]


@benchmark("chunk_gated_delta_rule/forward", goals={"time": 6.0}, flops=forward_flops, **SHAPES)
def forward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule, forward without gradient."""
    given = inputs(B, T, H, D, dtype)

    def run(rule: Rule) -> Callable[[], object]:
        return torch.no_grad()(lambda: rule(*given)[0])

    return {name: run(rule) for name, rule in RULES.items()}


@benchmark(
    "chunk_gated_delta_rule/forward_backward",
    goals={"time": 7.0, "memory": 4.0},
    flops=forward_backward_flops,
    rounds=7,
    **SHAPES,
)
def forward_backward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule with the gradients of q, k, v, g and beta."""
    given = [x.requires_grad_() for x in inputs(B, T, H, D, dtype)]
    grad_out = torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(1)).to(dtype)

    def run(rule: Rule) -> Callable[[], object]:
        return lambda: torch.autograd.grad(rule(*given)[0], given, grad_out)

    return {name: run(rule) for name, rule in RULES.items()}


@benchmark(
    "chunk_gated_delta_rule/forward_bf16",
    goals={"time": 6.0},
    flops=forward_flops,
    dtype="bfloat16",
    **SHAPES,
)
def forward_bf16(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule on bf16 tensors, fp32 inside, forward without gradient."""
    return forward(B, T, H, D, dtype)


@benchmark(
    "chunk_gated_delta_rule/long",
    cases=[{"B": 1, "T": length, "H": 4, "D": 128} for length in (1024, 8192, 65536)],
    tiny={"B": 1, "T": 96, "H": 2, "D": 16},
    threads=(2,),
    rounds=5,
    flops=forward_flops,
)
def long(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule's forward as the sequence grows."""
    given = inputs(B, T, H, D, dtype)

    def run(rule: Rule) -> Callable[[], object]:
        return torch.no_grad()(lambda: rule(*given)[0])

    return {name: run(RULES[name]) for name in ("hybridattn", "own ATen backend")}


@benchmark(
    "step_gated_delta_rule",
    cases=[{"B": batch, "H": 32, "D": 128} for batch in (1, 8, 32)],
    tiny={"B": 2, "H": 3, "D": 16},
    goals={"time": 5.0},
)
def step(B: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """One token of the gated delta rule: decoding."""
    given = inputs(B, 1, H, D, dtype)
    state = torch.randn(B, H, D, D, generator=torch.Generator().manual_seed(1))

    def run(backend: str) -> Callable[[], object]:
        own = state.clone()
        return lambda: ops.step_gated_delta_rule(*given, state=own, backend=backend)

    own = {"hybridattn": run("native"), "own ATen backend": run("aten")}
    peer = torch.no_grad()(
        lambda: torch_recurrent_gated_delta_rule(*given, initial_state=state, output_final_state=True)[0]
    )
    return own | {"transformers": peer}


SIBLINGS: dict[str, tuple[str, ...]] = {
    "delta_rule": ("beta",),
    "lightning": ("g",),
    "linear_attention": (),
    "gla": ("g",),
    "kda": ("g", "beta"),
    "dplr_delta_rule": ("g", "a", "b"),
}
PER_CHANNEL = ("gla", "kda", "dplr_delta_rule")


def register_sibling(rule: str, gates: tuple[str, ...]) -> None:
    def build(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
        q, k, v, g, beta = inputs(B, T, H, D, dtype)
        if rule in PER_CHANNEL:
            g = (g.unsqueeze(-1) * torch.rand(D)).contiguous()
        known = {"g": g, "beta": beta, "a": -k, "b": k * beta.unsqueeze(-1)}
        named = {"q": q, "k": k, "v": v} | {name: known[name] for name in gates}
        given = {name: x.detach().requires_grad_() for name, x in named.items()}
        op = getattr(ops, f"chunk_{rule}")

        def run(backend: str) -> Callable[[], object]:
            return lambda: torch.autograd.grad(op(**given, backend=backend)[0].sum(), list(given.values()))

        return {"hybridattn": run("native"), "own ATen backend": run("aten")}

    build.__doc__ = f"{rule.replace('_', ' ')}: gradients of every input."
    benchmark(
        f"chunk_{rule}/forward_backward",
        cases=[{"B": 1, "T": 1024, "H": 16, "D": 128}],
        tiny={"B": 1, "T": 96, "H": 2, "D": 16},
        goals={"time": 4.0},
        rounds=7,
    )(build)


for _rule, _gates in SIBLINGS.items():
    register_sibling(_rule, _gates)
