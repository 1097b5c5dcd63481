"""Layers of PyTorch and Transformers on this library's kernels, for as long as a block runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import ops

RMS_NORMS = {
    "hybridattn.nn.norm": ("RMSNorm", "eps"),
    "transformers.models.llama.modeling_llama": ("LlamaRMSNorm", "variance_epsilon"),
    "transformers.models.mistral.modeling_mistral": ("MistralRMSNorm", "variance_epsilon"),
    "transformers.models.qwen2.modeling_qwen2": ("Qwen2RMSNorm", "variance_epsilon"),
    "transformers.models.qwen3.modeling_qwen3": ("Qwen3RMSNorm", "variance_epsilon"),
}
"""Module -> its norm and where that keeps its epsilon: the mixers' own, and those of the families that can be teachers."""

Forward = Callable[[Any, Tensor], Tensor]

_open_blocks = 0
_lock = Lock()
_originals: dict[type, Forward] = {}
"""Class -> its own forward, while blocks are open."""


def _of_same_dtype(layer: Any, x: Tensor, *dtypes: torch.dtype) -> bool:
    return x.device.type == "cpu" and x.dtype in dtypes and layer.weight.dtype == x.dtype


def _linear(original: Forward) -> Forward:
    def forward(self: Any, input: Tensor) -> Tensor:
        # Autocast narrows the products of PyTorch's layer.
        if _of_same_dtype(self, input, torch.float32, torch.float64) and not torch.is_autocast_enabled(
            input.device.type
        ):
            return ops.linear(input, self.weight, self.bias)
        return original(self, input)

    return forward


def _rms_norm(original: Forward, epsilon: str) -> Forward:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if _of_same_dtype(self, hidden_states, *ops.NATIVE_DTYPES):
            return ops.rms_norm(hidden_states, self.weight, getattr(self, epsilon))
        return original(self, hidden_states)

    return forward


def _replace(owner: type, replacement: Callable[[Forward], Forward]) -> None:
    if owner not in _originals:
        original = owner.forward  # type: ignore[attr-defined]
        _originals[owner] = original
        owner.forward = replacement(original)  # type: ignore[attr-defined]


@contextmanager
def native_layers() -> Iterator[None]:
    """Inside, these layers compute on this library's kernels, in the whole process: `torch.nn.Linear` in float32 and
    float64 (`ops.linear`), and RMS norms of teachers and mixers (`ops.rms_norm`).

    Blocks may overlap. A backward pass that runs its forward pass again (gradient checkpointing) belongs inside too.
    """
    global _open_blocks
    with _lock:
        _open_blocks += 1
        _replace(nn.Linear, _linear)
        for module, (name, epsilon) in RMS_NORMS.items():
            if module in sys.modules:
                _replace(getattr(sys.modules[module], name), partial(_rms_norm, epsilon=epsilon))
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                for owner, original in _originals.items():
                    owner.forward = original  # type: ignore[attr-defined]
                _originals.clear()
