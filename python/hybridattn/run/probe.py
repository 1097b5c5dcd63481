"""Probe: what a stage's optimiser steps and passes take on this machine, measured on a few of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn.distill import Stage, Trainer
from hybridattn.distill.objective import Objective

TIMED_STEPS = 3
"""At most so many optimiser steps are timed, after one that warms up."""
_ENOUGH_SECONDS = 10.0
"""No further step is timed once the timed ones took so long."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the largest moment of a step.

    Attributes:
        parameters: of all models that are loaded, in the dtype in which they train.
        gradients, optimizer: of the trained ones: one gradient and AdamW's two moments each.
        activations: what the backward pass of one micro-batch needs. Temporaries inside operations are not in it.
    """

    parameters: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class TrainingCost:
    """One optimiser step.

    Attributes:
        seconds: None where nothing was timed.
        trained_bytes: of the parameters that train, as checkpoints hold them.
    """

    seconds: float | None
    memory: Memory
    trained_bytes: int


def parameter_bytes(*models: nn.Module) -> int:
    """Of all parameters, each counted once."""
    tensors = {parameter.data_ptr(): parameter.nbytes for model in models for parameter in model.parameters()}
    return sum(tensors.values())


def training_cost(
    objective: Objective, frozen: Iterable[nn.Module], stage: Stage, data: Any, timed: bool
) -> TrainingCost:
    """Runs the first steps of `stage` on `objective.student`, which they change.

    Args:
        frozen: other models in memory.
        timed: whether steps are run; otherwise only one sequence is, to count its activations.
    """
    lasting = stage.model_copy(update={"tokens": (1 + TIMED_STEPS) * stage.tokens_per_step})
    with Trainer(objective, lasting, data) as trainer:
        trained = sum(parameter.nbytes for parameter in trainer.parameters.values())
        rows = stage.micro_batch_size or stage.batch_size
        memory = Memory(
            parameters=parameter_bytes(objective.student, *frozen),
            gradients=trained,
            optimizer=2 * trained,
            activations=rows * _activations(trainer),
        )
        seconds = _seconds_per_step(trainer) if timed else None
    return TrainingCost(seconds, memory, trained)


def _seconds_per_step(trainer: Trainer) -> float:
    trainer.run(0, 1)
    started, steps = time.monotonic(), 0
    while steps < TIMED_STEPS and (steps == 0 or time.monotonic() - started < _ENOUGH_SECONDS):
        trainer.run(trainer.step, trainer.step + 1)
        steps += 1
    return (time.monotonic() - started) / steps


def _activations(trainer: Trainer) -> int:
    """Bytes that one sequence's backward pass needs."""
    objective = trainer.objective
    batch = next(iter(trainer.data.train_batches(1, seed=trainer.stage.seed))).to(trainer.device)
    weights = objective.weights(batch)
    with saved_for_backward([objective.student, *_teachers(objective)]) as peak:
        objective.backward(batch, weights, max(float(weights.sum()), 1.0), trainer.precision)
    trainer.optimizer.zero_grad(set_to_none=True)
    return peak()


def _teachers(objective: Objective) -> list[nn.Module]:
    teacher = getattr(objective, "teacher", None)
    return [] if teacher is None else [teacher]


@contextmanager
def saved_for_backward(models: Iterable[nn.Module]) -> Iterator[Callable[[], int]]:
    """Counts what autograd keeps, views of one storage once and without the models' own parameters.

    Yields:
        A function: the most bytes that were kept at a time.
    """
    own = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
    users: dict[int, int] = {}
    held, peak = 0, 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held, peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            users[storage.data_ptr()] = users.get(storage.data_ptr(), 0) + 1
            if users[storage.data_ptr()] == 1:
                held += storage.nbytes()
                peak = max(peak, held)
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        nonlocal held
        storage = tensor.untyped_storage()
        if users.get(storage.data_ptr(), 0) > 0:
            users[storage.data_ptr()] -= 1
            if users[storage.data_ptr()] == 0:
                held -= storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield lambda: peak


def timed(work: Callable[[], Any]) -> float:
    """Seconds of the second of two calls."""
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started
