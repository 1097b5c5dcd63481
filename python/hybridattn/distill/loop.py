"""Trainer: the optimiser-step loop that every stage and every scored candidate shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hybridattn import _C
from hybridattn.data import Batch
from hybridattn.distill.objective import Objective
from hybridattn.distill.parameter_groups import parameter_groups
from hybridattn.distill.precision import Precision, master_weights
from hybridattn.distill.stage import Stage


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is not finite; nothing was saved over the last checkpoint."""


class BatchSource(Protocol):
    """Batches that depend only on (seed, step), as `hybridattn.data.TokenData` gives them."""

    def train_batches(self, batch_size: int, start_step: int = 0, seed: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step. `step` counts the steps done, this one included."""

    step: int
    loss: float
    parts: list[float]
    """The loss of each of `Objective.parts` (layers in stage 1); empty where the loss has no parts."""
    lr: float
    mixer_lr: float
    grad_norm: float


@dataclass
class TrainerState:
    """All that a later process needs to go on bit-equally. Its tensors are live: save or clone them at once."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Trainer:
    """One stage on one student, in pieces: run to step n, park the state on disk, go on later.

    The student is in training form (fp32 weights, untied embeddings, checkpointed layers, as the stage says) between
    `__enter__` and `__exit__`.

    Example:
        >>> with Trainer(MatchObjective(student, teacher, stage), stage, data) as trainer:
        ...     trainer.run(0, 40)
        ...     save_checkpoint(folder, trainer.state_dict())

    Raises:
        ValueError: the data's sequences are not as long as the stage's.
    """

    def __init__(self, objective: Objective, stage: Stage, data: BatchSource) -> None:
        self.objective = objective
        self.stage = stage
        self.data = _in_length(data, stage.seq_len)
        self.total_steps = stage.total_steps
        self.step = 0
        self.losses: list[float] = []
        """One loss per step done, earlier processes included."""
        self.parts: list[float] = []
        """The last step's loss of each of `Objective.parts`; empty where the loss has one part."""
        self._scope = ExitStack()
        _C.core.keep_freed_memory()

    def __enter__(self) -> Self:
        with ExitStack() as scope:
            scope.enter_context(self.objective.training())
            self.parameters = self.objective.trainable()
            scope.enter_context(master_weights(self.parameters))
            self.device = next(iter(self.parameters.values())).device
            self.precision = Precision(self.stage.dtype, self.device)
            groups = parameter_groups(self.parameters, self.objective.mixers(), self.stage)
            # The fused kernel is elementwise, hence deterministic, and updates without temporaries.
            self.optimizer = torch.optim.AdamW(groups, betas=self.stage.betas, eps=self.stage.eps, fused=True)
            self._scope = scope.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.close()

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.stage.tokens_per_step

    def run(
        self, from_step: int, to_step: int, on_step: Callable[[StepRecord], None] = lambda record: None
    ) -> list[float]:
        """Trains from `from_step` (where the trainer stands) to `to_step`; returns these steps' losses.

        Raises:
            ValueError: the trainer does not stand at `from_step`, `to_step` lies behind it or after the stage's end, or
                no token of a batch counts.
            NonFiniteLoss: naming step, documents and, where known, the layer. The weights are those before that step.
        """
        if from_step != self.step or not from_step <= to_step <= self.total_steps:
            raise ValueError(
                f"{self.objective.name}: cannot run from step {from_step} to {to_step}: the trainer stands at step "
                f"{self.step} of {self.total_steps}"
            )
        batches = self.data.train_batches(self.stage.batch_size, start_step=from_step, seed=self.stage.seed)
        for batch in islice(batches, to_step - from_step):
            record = self._train_on(batch)
            self.losses.append(record.loss)
            self.parts = record.parts
            on_step(record)
        return self.losses[from_step:]

    def _train_on(self, batch: Batch) -> StepRecord:
        rates = [self.stage.lr_at(self.step, mixer=mixer) for mixer in (False, True)]
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["mixer"]]
        batch = batch.to(self.device)
        parts, norm = self._gradient(batch)
        loss = math.fsum(parts) / len(parts)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop(batch, parts, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return StepRecord(self.step, loss, parts if len(self.objective.parts) > 1 else [], rates[0], rates[1], norm)

    def _gradient(self, batch: Batch) -> tuple[list[float], float]:
        """Accumulates and clips the gradient; returns the losses per part and the norm before clipping."""
        rows = self.stage.micro_batch_size or self.stage.batch_size
        micro_batches = list(batch.split(rows))
        weights = [self.objective.weights(micro_batch) for micro_batch in micro_batches]
        total = math.fsum(weight.sum(dtype=torch.float64).item() for weight in weights)
        if total <= 0:
            raise ValueError(
                f"{self.objective.name}: no token of step {self.step}'s batch counts in the loss{_documents(batch)}"
            )
        parts = sum(
            self.objective.backward(micro_batch, weight, total, self.precision)
            for micro_batch, weight in zip(micro_batches, weights, strict=True)
        )
        assert isinstance(parts, Tensor)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = get_total_norm(gradients)
        if self.stage.grad_clip > 0:
            clip_grads_with_norm_(self.parameters.values(), self.stage.grad_clip, norm)
        return parts.tolist(), norm.item()

    def _stop(self, batch: Batch, parts: list[float], loss: float, norm: float) -> None:
        bad = [name for name, part in zip(self.objective.parts, parts, strict=True) if not math.isfinite(part)]
        if math.isfinite(loss):
            what = f"the gradient's norm is {norm}"
            bad = [n for n, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()][:4]
        else:
            what = f"the loss is {loss}"
            bad = bad if len(self.objective.parts) > 1 else [self.objective.explain(batch)]
        self.optimizer.zero_grad(set_to_none=True)
        place = ", ".join(filter(None, bad))
        raise NonFiniteLoss(
            f"{self.objective.name}: {what} at step {self.step}{f' in {place}' if place else ''}{_documents(batch)}; "
            "the last checkpoint is untouched; look at these documents, lower lr or mixer_lr, or raise warmup_steps"
        )

    def state_dict(self, *, optimizer: bool = True) -> TrainerState:
        """Weights, AdamW's state (unless the stage is over and nobody needs it), step, losses and random states."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        adam_steps = {}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter)
            if state and optimizer:
                tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
                adam_steps[name] = int(state["step"])
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        meta = {"step": self.step, "losses": self.losses, "parts": self.parts, "adam_steps": adam_steps}
        return TrainerState(tensors, meta | {"recipe": self.recipe()})

    @torch.no_grad()
    def load_state_dict(self, state: TrainerState) -> None:
        """Continues where `state` was taken. AdamW's state may be absent at the end of a stage.

        Raises:
            ValueError: the state is of another recipe (naming what differs), or a tensor is missing, left over or of
                another shape.
        """
        check_same_recipe(self.recipe(), state.meta["recipe"], self.objective.name)
        expected = {f"weights.{name}": parameter for name, parameter in self.parameters.items()}
        for name in state.meta["adam_steps"]:
            if name in self.parameters:
                expected |= {f"{key}.{name}": self.parameters[name] for key in ("exp_avg", "exp_avg_sq")}
        if 0 < state.meta["step"] < self.total_steps and not state.meta["adam_steps"]:
            raise ValueError(f"{self.objective.name}: the state at step {state.meta['step']} lacks the optimiser's")
        saved = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("random.")}
        _check_tensors(expected, saved, self.objective.name)
        for name, parameter in self.parameters.items():
            parameter.copy_(saved[f"weights.{name}"])
        self.optimizer.state.clear()
        for name, adam_step in state.meta["adam_steps"].items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(adam_step), device=parameter.device),
                "exp_avg": saved[f"exp_avg.{name}"].to(parameter, copy=True),
                "exp_avg_sq": saved[f"exp_avg_sq.{name}"].to(parameter, copy=True),
            }
        torch.set_rng_state(state.tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["random.cuda"].cpu(), self.device)
        self.step = state.meta["step"]
        self.losses = list(state.meta["losses"])
        self.parts = list(state.meta["parts"])

    def recipe(self) -> dict[str, Any]:
        """What makes this run's result; two runs with equal recipes are the same run."""
        fields = self.stage.model_dump(mode="json", exclude={"checkpoint_every", "log_every"})
        return {
            "name": self.objective.name,
            "stage": fields,
            "data": getattr(self.data, "fingerprint", None),
            **self.objective.recipe(),
        }


def check_same_recipe(now: dict[str, Any], there: dict[str, Any], name: str) -> None:
    """Raises ValueError naming every key in which two recipes differ."""
    differences = [f"{key} was {old!r}, is {new!r}" for key, old, new in _differences(there, now)]
    if differences:
        raise ValueError(
            f"{name}: the run directory belongs to another recipe ({'; '.join(differences)}); "
            "choose another directory or remove this one"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def _check_tensors(expected: dict[str, nn.Parameter], saved: dict[str, Tensor], name: str) -> None:
    for what, names in (("missing", expected.keys() - saved.keys()), ("left over", saved.keys() - expected.keys())):
        if names:
            raise ValueError(f"{name}: the checkpoint has tensors {what}: {', '.join(sorted(names)[:8])}")
    for key, parameter in expected.items():
        if saved[key].shape != parameter.shape:
            raise ValueError(
                f"{name}: {key} has shape {list(saved[key].shape)} in the checkpoint, the model has "
                f"{list(parameter.shape)}"
            )


def _documents(batch: Batch) -> str:
    ids = [str(document) for document in batch.document_ids]
    if not ids:
        return ""
    more = f" and {len(ids) - 16} more" if len(ids) > 16 else ""
    return f" (documents {', '.join(ids[:16])}{more})"


def _in_length(data: Any, seq_len: int) -> Any:
    if hasattr(data, "with_seq_len"):
        return data.with_seq_len(seq_len)
    if getattr(data, "seq_len", seq_len) != seq_len:
        raise ValueError(f"data: sequences have {data.seq_len} tokens, the stage's seq_len is {seq_len}")
    return data
