"""Cell: one teacher and one seed, with its models, data and raw data; every measurement is taken once."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch

import hybridattn as ha
from benchmarks import machine
from benchmarks.selection.protocol import Files, Protocol, Teacher
from hybridattn import evaluate, hf
from hybridattn.data import Batch, TokenData
from hybridattn.distill.fingerprint import fingerprint
from hybridattn.select import CandidateEvaluator
from hybridattn.select.journal import Journal

Show = Callable[[str], None]

LOSSES = ("kl", "recall_kl")
"""What selectors can measure sets with: plain KL, and KL weighted by how much the teacher needs far context."""


def set_key(layers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(layers))) or "none"


def first_sequences(batches: Iterable[Batch], count: int) -> list[Batch]:
    """At most `count` sequences of `batches`."""
    found: list[Batch] = []
    for batch in batches:
        if count > 0:
            found.append(batch.rows(0, min(count, batch.num_sequences)))
            count -= found[-1].num_sequences
    return found


class Cell:
    """Measurements of one teacher and seed, kept as lines of ``<results>/<teacher>-seed-<seed>.jsonl``.

    Raises:
        ValueError: the file holds measurements of another protocol, teacher or corpus.
    """

    def __init__(self, teacher: Teacher, seed: int, protocol: Protocol, files: Files, show: Show = print) -> None:
        self.name, self.seed, self.protocol, self.files = teacher.name, seed, protocol, files
        self.budgets = teacher.budgets
        self.show = lambda line: show(f"{teacher.name}  seed {seed}  {line}")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(teacher.folder, dtype=torch.float32)
        self.teacher: Any = model.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(teacher.folder)
        self.num_layers = len(hf.decoder_layers(self.teacher))
        self.data = TokenData.from_files(
            [files.corpus],
            self.tokenizer,
            protocol.seq_len,
            held_out=protocol.held_out,
            cache_dir=files.cache / "tokens",
        )
        identity = {
            "teacher": teacher.name,
            "num_layers": self.num_layers,
            "seed": seed,
            "protocol": protocol.to_json(),
            "weights": fingerprint(self.teacher),
            "data": self.data.fingerprint,
        }
        self.journal = Journal(files.results / f"{teacher.name}-seed-{seed}.jsonl", identity)

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement `key`; taken now if nobody has taken it."""
        found = self.journal.get(key)
        if found is None:
            with self.journal.measuring(lambda: self.show("waits for another process on this file")):
                found = self.journal.get(key)
                if found is None:
                    session = self._session
                    started = time.monotonic()
                    values = measure()
                    found = self.journal.add(key, **({"wall_seconds": time.monotonic() - started} | values), **session)
                    self.show(key)
        return found

    @cached_property
    def _session(self) -> dict[str, str]:
        """Names this process's line about machine, versions and student."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"session {now} {os.getpid()}"
        facts = machine.describe() | {"threads": torch.get_num_threads(), "student": fingerprint(self.student)}
        self.journal.add(name, date=now, **facts)
        return {"session": name}

    # ---- models and sequences ----

    @cached_property
    def student(self) -> Any:
        """All-linear and aligned; from the cache, or made now."""
        folder = self.files.cache / f"{self.name}-seed-{self.seed}"
        if not (folder / "model").exists():
            self.show("align")
            student = ha.convert(self.teacher, seed=self.seed, verbose=False)
            ha.align(student, self.teacher, self.data, self.protocol.align_stage(self.seed), run_dir=folder / "align")
            partial = folder / "model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            student.save_pretrained(partial)
            partial.rename(folder / "model")
        return hf.HybridForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)

    def _held_out(self, first: int, count: int) -> list[Batch]:
        size = self.protocol.batch_size
        batches = self.data.held_out(first + count, size)
        if first % size:
            raise ValueError(f"protocol: {first} sequences are no whole number of batches of {size}")
        return batches[first // size :]

    @cached_property
    def evaluation(self) -> list[Batch]:
        return self._held_out(0, self.protocol.evaluation_sequences)

    @cached_property
    def selection(self) -> list[Batch]:
        protocol = self.protocol
        first = protocol.evaluation_sequences + self.seed * protocol.selection_sequences
        return self._held_out(first, protocol.selection_sequences)

    @cached_property
    def questions(self) -> evaluate.RecallTask:
        return evaluate.load_task(self.files.questions)

    def evaluator(self, loss: str, sequences: int | None = None) -> CandidateEvaluator:
        """With an empty ledger, so that every selector pays for all that it looks at.

        Args:
            sequences: how many of the selection's sequences it may look at; all when None.
        """
        batches = self.selection if sequences is None else first_sequences(self.selection, sequences)
        return CandidateEvaluator(self.student, self.teacher, batches, loss=loss)  # type: ignore[arg-type]

    # ---- measurements that no selector makes ----

    def distil(self, layers: Iterable[int]) -> dict[str, Any]:
        """Recall and held-out KL of the hybrid that keeps `layers`, after stage 2.

        Lists: right answers per question text, KL (nats per token) per held-out sequence.
        """
        return self.once(f"distil {set_key(layers)}", lambda: self._distil(sorted(layers)))

    def _distil(self, layers: list[int]) -> dict[str, Any]:
        hybrid = ha.keep_softmax(self.student, self.teacher, layers)
        stage = self.protocol.distil_stage(self.seed)
        done = ha.match(hybrid, self.teacher, self.data, stage)
        cost = {"tokens": done.tokens, "flops": done.flops, "seconds": done.seconds}
        return self.measure(hybrid) | cost

    def measure(self, model: Any) -> dict[str, Any]:
        """Right answers per question text, and KL per held-out sequence."""
        right, asked = [], []
        for item in self.questions.items:
            # One text at a time, since a paired test needs to know which text an answer belongs to.
            task = evaluate.RecallTask(self.questions.name, (item,))
            result = evaluate.score_recall(model, self.tokenizer, task, scoring="forced")
            right.append(result.correct)
            asked.append(result.answers)
        divergence = evaluate.kl(model, self.teacher, self.evaluation)
        return {"right": right, "asked": asked, "kl": [float(f"{value:.5g}") for value in divergence.tolist()]}

    def reference(self) -> dict[str, Any]:
        """The teacher's own answers."""
        return self.once("teacher", lambda: self.measure(self.teacher))
