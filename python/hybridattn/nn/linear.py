"""torch.nn.Linear on this library's matrix products, for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridattn import ops

_DTYPES = (torch.float32, torch.float64)

_open_blocks = 0
_lock = Lock()
_reference = nn.Linear.forward


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    weight = self.weight
    narrowed = torch.is_autocast_enabled(input.device.type)
    if input.dtype in _DTYPES and weight.dtype == input.dtype and not narrowed:
        return ops.linear(input, weight, self.bias)
    return F.linear(input, weight, self.bias)


@contextmanager
def native_linear() -> Iterator[None]:
    """Inside, every `torch.nn.Linear` of this process computes by `hybridattn.ops.linear` in float32 and float64.

    Blocks may overlap. A backward pass that runs its forward pass again (gradient checkpointing) belongs inside too.
    """
    global _open_blocks
    with _lock:
        _open_blocks += 1
        nn.Linear.forward = _forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                nn.Linear.forward = _reference  # type: ignore[method-assign]
