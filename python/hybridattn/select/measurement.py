"""SetMeasurement: values of many hybrids per sequence, each measured once and kept in the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.select.layer_sets import LayerSetPass

if TYPE_CHECKING:
    from hybridattn.select.evaluator import CandidateEvaluator, Line


def set_name(layers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(layers))) or "none"


@dataclass
class SetMeasurement:
    """What `value` makes of the final hidden states of untrained hybrids.

    Args:
        evaluator: models, precision, journal and ledger.
        batches: the sequences.
        modules: layer -> what stands in the attention's place outside a set.
        value: (number of the batch, [B, T, D] after the final norm) -> values, one per sequence.
        name: begins the journal's keys; what is measured, on which sequences.
        heads: output heads that `value` multiplies with, for the ledger.
    """

    evaluator: CandidateEvaluator
    batches: Sequence[Batch]
    modules: Mapping[int, nn.Module]
    value: Callable[[int, Tensor], list[float]]
    name: str = ""
    heads: int = 1

    def __call__(
        self, sets: Sequence[Iterable[int]], progress: Line, batches: Iterable[int] | None = None
    ) -> list[list[float]]:
        """For each set of layers that keep softmax, its values over all batches, or over those numbered `batches`."""
        wanted = [frozenset(kept) for kept in sets]
        rows: list[list[float]] = [[] for _ in wanted]
        for number in range(len(self.batches)) if batches is None else batches:
            if self._missing(number, wanted):
                with self.evaluator.measuring(progress):
                    if missing := self._missing(number, wanted):
                        progress(f"{self.name}held-out batch {number + 1}/{len(self.batches)}  {len(missing)} hybrids")
                        self.evaluator.measure_sets(self, number, missing)
            for row, kept in zip(rows, wanted, strict=True):
                values = self.evaluator.event(self.key(number, kept))["losses"]
                row += [math.nan if value is None else value for value in values]
        return rows

    def key(self, number: int, kept: Iterable[int]) -> str:
        """Of the journal's event for one set on one batch."""
        return f"{self.name}batch {number} keep {set_name(kept)}"

    def _missing(self, number: int, sets: Iterable[frozenset[int]]) -> list[frozenset[int]]:
        return sorted({kept for kept in sets if not self.evaluator.journal.get(self.key(number, kept))}, key=sorted)

    def measure(self, number: int, sets: list[frozenset[int]]) -> None:
        """One journal event per set; a shared layer's cost is spread over the sets of this call."""
        started = time.monotonic()
        values, layers_run = self.values(number, sets)
        flops = self.flops(number, layers_run, len(sets))
        seconds = (time.monotonic() - started) / len(sets)
        for row, kept in zip(values, sets, strict=True):
            finite = [value if math.isfinite(value) else None for value in row]  # JSON knows no NaN
            self.evaluator.journal.add(
                self.key(number, kept),
                losses=finite,
                tokens=self.batches[number].num_tokens,
                flops=flops,
                seconds=seconds,
            )

    @torch.no_grad()
    def values(self, number: int, sets: list[frozenset[int]]) -> tuple[list[list[float]], int]:
        """([sets][sequences], decoder layers that were run)."""
        work = LayerSetPass(self.evaluator.teacher, self.modules, self.batches[number])
        values: dict[int, list[float]] = {}
        with self.evaluator.precision.forward():
            for index, hidden in work.hidden_states(sets):
                values[index] = self.value(number, hidden)
        return [values[index] for index in range(len(sets))], work.layers_run

    def flops(self, number: int, layers_run: int, hybrids: int) -> float:
        """Of each of `hybrids` that were computed together."""
        teacher = self.evaluator.teacher
        per_layer = matrix_weights(teacher, head=False) / self.evaluator.num_layers
        head = self.heads * hf.head_weight(teacher).numel()
        return 2.0 * self.batches[number].num_tokens * (per_layer * layers_run / hybrids + head)
