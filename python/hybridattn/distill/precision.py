"""Precision: weights that train are fp32 (master weights); the computation runs in the stage's dtype by autocast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hybridattn.hf import native_layers


class Precision:
    """How a stage computes on a device.

    Args:
        dtype: "float32" or "bfloat16".
        device: where the model is.
    """

    def __init__(self, dtype: str, device: torch.device) -> None:
        self.narrow = dtype == "bfloat16"
        self.device_type = device.type

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Context of forward passes."""
        # Without the cache a layer's bf16 weights die with its activations; no weight is used twice in a pass anyway.
        with (
            torch.autocast(self.device_type, torch.bfloat16, enabled=self.narrow, cache_enabled=False),
            native_layers(),
        ):
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Context of backward passes: autocast would narrow the fp32 products in the backward formulas."""
        with torch.autocast(self.device_type, enabled=False), native_layers():
            yield

    def narrowed(self, tensor: Tensor) -> Tensor:
        """`tensor` in the dtype of the computation's matrix products."""
        return tensor.to(torch.bfloat16) if self.narrow else tensor


@contextmanager
def master_weights(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Holds `parameters` in fp32 (fp64 stays), to be trained; on leaving each has its former dtype again."""
    before = {name: (parameter.dtype, parameter.requires_grad) for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
        if parameter.dtype != torch.float64:
            parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            dtype, requires_grad = before[name]
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
