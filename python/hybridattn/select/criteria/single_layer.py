"""Each layer of the teacher with another module in its attention's place, on the teacher's own hidden states.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.distill.objective import counted
from hybridattn.select.criteria.sound_layers import finite_or_none, none_as_nan
from hybridattn.select.evaluator import CandidateEvaluator, Line
from hybridattn.select.layer_sets import layer_inputs


@dataclass(frozen=True)
class Replacement:
    """One layer, twice; all [B, T, D].

    Attributes:
        attention, mixer: what the attention and the module in its place put out.
        kept, replaced: what the layer put out with each.
    """

    attention: Tensor
    mixer: Tensor
    kept: Tensor
    replaced: Tensor


@torch.no_grad()
def replacements(teacher: Any, modules: Mapping[int, nn.Module], batch: Batch) -> Iterator[tuple[int, Replacement]]:
    """Yields (layer, Replacement) upwards, in one pass through the teacher."""
    hidden, arguments = layer_inputs(teacher, batch)
    for index, layer in enumerate(hf.decoder_layers(teacher)):
        kept, attention = _outputs(layer, hidden, arguments[index])
        softmax = layer.self_attn
        layer.self_attn = modules[index]
        try:
            replaced, mixer = _outputs(layer, hidden, arguments[index])
        finally:
            layer.self_attn = softmax
        yield index, Replacement(attention, mixer, kept, replaced)
        hidden = kept


def _outputs(layer: Any, hidden: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What a decoder layer and what its attention put out."""
    seen: list[Tensor] = []
    hook = layer.self_attn.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        return layer(hidden, **arguments), seen[0]
    finally:
        hook.remove()


Distance = Callable[[Replacement], Tensor]
"""Replacement -> [B, T]."""


def single_layer_distances(
    evaluator: CandidateEvaluator, name: str, distance: Distance, progress: Line
) -> list[list[float]]:
    """[layers][sequences]: mean over each held-out sequence's counted tokens of a distance, of each aligned mixer.

    Args:
        name: of the distance, for the journal.
    """
    rows: list[list[float]] = [[] for _ in range(evaluator.num_layers)]
    for number, batch in enumerate(evaluator.held_out):

        def measure(batch: Batch = batch) -> dict[str, Any]:
            weights = counted(batch)
            values = []
            with evaluator.precision.forward():
                for _, replacement in replacements(evaluator.teacher, evaluator.mixers, batch):
                    per_token = distance(replacement).double() * weights
                    values.append(finite_or_none((per_token.sum(1) / weights.sum(1).clamp(min=1)).tolist()))
            body = matrix_weights(evaluator.teacher, head=False)
            return {"values": values, "tokens": batch.num_tokens, "flops": 4.0 * batch.num_tokens * body}

        progress(f"{name}  batch {number + 1}/{len(evaluator.held_out)}")
        event = evaluator.recorded(f"{name} batch {number}", measure)
        for row, values in zip(rows, event["values"], strict=True):
            row += none_as_nan(values)
    return rows
