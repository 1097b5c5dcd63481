"""The default selector on a text model: `python -m benchmarks.selection.smollm2 --minutes 30`.

Takes SmolLM2-135M, keeps a quarter of its softmax layers by several selectors, distils every set alike and measures
held-out KL and recall. There is no exhaustive search here: of 30 layers, 8 can be kept in 5.9 million ways. Every
measurement is a line of ``results/smollm2/smollm2-135m-seed-<n>.jsonl``; the same command goes on, and prints the table in
the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch

from benchmarks.selection.cell import Cell, set_key
from benchmarks.selection.contenders import DEFAULT, Contender, plans, selectors
from benchmarks.selection.protocol import ROOT, Files, Protocol, Teacher
from hybridattn import _C, evaluate, hf
from hybridattn.evaluate.recall_tasks import build_task
from hybridattn.select import CandidateEvaluator

KEEP = 8
TEACHER = Teacher("smollm2-135m", ROOT / "build" / "smollm2" / "teacher", (KEEP,))
RECALL = {"needle_single": 8, "key_value": 8, "passkey": 8}
"""Kinds of recall tasks and items of each, of `RECALL_LENGTH` tokens."""
RECALL_LENGTH = 384
FIRST = (
    DEFAULT, "default (recall_kl)", "gr_s2", "gr_s2 (recall_kl)", "ga_s1", "act_mse", "halo", "ga_s2", "learned_gates",
)  # fmt: skip
"""Selectors in the order of their interest; the others of the comparison cost too much on 30 layers."""


@dataclass(frozen=True)
class TextProtocol(Protocol):
    """Budgets of a text model; matrix products in bf16."""

    seq_len: int = 512
    evaluation_sequences: int = 24
    selection_sequences: int = 8
    align_tokens: int = 131_072
    align_lr: float = 1e-3
    distil_tokens: int = 16_384
    batch_size: int = 2
    dtype: str = "bfloat16"

    def _common(self, seed: int) -> dict[str, Any]:
        return super()._common(seed) | {"dtype": self.dtype}


class TextCell(Cell):
    """Asks general recall tasks; selectors compute in the protocol's dtype."""

    protocol: TextProtocol

    @cached_property
    def questions(self) -> evaluate.RecallTask:
        tasks = [build_task(kind, self.tokenizer, [RECALL_LENGTH], items=items) for kind, items in RECALL.items()]
        return evaluate.RecallTask("recall", tuple(item for task in tasks for item in task.items))

    def evaluator(self, loss: str) -> CandidateEvaluator:
        return CandidateEvaluator(
            self.student,
            self.teacher,
            self.selection,
            loss=loss,  # type: ignore[arg-type]
            dtype=self.protocol.dtype,
        )

    def measure(self, model: Any) -> dict[str, Any]:
        with hf.native_layers():
            return super().measure(model)


def contenders(cell: Cell) -> Iterator[Contender]:
    known = {contender.name: contender for contender in selectors()}
    blind = plans(cell, KEEP)
    yield from (known[name] for name in FIRST[:2])
    yield from (plan for plan in blind if plan.name.startswith("uniform"))
    yield from (known[name] for name in FIRST[2:])
    yield from (plan for plan in blind if not plan.name.startswith("uniform"))


def compare(cell: Cell) -> Iterator[None]:
    """Takes all measurements that are missing, yielding after each."""
    cell.reference()
    for contender in contenders(cell):
        layers = contender.chosen(cell, KEEP)["layers"][str(KEEP)]
        yield
        cell.distil(layers)
        yield


def table(cell: Cell) -> str:
    """Markdown; KL in nats per token of held-out text, after the same distillation; tokens and seconds of choosing."""
    teacher = cell.reference()
    rows = []
    for contender in contenders(cell):
        if (choice := cell.journal.get(contender.key(KEEP))) is None:
            continue
        layers = choice["layers"][str(KEEP)]
        if (found := cell.journal.get(f"distil {set_key(layers)}")) is None:
            continue
        kl, recall = fmean(found["kl"]), sum(found["right"]) / sum(found["asked"])
        rows.append((contender.name, layers, kl, recall, choice["tokens"], choice["wall_seconds"]))
    rows.sort(key=lambda row: row[2])
    uniform = [kl for name, _, kl, *_ in rows if name.startswith("uniform")]
    scale = fmean(uniform) if uniform else float("nan")
    lines = [
        f"Recall of the teacher: {sum(teacher['right']) / sum(teacher['asked']):.3f}.",
        "",
        "| contender | layers | KL | over uniform's mean | recall | tokens | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, layers, kl, recall, tokens, seconds in rows:
        kept = " ".join(map(str, layers))
        lines.append(f"| {name} | {kept} | {kl:.3f} | {kl / scale:.2f} | {recall:.3f} | {tokens:,} | {seconds:.0f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection.smollm2", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop when they are over, between two measurements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    if not TEACHER.folder.exists():
        raise SystemExit(f"{TEACHER.folder} is missing; write it with `python examples/smollm2/prepare.py`")
    torch.set_num_threads(options.threads)
    _C.core.keep_freed_memory()
    started = time.monotonic()
    corpus = TEACHER.folder.parent / "corpus.jsonl"
    files = Files(corpus=corpus, results=Files().results / "smollm2")
    cell = TextCell(TEACHER, options.seed, TextProtocol(), files, partial(print, flush=True))
    for _ in compare(cell):
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print("out of time; run the same command again to go on")
            break
    print(table(cell))


if __name__ == "__main__":
    main()
