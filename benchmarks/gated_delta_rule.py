"""The gated delta rule against Transformers' torch functions (what a CPU user has without this library), against this
library's composition of ATen ops, and on every instruction set of the machine.

Letters: B batch, T tokens, H heads, D key and value dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.compiled import Compiled
from benchmarks.registry import Contenders, Goal, benchmark
from benchmarks.rule_inputs import Rule, inputs, output_gradient, rule_work
from hybridattn import ops

OWN_FP32 = "hybridattn, fp32"

SHAPES: dict[str, Any] = {
    "cases": [
        {"B": 1, "T": 256, "H": 4, "D": 64},
        {"B": 1, "T": 1024, "H": 16, "D": 64},
        {"B": 1, "T": 1024, "H": 16, "D": 128},
    ],
    "quick": [{"B": 1, "T": 1024, "H": 16, "D": 128}],
    "tiny": {"B": 1, "T": 96, "H": 2, "D": 16},
    "dtypes": ("float32", "bfloat16"),
    "other_work": (OWN_FP32,),
}
PORTABLE_LIMIT = 256 * 4 * 64
"""B T H D up to which the portable set takes part: it is an order of magnitude slower."""


def with_instruction_set(name: str) -> Rule:
    """The native chunked gated delta rule with one instruction set."""

    def rule(*given: Tensor) -> tuple[Tensor, Tensor | None]:
        with ops.use_instruction_set(name):
            return ops.chunk_gated_delta_rule(*given, backend="native")

    return rule


def with_aten(*given: Tensor) -> tuple[Tensor, Tensor | None]:
    return ops.chunk_gated_delta_rule(*given, backend="aten")


def contenders(given: list[Tensor], run: Callable[[Rule, list[Tensor]], object]) -> Contenders:
    """Everybody who computes this rule; `run` makes one call of a rule on given tensors."""

    def with_rule(rule: Rule, tensors: list[Tensor] = given) -> Callable[[], object]:
        return lambda: run(rule, tensors)

    found: Contenders = {
        "hybridattn": with_rule(ops.chunk_gated_delta_rule),
        "transformers": with_rule(torch_chunk_gated_delta_rule),
    }
    # Compiling their loop over chunks takes minutes: it is done for the shape of the goals, on all threads.
    if given[0].shape[-1] == 128 and torch.get_num_threads() > 1:
        found["transformers, compiled"] = Compiled(torch_chunk_gated_delta_rule, lambda rule: run(rule, given))
    found["own ATen backend"] = with_rule(with_aten)
    for name in ops.instruction_sets()[:-1]:
        if name != "portable" or given[0].numel() <= PORTABLE_LIMIT:
            found[f"own {name} set"] = with_rule(with_instruction_set(name))
    if given[0].dtype == torch.bfloat16:
        wide = [x.detach().float().requires_grad_(x.requires_grad) for x in given]
        found[OWN_FP32] = with_rule(ops.chunk_gated_delta_rule, wide)
    return found


def forward_call(rule: Rule, given: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return rule(*given)[0]


def exact_forward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Tensor:
    return forward_call(ops.chunk_gated_delta_rule, [x.double() for x in inputs(B, T, H, D, dtype)])


@benchmark(
    "chunk_gated_delta_rule/forward",
    goals=[
        Goal("transformers", 6.0, where={"dtype": "float32"}),
        Goal("transformers, compiled", 4.0, where={"dtype": "float32"}),
        Goal("fp32_gemm", 0.8, "share", where={"dtype": "float32", "D": 128}),
        Goal("transformers", 10.0, where={"dtype": "bfloat16", "amx": True}),
        Goal(OWN_FP32, 1.4, where={"dtype": "bfloat16", "amx": False, "D": 128}),
    ],
    work=rule_work("gated_delta_rule", backward=False),
    exact=exact_forward,
    **SHAPES,
)
def forward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule, forward without gradient."""
    return contenders(inputs(B, T, H, D, dtype), forward_call)


def gradients_call(rule: Rule, given: list[Tensor], grad_out: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(rule(*given)[0], given, grad_out.to(given[0].dtype))


def exact_gradients(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    given = [x.double().requires_grad_() for x in inputs(B, T, H, D, dtype)]
    return gradients_call(ops.chunk_gated_delta_rule, given, output_gradient(B, T, H, D, dtype))


@benchmark(
    "chunk_gated_delta_rule/forward_backward",
    goals=[
        Goal("transformers", 7.0, where={"dtype": "float32"}),
        Goal("transformers, compiled", 5.0, where={"dtype": "float32"}),
        Goal("transformers", 4.0, "memory", where={"dtype": "float32"}),
        Goal("transformers", 12.0, where={"dtype": "bfloat16", "amx": True}),
    ],
    work=rule_work("gated_delta_rule", backward=True),
    exact=exact_gradients,
    **SHAPES,
)
def forward_backward(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """The gated delta rule with the gradients of q, k, v, g and beta."""
    grad_out = output_gradient(B, T, H, D, dtype)
    given = [x.requires_grad_() for x in inputs(B, T, H, D, dtype)]
    return contenders(given, lambda rule, tensors: gradients_call(rule, tensors, grad_out))


SLICES = "its slices of 1,024, one after another"
ALONE = "1,024 tokens, as many times"


@benchmark(
    "chunk_gated_delta_rule/long",
    cases=[{"B": 1, "T": 65536, "H": 4, "D": 128}],
    quick=[{"B": 1, "T": 16384, "H": 4, "D": 128}],
    tiny={"B": 1, "T": 2048, "H": 1, "D": 16},
    threads=(2,),
    rounds=7,
    goals=[Goal(ALONE, 1 / 1.05)],
    work=rule_work("gated_delta_rule", backward=False),
    memory=False,
    other_work=(ALONE, SLICES),
)
def long(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """A long sequence against as many tokens in short ones: the time per token must not grow."""
    given, short = inputs(B, T, H, D, dtype), inputs(B, 1024, H, D, dtype)
    slices = [[x[:, start : start + 1024] for x in given] for start in range(0, T, 1024)]

    def each(sequences: list[list[Tensor]]) -> Callable[[], object]:
        def run() -> None:
            for sequence in sequences:
                forward_call(ops.chunk_gated_delta_rule, sequence)

        return run

    return {
        "hybridattn": lambda: forward_call(ops.chunk_gated_delta_rule, given),
        ALONE: each([short] * len(slices)),
        SLICES: each(slices),
    }
