"""How a rule's registered ops are called: one place for the backend, the scale and the order of the arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hybridattn.ops.backend import choose_backend, record_call
from hybridattn.ops.state_interval import state_interval

Result = tuple[Tensor, Tensor | None]


class Inputs(NamedTuple):
    """What a rule reads, in the order of the registered ops; None where the rule has no such input."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None = None
    beta: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None


def _scale(scale: float | None, k: Tensor) -> float:
    return k.shape[-1] ** -0.5 if scale is None else scale


def call_naive(
    rule: str,
    inputs: Inputs,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> Result:
    """The recurrence, token by token."""
    op = getattr(torch.ops.hybridattn, f"naive_{rule}")
    out, state = op(*inputs, _scale(scale, inputs.k), initial_state, cu_seqlens)
    return out, state if output_final_state else None


def call_chunk(
    rule: str,
    inputs: Inputs,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    backend: str | None,
) -> Result:
    """The chunked form on the backend that is asked for."""
    name = f"chunk_{rule}"
    chosen = choose_backend(name, backend, inputs.v)
    record_call(name, chosen)
    if chosen == "naive":
        return call_naive(rule, inputs, scale, initial_state, output_final_state, cu_seqlens)
    op = getattr(torch.ops.hybridattn, name)
    scale = _scale(scale, inputs.k)
    out, state, _ = op(*inputs, scale, initial_state, cu_seqlens, chunk_size, False, chosen, state_interval())
    return out, state if output_final_state else None


def call_step(rule: str, inputs: Inputs, state: Tensor, scale: float | None, backend: str | None) -> Tensor:
    """One token; `state` is updated in place."""
    name = f"step_{rule}"
    chosen = choose_backend(name, backend, inputs.v)
    if chosen == "naive":
        chosen = "aten"  # a step is the recurrence
    record_call(name, chosen)
    op = getattr(torch.ops.hybridattn, name)
    return op(*inputs, state, _scale(scale, inputs.k), chosen)
