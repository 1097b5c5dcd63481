"""Softmax attention: whole sequences, forward and with backward, windows, and one token over a long cache."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from benchmarks.compiled import Compiled
from benchmarks.registry import Contenders, Goal, Parameters, Work, benchmark
from hybridattn import ops

# It is compiled before it is measured; tests compare what it computes as it is.
warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")

PEER = "SDPA, enable_gqa"
COMPILED = "flex_attention, compiled"

WHOLE: list[Parameters] = [
    {"T": 1024, "H": 9, "HKV": 3, "D": 64},
    {"T": 1024, "H": 16, "HKV": 8, "D": 128},
    {"T": 4096, "H": 16, "HKV": 8, "D": 128},
]
TINY: Parameters = {"T": 70, "H": 4, "HKV": 2, "D": 16}
DTYPES = ("float32", "bfloat16")


def tensors(T: int, H: int, HKV: int, D: int, dtype: torch.dtype, queries: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((T if queries is None else queries, H), (T, HKV), (T, HKV))
    return [torch.randn(1, t, h, D, generator=generator).to(dtype) for t, h in shapes]


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


def flex(inputs: list[Tensor], mask: BlockMask) -> Compiled:
    """PyTorch's flex_attention, which on a CPU has no gradients."""
    heads_first = [x.transpose(1, 2) for x in inputs]

    @torch.no_grad()
    def run(attend: Callable[..., object]) -> object:
        out = attend(*heads_first, block_mask=mask, enable_gqa=True)
        return out.transpose(1, 2) if isinstance(out, Tensor) else out

    return Compiled(flex_attention, run)


def causal_work(T: int, H: int, HKV: int, D: int, products: int) -> Work:
    """Half of each product of queries and keys."""
    return Work(flops=products * T * T * D * H, token_heads=T * H, tokens=T)


def stepped(attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Value and every gradient."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)

    def step() -> object:
        out = attend(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, weight)

    return step


@benchmark(
    "softmax_attention/forward",
    cases=WHOLE,
    tiny=TINY,
    quick=WHOLE[:2],
    dtypes=DTYPES,
    goals=[Goal(PEER, 1.5)],
    work=lambda T, H, HKV, D: causal_work(T, H, HKV, D, 2),
)
def forward(T: int, H: int, HKV: int, D: int, dtype: torch.dtype) -> Contenders:
    """Causal, grouped heads, against PyTorch's SDPA with enable_gqa."""
    inputs = tensors(T, H, HKV, D, dtype)
    causal = create_block_mask(lambda b, h, i, j: j <= i, None, None, T, T, device="cpu")
    return {
        "hybridattn": torch.no_grad()(lambda: ops.softmax_attention(*inputs)),
        PEER: torch.no_grad()(lambda: sdpa(*inputs, is_causal=True)),
        COMPILED: flex(inputs, causal),
    }


@benchmark(
    "softmax_attention/forward_backward",
    cases=WHOLE,
    tiny=TINY,
    quick=WHOLE[:2],
    dtypes=DTYPES,
    goals=[Goal(PEER, 1.5)],
    work=lambda T, H, HKV, D: causal_work(T, H, HKV, D, 7),
)
def forward_backward(T: int, H: int, HKV: int, D: int, dtype: torch.dtype) -> Contenders:
    """The same with the gradients of q, k and v."""
    inputs = tensors(T, H, HKV, D, dtype)
    return {
        "hybridattn": stepped(ops.softmax_attention, inputs),
        PEER: stepped(lambda *given: sdpa(*given, is_causal=True), inputs),
    }


@benchmark(
    "softmax_attention/window",
    cases=[{"T": T, "H": 16, "HKV": 8, "D": 128, "window": 512, "sinks": 4} for T in (1024, 8192)],
    tiny=TINY | {"window": 20, "sinks": 2},
    quick=[{"T": 1024, "H": 16, "HKV": 8, "D": 128, "window": 512, "sinks": 4}],
    dtypes=DTYPES,
    goals=[Goal(PEER, 1.5)],
    work=lambda T, H, HKV, D, window, sinks: Work(token_heads=T * H, tokens=T),
)
def window(T: int, H: int, HKV: int, D: int, window: int, sinks: int, dtype: torch.dtype) -> Contenders:
    """Sliding window with sinks, forward, against SDPA with a mask."""
    inputs = tensors(T, H, HKV, D, dtype)
    i, j = torch.arange(T)[:, None], torch.arange(T)
    mask = (j <= i) & ((j > i - window) | (j < sinks))
    blocks = create_block_mask(
        lambda b, h, i, j: (j <= i) & ((j > i - window) | (j < sinks)), None, None, T, T, device="cpu"
    )
    return {
        "hybridattn": torch.no_grad()(lambda: ops.softmax_attention(*inputs, window=window, sinks=sinks)),
        PEER: torch.no_grad()(lambda: sdpa(*inputs, attn_mask=mask)),
        COMPILED: flex(inputs, blocks),
    }


def decode_work(T: int, H: int, HKV: int, D: int) -> Work:
    """Every cached key and value is read once."""
    return Work(elements=2 * T * HKV * D)


@benchmark(
    "softmax_attention/decode",
    cases=[{"T": length, "H": 16, "HKV": heads, "D": 128} for length in (1024, 8192) for heads in (2, 8)],
    tiny={"T": 50, "H": 4, "HKV": 2, "D": 16},
    quick=[{"T": 8192, "H": 16, "HKV": heads, "D": 128} for heads in (2, 8)],
    dtypes=DTYPES,
    goals=[Goal(PEER, 1.5, where={"T": 8192})],
    work=decode_work,
    rounds=51,
)
def decode(T: int, H: int, HKV: int, D: int, dtype: torch.dtype) -> Contenders:
    """One query per head over T cached keys, grouped heads."""
    inputs = tensors(T, H, HKV, D, dtype, queries=1)
    return {
        "hybridattn": torch.no_grad()(lambda: ops.softmax_attention(*inputs)),
        PEER: torch.no_grad()(lambda: sdpa(*inputs)),
    }
