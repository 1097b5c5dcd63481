"""Softmax attention of one token over a long cache: decoding in the layers that keep softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.registry import Contenders, Goal, Work, benchmark
from hybridattn import ops


def decode_work(T: int, H: int, HKV: int, D: int) -> Work:
    """Every cached key and value is read once."""
    return Work(elements=2 * T * HKV * D)


@benchmark(
    "softmax_attention/decode",
    cases=[{"T": length, "H": 16, "HKV": heads, "D": 128} for length in (1024, 8192) for heads in (2, 8)],
    tiny={"T": 50, "H": 4, "HKV": 2, "D": 16},
    quick=[{"T": 8192, "H": 16, "HKV": heads, "D": 128} for heads in (2, 8)],
    goals=[Goal("SDPA, enable_gqa", 1.5, where={"T": 8192})],
    work=decode_work,
    rounds=51,
)
def decode(T: int, H: int, HKV: int, D: int, dtype: torch.dtype) -> Contenders:
    """One query per head over T cached keys, grouped heads, against PyTorch's SDPA with enable_gqa."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, t, h, D, generator=generator).to(dtype) for t, h in ((1, H), (T, HKV), (T, HKV)))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return {
        "hybridattn": torch.no_grad()(lambda: ops.softmax_attention(q, k, v)),
        "SDPA, enable_gqa": torch.no_grad()(
            lambda: F.scaled_dot_product_attention(*heads_first, enable_gqa=True).transpose(1, 2)
        ),
    }
