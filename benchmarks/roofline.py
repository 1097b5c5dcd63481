"""What this machine can do at most: GFLOP/s of a large matrix product, the yardstick of the kernels' own."""

from __future__ import annotations

import time
from functools import cache

import torch

SIZE = 2048


@cache
def gemm_gflops(threads: int, dtype: torch.dtype = torch.float32) -> float:
    """The best of ten products of square matrices of 2,048, by torch's own library."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(10):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return round(2 * SIZE**3 / best / 1e9, 1)
