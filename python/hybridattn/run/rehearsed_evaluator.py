"""RehearsedEvaluator: goes through a scoring or a search, measures one of each kind of work and prices the rest by it.

Every value that it hands out is the same, so nothing is ever decided and a race or a search goes on for as long as it can.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hybridattn.convert import keep_softmax
from hybridattn.distill import MatchObjective, Stage
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.run.probe import Memory, TrainingCost, parameter_bytes, timed, training_cost
from hybridattn.select import CandidateEvaluator
from hybridattn.select.candidate import training_digest
from hybridattn.select.evaluator import Line, silent
from hybridattn.select.layer_sets import shared_layers
from hybridattn.select.measurement import SetMeasurement, set_name

_VALUE = 1.0


@dataclass
class Rehearsed:
    """What was learnt about the machine, for all evaluators of one estimate.

    Attributes:
        timed: whether work is timed.
        memory, parked_bytes: the most that the work priced so far needs; to be reset by whoever reads them.
    """

    timed: bool
    seconds_per_flop: dict[str, float] = field(default_factory=dict)
    events: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    training: dict[tuple[str, int], tuple[TrainingCost, float, float]] = field(default_factory=dict)
    memory: Memory = field(default_factory=lambda: Memory(0))
    parked_bytes: int = 0


class RehearsedEvaluator(CandidateEvaluator):
    """A `CandidateEvaluator` whose cost is that of the measurements still to be made, and whose losses mean nothing.

    Args:
        rehearsed: is read and added to.
        others: as `CandidateEvaluator`.
    """

    def __init__(self, *arguments: Any, rehearsed: Rehearsed, **others: Any) -> None:
        self.rehearsed = rehearsed
        self._new: set[str] = set()
        self._in_training: dict[str, int] = {}
        super().__init__(*arguments, **others)
        self._loaded = Memory(parameter_bytes(self.student, self.teacher))

    def event(self, key: str) -> dict[str, Any]:
        """What an earlier process measured costs nothing any more."""
        if key not in self._new:
            self._counted.add(key)
        return super().event(key)

    def measure_sets(self, measurement: SetMeasurement, number: int, sets: list[frozenset[int]]) -> None:
        batch = measurement.batches[number]
        layers = shared_layers(sets, self.num_layers)
        flops = measurement.flops(number, layers, len(sets))
        rate = self._rate(measurement, number, sets)
        for kept in sets:
            key = measurement.key(number, kept)
            losses = [_VALUE] * batch.num_sequences
            self._price(key, batch.num_tokens, flops, flops * rate, losses=losses)

    def recorded(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The first event of a kind is measured, twice where times are wanted; others are its copies."""
        if not self.journal.get(key):
            kind, size = re.sub(r"\d+", "#", key), self._sequences_of(key)
            if kind not in self.rehearsed.events:
                values = measure()
                seconds = 0.0
                if self.rehearsed.timed:
                    started = time.monotonic()
                    measure()
                    seconds = time.monotonic() - started
                self.rehearsed.events[kind] = size, values | {"seconds": seconds}
            first, values = self.rehearsed.events[kind]
            share = size / first
            others = {name: value for name, value in values.items() if name not in ("tokens", "flops", "seconds")}
            self._price(
                key, round(values["tokens"] * share), values["flops"] * share, values["seconds"] * share, **others
            )
        return self.event(key)

    def trained_losses(
        self, kept: Iterable[int], from_step: int, to_step: int, stage: Stage, data: Any, progress: Line = silent
    ) -> list[float]:
        layers, digest = frozenset(kept), training_digest(stage, data)
        key = f"{self._prefix}{digest} step {to_step} keep {set_name(layers)}"
        if not self.journal.get(key):
            cost, flops_per_token, forward_flops = self._training(layers, stage, data)
            trained, scored = (to_step - from_step) * stage.tokens_per_step, self._held_out_tokens
            seconds = (cost.seconds or 0.0) * (to_step - from_step)
            seconds += forward_flops * scored * self._rate(self._divergences, 0, [layers])
            flops = flops_per_token * trained + forward_flops * scored
            self._price(key, trained + scored, flops, seconds, losses=[_VALUE] * self.num_sequences)
            self._note(cost.memory)
            self._in_training[set_name(layers)] = 3 * cost.trained_bytes if to_step < stage.total_steps else 0
            self.rehearsed.parked_bytes = max(self.rehearsed.parked_bytes, sum(self._in_training.values()))
        self.event(key)
        return [_VALUE] * self.num_sequences

    def forget(self, kept: Iterable[int], stage: Stage, data: Any) -> None:
        self._in_training.pop(set_name(kept), None)

    def token_weights(self) -> list[Tensor]:
        if self._weights is None:
            key = f"recall weights {self.window}"
            if not self.journal.get(key):
                batch = self.held_out[0]
                hidden = self._teacher_states[0] if self.rehearsed.timed else None
                took = timed(lambda: self._recall(batch, hidden)) if self.rehearsed.timed else 0.0
                tokens = self._held_out_tokens
                seconds = took * tokens / batch.num_tokens
                self._price(key, 2 * tokens, self._recall.flops(tokens), seconds)
            self.event(key)
            self._weights = [batch.input_ids.new_ones(batch.input_ids.shape).float() for batch in self.held_out]
        return self._weights

    # ---- inside ----

    def _price(self, key: str, tokens: int, flops: float, seconds: float, **values: Any) -> None:
        self.journal.add(key, **values, tokens=tokens, flops=flops, seconds=seconds)
        self._new.add(key)
        self._note(self._loaded)

    def _note(self, memory: Memory) -> None:
        self.rehearsed.memory = max(self.rehearsed.memory, memory, key=lambda found: found.total)

    def _sequences_of(self, key: str) -> int:
        """Sequences in the held-out batch that `key` names; 1 where it names none."""
        found = re.search(r"batch (\d+)", key)
        return self.held_out[int(found[1])].num_sequences if found else 1

    def _rate(self, measurement: SetMeasurement, number: int, sets: list[frozenset[int]]) -> float:
        """Seconds per operation of forward passes of hybrids."""
        if not self.rehearsed.timed:
            return 0.0
        rates = self.rehearsed.seconds_per_flop
        if measurement.name not in rates:
            layers = shared_layers(sets[:1], self.num_layers)
            took = timed(lambda: measurement.values(number, sets[:1]))
            rates[measurement.name] = took / measurement.flops(number, layers, 1)
        return rates[measurement.name]

    def _training(self, layers: frozenset[int], stage: Stage, data: Any) -> tuple[TrainingCost, float, float]:
        """A candidate's step; operations per token of training and of scoring."""
        key = training_digest(stage.model_copy(update={"tokens": 1}), data), len(layers)
        if key not in self.rehearsed.training:
            model = keep_softmax(self.student, self.teacher, layers)
            objective = MatchObjective(model, self.teacher, stage)
            forward = 2.0 * matrix_weights(model)
            frozen = [self.student, self.teacher]
            cost = training_cost(objective, frozen, stage, data, self.rehearsed.timed)
            self.rehearsed.training[key] = cost, objective.flops(1), forward
        return self.rehearsed.training[key]
