"""Held-out losses of sets of softmax layers: what every selector measures with."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill import Stage
from hybridattn.distill.checkpoint import sync
from hybridattn.distill.fingerprint import describe_mixers, fingerprint, matrix_weights
from hybridattn.distill.precision import Precision
from hybridattn.select.candidate import TrainedCandidate, candidate_folder, remove_parked, training_digest
from hybridattn.select.journal import Journal
from hybridattn.select.measurement import SetMeasurement, set_name
from hybridattn.select.recall_weights import RecallWeights
from hybridattn.select.teacher_states import TeacherStates

Line = Callable[[str], None]
"""Takes one line of text for people."""

Loss = Literal["kl", "recall_kl"]
"""``kl``: mean over tokens; ``recall_kl``: each token weighted by how much the teacher needs far context for it."""

LOSS_NAMES = {"kl": "KL", "recall_kl": "recall-weighted KL"}
"""What texts for people call them."""

WAITING = "waits for another process that measures in this run directory"


def silent(line: str) -> None:
    """The default of `progress` arguments: shows nothing."""


class LayerSetEvaluator(Protocol):
    """What selectors need: the number of layers, and a loss per held-out sequence of hybrids that keep some of them."""

    num_layers: int

    def losses(self, sets: Sequence[Iterable[int]], progress: Line = silent) -> list[list[float]]:
        """For each set of layers that keep softmax, the held-out loss per sequence; lower is better."""
        ...


class CandidateEvaluator:
    """Hybrids made of one student's mixers and the teacher, scored by KL(teacher || hybrid) in nats per token.

    The weights of ``recall_kl`` (`RecallWeights`) have mean 1 over all held-out tokens and are computed once per run
    directory, so both losses are on one scale.

    Every candidate is scored on the same sequences, so differences are paired. Nothing is computed twice: the teacher's
    hidden states are kept, untrained hybrids share the layers below their first difference, and every measurement is
    kept in ``events.jsonl``, from which a run that was killed goes on.

    Args:
        student: aligned, with a mixer in every layer.
        teacher: the model it came from, of the same dtype.
        held_out: batches that nothing trains on.
        run_dir: folder of ``events.jsonl`` and of parked candidates; None keeps events in memory.
        dtype: of the computation, "float32" or "bfloat16".
        loss: ``kl`` or ``recall_kl``; measurements of both may share a `run_dir`.
        window: tokens to which ``recall_kl`` cuts the context; a quarter of the sequence when None.

    Attributes:
        tokens, flops, seconds: what the measurements asked for so far cost, earlier processes included.

    Raises:
        ValueError: no held-out batch, a layer without a mixer, different dtypes, a `run_dir` of other models or data, an
            unknown loss, a window that cuts nothing off, or far context that helps the teacher nowhere.
    """

    def __init__(
        self,
        student: Any,
        teacher: nn.Module,
        held_out: Sequence[Batch],
        run_dir: str | Path | None = None,
        dtype: str = "float32",
        loss: Loss = "kl",
        window: int | None = None,
    ) -> None:
        if not held_out:
            raise ValueError("select: no held-out batch; raise `held_out` or use a longer corpus")
        if loss not in get_args(Loss):
            raise ValueError(f"select: loss is {loss!r}, expected one of {', '.join(get_args(Loss))}")
        self.student, self.teacher = student, teacher
        self.mixers = student.mixers()
        self.num_layers = len(hf.decoder_layers(teacher))
        lacking = sorted(set(range(self.num_layers)) - set(self.mixers))
        if lacking:
            raise ValueError(f"select: the student has no mixer in layers {lacking}; score an all-linear student")
        head = hf.head_weight(teacher)
        if hf.head_weight(student).dtype != head.dtype:
            raise ValueError(
                f"select: the student is {hf.head_weight(student).dtype}, the teacher {head.dtype}; load both alike"
            )
        self.held_out = [batch.to(head.device) for batch in held_out]
        self.precision = Precision(dtype, head.device)
        self.folder = None if run_dir is None else Path(run_dir)
        self._temporary = tempfile.TemporaryDirectory(prefix="candidates-") if run_dir is None else None
        self.parked = Path(self._temporary.name) if self._temporary is not None else Path(str(run_dir))
        self.loss = loss
        self._recall = RecallWeights(teacher, window, dtype)
        self._prefix = "" if loss == "kl" else f"{loss} {self.window} "
        self._weights: list[Tensor] | None = None
        self.tokens, self.flops, self.seconds = 0, 0.0, 0.0
        self._counted: set[str] = set()
        self._candidate: TrainedCandidate | None = None
        self._teacher_states = TeacherStates(self._teacher_hidden, self.folder)
        self._divergences = SetMeasurement(
            self,
            self.held_out,
            self.mixers,
            lambda number, hidden: self._divergence(number, hidden, hf.head_weight(teacher)),
            self._prefix,
            heads=2,
        )
        self.journal = Journal(
            None if self.folder is None else self.folder / "events.jsonl",
            {
                "teacher": fingerprint(teacher),
                "student": fingerprint(student),
                "mixers": _digest(str(describe_mixers(student))),
                "held_out": _digest(b"".join(batch.input_ids.cpu().numpy().tobytes() for batch in held_out)),
                "dtype": dtype,
            },
        )

    @property
    def num_sequences(self) -> int:
        return sum(batch.num_sequences for batch in self.held_out)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences in each held-out batch."""
        return [batch.num_sequences for batch in self.held_out]

    @property
    def seq_len(self) -> int:
        return self.held_out[0].input_ids.shape[1]

    @property
    def window(self) -> int:
        """Tokens of context beyond which it is far, to the recall weights."""
        return self._recall.window_of(self.held_out[0])

    def losses(
        self, sets: Sequence[Iterable[int]], progress: Line = silent, batches: Iterable[int] | None = None
    ) -> list[list[float]]:
        """Mean loss in nats per token, one per held-out sequence, of the untrained hybrid that keeps each set.

        Args:
            batches: measure on these held-out batches only.
        """
        return self._divergences(sets, progress, batches)

    def trained_losses(
        self, kept: Iterable[int], from_step: int, to_step: int, stage: Stage, data: Any, progress: Line = silent
    ) -> list[float]:
        """Held-out losses of the hybrid that keeps `kept`, trained from `from_step` to `to_step` by stage 2.

        All candidates see the same batches. One candidate is in memory at a time, the others are parked on disk. Losses
        are NaN when the training diverged.
        """
        layers, digest = frozenset(kept), training_digest(stage, data)
        key = f"{self._prefix}{digest} step {to_step} keep {set_name(layers)}"
        if not self.journal.get(key):
            with self.measuring(progress):
                if not self.journal.get(key):
                    self._measure_trained(key, layers, from_step, to_step, stage, data, progress)
        event = self.event(key)
        return [math.nan] * self.num_sequences if event["losses"] is None else event["losses"]

    def recorded(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The journal's event `key`, measured when it is not there yet.

        Args:
            measure: returns the event's values, of JSON, among them its cost: ``tokens`` and ``flops``; how long it took is
                added here.
        """
        if not self.journal.get(key):
            with self.measuring():
                if not self.journal.get(key):
                    started = time.monotonic()
                    values = measure()
                    self.journal.add(key, **values, seconds=time.monotonic() - started)
        return self.event(key)

    def measure_sets(self, measurement: SetMeasurement, number: int, sets: list[frozenset[int]]) -> None:
        """Measures `sets` on one batch of `measurement`, into the journal."""
        self._form_weights()
        measurement.measure(number, sets)

    def measuring(self, progress: Line = silent) -> AbstractContextManager[None]:
        """Holds the journal's lock; `progress` says so when another process holds it."""
        return self.journal.measuring(lambda: progress(WAITING))

    def event(self, key: str) -> dict[str, Any]:
        """An event that the journal holds; its cost is counted the first time that this object is asked for it."""
        event = self.journal.get(key)
        assert event is not None
        if key not in self._counted:
            self._counted.add(key)
            self.tokens += event["tokens"]
            self.flops += event["flops"]
            self.seconds += event["seconds"]
        return event

    def forget(self, kept: Iterable[int], stage: Stage, data: Any) -> None:
        """Frees memory and disk of a candidate that nobody trains further."""
        layers, digest = frozenset(kept), training_digest(stage, data)
        if self._candidate is not None and (self._candidate.layers, self._candidate.digest) == (layers, digest):
            self._candidate.close()
            self._candidate = None
        remove_parked(candidate_folder(self.parked, layers, digest))

    def token_weights(self) -> list[Tensor]:
        """Recall weights [B, T] of every held-out batch, their mean over all counted tokens 1.

        They are in memory, or else in a file of the run directory, or else computed.

        Raises:
            ValueError: far context helps the teacher nowhere.
        """
        if self._weights is None:
            key = f"recall weights {self.window}"
            path = None if self.folder is None else self.folder / f"{key.replace(' ', '-')}.safetensors"
            with self.journal.measuring():
                if path is not None and path.exists() and self.journal.get(key):
                    found = load_file(path)
                    self._weights = [found[f"batch {number}"] for number in range(len(self.held_out))]
                else:
                    self._weights = self._compute_weights(key, path)
            self.event(key)
        return self._weights

    # ---- inside ----

    def _form_weights(self) -> None:
        """Before a measurement's time starts: the loss's weights are an event of their own."""
        if self.loss != "kl":
            self.token_weights()

    @property
    def _held_out_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.held_out)

    def _bring(self, layers: frozenset[int], stage: Stage, data: Any) -> TrainedCandidate:
        """The candidate, in the place of the one that was in memory."""
        digest = training_digest(stage, data)
        if self._candidate is not None and (self._candidate.layers, self._candidate.digest) != (layers, digest):
            self._candidate.close()
            self._candidate = None
        if self._candidate is None:
            folder = candidate_folder(self.parked, layers, digest)
            self._candidate = TrainedCandidate(self.student, self.teacher, layers, stage, data, folder)
        return self._candidate

    @torch.no_grad()
    def _teacher_hidden(self, number: int) -> Tensor:
        with self.precision.forward():
            return hf.hidden_states(self.teacher, self.held_out[number])

    def _measure_trained(
        self, key: str, layers: frozenset[int], from_step: int, to_step: int, stage: Stage, data: Any, progress: Line
    ) -> None:
        self._form_weights()
        started = time.monotonic()
        candidate = self._bring(layers, stage, data)
        diverged = candidate.train_to(to_step, progress)
        losses = None if diverged else self._measure_model(candidate.model)
        if losses is not None and not all(map(math.isfinite, losses)):
            diverged, losses = "the held-out loss is not finite", None
        trained, scored = (to_step - from_step) * stage.tokens_per_step, self._held_out_tokens
        flops = candidate.flops(trained) + 2.0 * scored * matrix_weights(candidate.model)
        seconds = time.monotonic() - started
        self.journal.add(key, losses=losses, diverged=diverged, tokens=trained + scored, flops=flops, seconds=seconds)

    @torch.no_grad()
    def _measure_model(self, model: Any) -> list[float]:
        rows: list[float] = []
        for number, batch in enumerate(self.held_out):
            with self.precision.forward():
                hidden = hf.hidden_states(model, batch)
            rows += self._divergence(number, hidden, hf.head_weight(model))
        return rows

    def _divergence(self, number: int, hidden: Tensor, head: Tensor) -> list[float]:
        """Mean over each sequence's counted tokens."""
        narrowed, batch = self.precision.narrowed, self.held_out[number]
        weights = None if self.loss == "kl" else self.token_weights()[number].to(hidden.device)
        with self.precision.backward():
            divergence = ops.linear_kl_divergence(
                narrowed(hidden),
                narrowed(head),
                narrowed(self._teacher_states[number].to(hidden.device)),
                narrowed(hf.head_weight(self.teacher)),
                reduction="none",
            ).double()
        if weights is not None:
            divergence *= weights
        if batch.loss_mask is None:
            return divergence.mean(1).tolist()
        return ((divergence * batch.loss_mask).sum(1) / batch.loss_mask.sum(1).clamp(min=1)).tolist()

    def _compute_weights(self, key: str, path: Path | None) -> list[Tensor]:
        started = time.monotonic()
        drops = [self._recall(batch, self._teacher_states[n]).cpu() for n, batch in enumerate(self.held_out)]
        counted = sum(
            int(d.numel() if b.loss_mask is None else b.loss_mask.sum())
            for d, b in zip(drops, self.held_out, strict=True)
        )
        total = sum(float(drop.double().sum()) for drop in drops)
        if total == 0:
            raise ValueError("select: far context helps the teacher nowhere in the held-out sequences; use loss 'kl'")
        weights = [drop * (counted / total) for drop in drops]
        if path is not None:
            temporary = path.with_name(path.name + ".partial")
            save_file({f"batch {number}": tensor for number, tensor in enumerate(weights)}, temporary)
            sync(temporary)
            temporary.replace(path)
        tokens, seconds = 2 * self._held_out_tokens, time.monotonic() - started
        self.journal.add(key, tokens=tokens, flops=self._recall.flops(self._held_out_tokens), seconds=seconds)
        return weights


def _digest(content: bytes | str) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(content).hexdigest()[:16]
