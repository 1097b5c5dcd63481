"""What stands around a rule in a layer: norms, rotary embedding, short convolution, gates; against the same written in torch.

Letters: T tokens, H heads, D dimensions of a head. All is bound by memory: each tensor should be read and written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compiled import Compiled
from benchmarks.registry import Contenders, Goal, Work, benchmark
from hybridattn import ops

EPSILON = 1e-6

Results = tuple[Tensor, ...]
Function = Callable[..., Results]

SHAPES: dict[str, Any] = {
    "cases": [{"T": 2048, "H": 16, "D": 128}],
    "tiny": {"T": 12, "H": 2, "D": 8},
    "dtypes": ("float32", "bfloat16"),
    "memory": False,
    "goals": [Goal("torch eager", 3.0), Goal("torch compiled", 1.0)],
}


def eager_rms_norm(x: Tensor, weight: Tensor) -> Results:
    wide = x.float()
    return (weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype),)


def eager_gated_rms_norm(x: Tensor, weight: Tensor, gate: Tensor) -> Results:
    return ((eager_rms_norm(x, weight)[0].float() * F.silu(gate.float())).to(x.dtype),)


def eager_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Results:
    first, second = x.chunk(2, -1)
    return (x * cos.unsqueeze(2) + torch.cat((-second, first), -1) * sin.unsqueeze(2),)


def eager_convolution(x: Tensor, weight: Tensor) -> Results:
    channels, width = weight.shape
    out = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), padding=width - 1, groups=channels)
    return (out[..., : x.shape[1]].transpose(1, 2),)


def eager_l2_norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)).to(x.dtype)


def gates(a: Tensor, b: Tensor, rate: Tensor, bias: Tensor) -> Results:
    return -rate.exp() * F.softplus(a.float() + bias), b.float().sigmoid()


def eager_rule_inputs(q: Tensor, k: Tensor, v: Tensor, *raw_gates: Tensor) -> Results:
    return eager_l2_norm(F.silu(q)), eager_l2_norm(F.silu(k)), F.silu(v), *gates(*raw_gates)


def own_rule_inputs(q: Tensor, k: Tensor, v: Tensor, *raw_gates: Tensor) -> Results:
    q, k = (ops.l2_normalize(x, EPSILON, activation="silu") for x in (q, k))
    return q, k, F.silu(v), *gates(*raw_gates)


def contenders(own: Function, eager: Function, given: list[Tensor], backward: bool) -> Contenders:
    """`given` are the inputs of both functions; gradients are those of the floating ones that require them."""
    wanted = [x for x in given if x.requires_grad]

    def run(function: Callable[..., Any]) -> Results:
        if not backward:
            with torch.no_grad():
                return function(*given)
        results = function(*given)
        return torch.autograd.grad(results, wanted, [torch.ones_like(x) for x in results])

    return {
        "hybridattn": lambda: run(own),
        "torch eager": lambda: run(eager),
        "torch compiled": Compiled(eager, run),
    }


def rms_norm_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    return [draw(T, H * D), draw(H * D)]


def gated_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    return [draw(T, H, D), draw(D), draw(T, H, D)]


def rotary_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    angles = torch.outer(torch.arange(T), 10_000.0 ** -(torch.arange(0, D, 2) / D)).repeat(1, 2)[None]
    x = draw(1, T, H, D)
    return [x, angles.cos().to(x.dtype), angles.sin().to(x.dtype)]


def convolution_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    return [draw(1, T, H * D), draw(H * D, 4)]


def rule_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    return [*(draw(1, T, H, D) for _ in range(3)), draw(1, T, H), draw(1, T, H), draw(H).float(), draw(H).float()]


def own_rms_norm(x: Tensor, weight: Tensor) -> Results:
    return (ops.rms_norm(x, weight, EPSILON),)


def own_gated_rms_norm(x: Tensor, weight: Tensor, gate: Tensor) -> Results:
    return (ops.gated_rms_norm(x, gate, weight, EPSILON),)


def own_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Results:
    return (ops.apply_rotary(x, cos, sin),)


def swiglu_inputs(draw: Callable[..., Tensor], T: int, H: int, D: int) -> list[Tensor]:
    return [draw(T, H * D), draw(T, H * D)]


def eager_swiglu(x: Tensor, y: Tensor) -> Results:
    return (F.silu(x) * y,)


def own_swiglu(x: Tensor, y: Tensor) -> Results:
    return (ops.swiglu(x, y),)


def own_convolution(x: Tensor, weight: Tensor) -> Results:
    return (ops.short_convolution(x, weight),)


# Op -> its function here and in torch, its inputs, and the tensors of T H D elements that it must read or write, forward and
# backward.
NEIGHBOURS: dict[str, tuple[Function, Function, Callable[..., list[Tensor]], tuple[int, int]]] = {
    "rms_norm": (own_rms_norm, eager_rms_norm, rms_norm_inputs, (2, 3)),
    "gated_rms_norm": (own_gated_rms_norm, eager_gated_rms_norm, gated_inputs, (3, 5)),
    "apply_rotary": (own_rotary, eager_rotary, rotary_inputs, (2, 2)),
    "swiglu": (own_swiglu, eager_swiglu, swiglu_inputs, (3, 5)),
    "short_convolution": (own_convolution, eager_convolution, convolution_inputs, (2, 3)),
    "rule_inputs": (own_rule_inputs, eager_rule_inputs, rule_inputs, (6, 9)),
}
ABOUT = {
    "rms_norm": "RMS norm over T x (H D)",
    "gated_rms_norm": "RMS norm of each head, times SiLU of a gate",
    "apply_rotary": "Rotary embedding",
    "swiglu": "SiLU of one of two tensors, times the other",
    "short_convolution": "Causal depthwise convolution of four tokens over H D channels",
    "rule_inputs": "SiLU and L2 norm of q and k, SiLU of v, decay and write strength: what a Gated DeltaNet feeds its rule",
}


def register(op: str, backward: bool) -> None:
    own, eager, inputs, passes = NEIGHBOURS[op]
    tensors = sum(passes) if backward else passes[0]

    def build(T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_(backward)

        return contenders(own, eager, inputs(draw, T, H, D), backward)

    def work(T: int, H: int, D: int) -> Work:
        return Work(elements=tensors * T * H * D)

    build.__doc__ = f"{ABOUT[op]}, {'forward and backward' if backward else 'forward'}."
    benchmark(f"{op}/forward{'_backward' * backward}", work=work, **SHAPES)(build)


for _op in NEIGHBOURS:
    for _backward in (False, True):
        register(_op, _backward)
