"""How the time of one token in one head changes with the length of the sequence, the number of heads and of threads.

Letters: T tokens, H heads, D key and value dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.registry import Contenders, benchmark
from benchmarks.rule_inputs import inputs, rule_work
from hybridattn import ops

SOFTMAX_LIMIT, PEER_LIMIT = 8192, 16384
"""Tokens up to which softmax attention, whose time grows with their square, and Transformers' functions take part."""

SHAPES: dict[str, Any] = {
    "tiny": {"T": 96, "H": 2, "D": 16},
    "work": lambda T, H, D: rule_work("gated_delta_rule", backward=False)(1, T, H, D),
    "memory": False,
    "rounds": 5,
    "other_work": ("softmax attention, SDPA",),
}


def forward(T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    given = inputs(1, T, H, D, dtype)
    heads_first = [x.transpose(1, 2) for x in given[:3]]

    def softmax() -> Tensor:
        return F.scaled_dot_product_attention(*heads_first, is_causal=True)

    found: Contenders = {"hybridattn": lambda: ops.chunk_gated_delta_rule(*given)[0]}
    if T <= PEER_LIMIT:
        found["transformers"] = lambda: torch_chunk_gated_delta_rule(*given)[0]
    if T <= SOFTMAX_LIMIT:
        found["softmax attention, SDPA"] = softmax
    return {name: torch.no_grad()(run) for name, run in found.items()}


LENGTHS = [{"T": 1 << power, "H": 4, "D": 128} for power in range(9, 17)]


@benchmark("scaling/tokens", axis="T", cases=LENGTHS, quick=LENGTHS[::2], threads=(2,), **SHAPES)
def tokens(T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """Forward against tokens"""
    return forward(T, H, D, dtype)


HEADS = [{"T": 1024, "H": 1 << power, "D": 128} for power in range(6)]


@benchmark("scaling/heads", axis="H", cases=HEADS, quick=HEADS[::2], **SHAPES)
def heads(T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """Forward against heads"""
    return forward(T, H, D, dtype)


@benchmark("scaling/threads", axis="threads", cases=[{"T": 1024, "H": 16, "D": 128}], **SHAPES)
def threads(T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """Forward against threads"""
    return forward(T, H, D, dtype)
