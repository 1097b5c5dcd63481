"""Hidden states of many hybrids at once: sets of layers share every layer below their first difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.data import Batch
from hybridattn.nn import FirstValue


class _Recorder(nn.Module):
    """Stands where a decoder layer stood: passes its input on and keeps the other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.arguments = kwargs
        self.hidden_states = hidden_states
        return hidden_states


def layer_inputs(model: Any, batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
    """The embeddings, and what the model passes to each of its layers besides them: masks, positions, rotary factors.

    Read off the model itself, so that every family prepares them its own way.
    """
    layers = hf.decoder_layers(model)
    recorders = [_Recorder() for _ in layers]
    model.model.layers = nn.ModuleList(recorders)
    try:
        hf.hidden_states(model, batch)
    finally:
        model.model.layers = layers
    return recorders[0].hidden_states, [recorder.arguments for recorder in recorders]


Observer = Callable[[int, Tensor], Tensor]
"""(layer, what its attention or mixer put out [B, T, D]) -> one value per sequence [B]."""


def shared_layers(sets: Sequence[frozenset[int]], num_layers: int) -> int:
    """Decoder layers that a `LayerSetPass` runs for these sets: at each depth one per way in which they begin."""
    return sum(
        len({frozenset(layer for layer in kept if layer <= depth) for kept in sets}) for depth in range(num_layers)
    )


@dataclass(frozen=True)
class _Way:
    """How far the hybrids that share their layers so far have come."""

    hidden: Tensor
    first: FirstValue
    """For mixers with a value residual."""
    observed: Tensor | None = None


@dataclass
class LayerSetPass:
    """The teacher's decoder on one batch, with other modules instead of its attention outside a set of layers.

    Args:
        teacher: a Transformers decoder; its attention modules are exchanged while a layer runs, and always put back.
        mixers: layer -> module in the attention's place, for all layers that some set leaves out.
        batch: B sequences of T tokens.

    Attributes:
        layers_run: decoder layers computed so far, for the ledger.
    """

    teacher: Any
    mixers: Mapping[int, nn.Module]
    batch: Batch
    layers_run: int = field(default=0, init=False)

    def hidden_states(self, sets: Sequence[frozenset[int]]) -> Iterator[tuple[int, Tensor]]:
        """Yields (index into `sets`, [B, T, D] after the final norm), each index once, in an order of its own.

        Memory holds one hidden state per layer at which the sets still being computed part, not one per set.
        """
        for index, hidden, _ in self._hybrids(sets, None):
            yield index, hidden

    def observations(self, sets: Sequence[frozenset[int]], observer: Observer) -> Iterator[tuple[int, Tensor]]:
        """Yields (index into `sets`, [B]): the sum over all layers of what `observer` makes of each hybrid's layer."""
        for index, _, observed in self._hybrids(sets, observer):
            assert observed is not None
            yield index, observed

    @torch.no_grad()
    def _hybrids(
        self, sets: Sequence[frozenset[int]], observer: Observer | None
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        embeddings, self._arguments = layer_inputs(self.teacher, self.batch)
        self._observer = observer
        yield from self._descend(0, _Way(embeddings, FirstValue()), list(range(len(sets))), sets)

    def _descend(
        self, depth: int, way: _Way, members: list[int], sets: Sequence[frozenset[int]]
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        layers = hf.decoder_layers(self.teacher)
        while depth < len(layers):
            soft = [index for index in members if depth in sets[index]]
            linear = [index for index in members if depth not in sets[index]]
            if soft and linear:
                # The smaller branch runs to its end first; the larger one goes on from the state that is kept here.
                fewer, members = sorted((soft, linear), key=len)
                branch = self._run(depth, way, keep=fewer is soft)
                yield from self._descend(depth + 1, branch, fewer, sets)
                del branch
                way = self._run(depth, way, keep=members is soft)
            else:
                way = self._run(depth, way, keep=bool(soft))
            depth += 1
        final = self.teacher.model.norm(way.hidden)
        for index in members:
            yield index, final, way.observed

    def _run(self, depth: int, way: _Way, keep: bool) -> _Way:
        layer: Any = hf.decoder_layers(self.teacher)[depth]
        self.layers_run += 1
        with ExitStack() as scope:
            if not keep:
                scope.callback(setattr, layer, "self_attn", layer.self_attn)
                layer.self_attn = self.mixers[depth]
            seen: list[Tensor] = []
            if self._observer is not None:
                hook = layer.self_attn.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
                scope.callback(hook.remove)
            first = way.first.copy()
            hidden = layer(way.hidden, **(self._arguments[depth] | {"first_value": first}))
        if self._observer is None:
            return _Way(hidden, first)
        value = self._observer(depth, seen[0])
        return _Way(hidden, first, value if way.observed is None else way.observed + value)
