"""What is compared, on what, with which budgets: everything that decides a number of the raw data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybridattn.distill import Stage, presets

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Teacher:
    """A teacher and the numbers of softmax layers that are compared on it, the most telling first.

    Attributes:
        folder: Hugging Face folder.
        budgets: K.
    """

    name: str
    folder: Path
    budgets: tuple[int, ...]


_TINY = ROOT / "examples" / "tiny_teacher"

TEACHERS = (
    Teacher("induction-2-3-of-8", _TINY / "teacher", (2, 3, 1, 4)),
    Teacher("induction-1-4-of-8", _TINY / "teachers" / "induction-1-4-of-8", (2, 3, 1, 4)),
    Teacher("induction-4-7-of-12", _TINY / "teachers" / "induction-4-7-of-12", (2, 3)),
)

SEEDS = (0, 1, 2)
"""Of the mixers' initial values, of the order of the data in every stage, and of which sequences selectors see."""


@dataclass(frozen=True)
class Protocol:
    """Budgets, all in tokens or sequences of `seq_len` tokens.

    Attributes:
        held_out: share of the documents that nothing trains on.
        evaluation_sequences: held-out sequences of the final KL, the same for all seeds.
        selection_sequences: held-out sequences of every selector, others for every seed and never those of the final KL.
        align_tokens, align_lr: stage 1, once per teacher and seed.
        distil_tokens, distil_lr, distil_mixer_lr: stage 2, the same for every chosen set.
        score_tokens: stage 2 of every candidate where a criterion trains candidates.
        best_share, best_least: how many sets of each size are distilled because they score best untrained, under either
            loss.
        random_draws: random sets per seed and size.
        batch_size: sequences per optimiser step and per forward pass.
    """

    seq_len: int = 256
    held_out: float = 0.05
    evaluation_sequences: int = 64
    selection_sequences: int = 32
    align_tokens: int = 409_600
    align_lr: float = 2e-3
    distil_tokens: int = 40_960
    distil_lr: float = 3e-5
    distil_mixer_lr: float = 3e-4
    score_tokens: int = 40_960
    best_share: float = 0.1
    best_least: int = 3
    random_draws: int = 3
    batch_size: int = 8

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def align_stage(self, seed: int) -> Stage:
        return presets.align(
            "paper",
            tokens=self.align_tokens,
            lr=self.align_lr,
            mixer_lr=self.align_lr,
            checkpoint_every=50,
            **self._common(seed),
        )

    def distil_stage(self, seed: int) -> Stage:
        return presets.match("paper", tokens=self.distil_tokens, **self._rates(), **self._common(seed))

    def score_stage(self, seed: int) -> Stage:
        return presets.score("paper", tokens=self.score_tokens, **self._rates(), **self._common(seed))

    @property
    def score_steps(self) -> int:
        return -(-self.score_tokens // (self.batch_size * self.seq_len))

    def _rates(self) -> dict[str, float]:
        return {"lr": self.distil_lr, "mixer_lr": self.distil_mixer_lr}

    def _common(self, seed: int) -> dict[str, int]:
        return {"seq_len": self.seq_len, "batch_size": self.batch_size, "seed": seed}


@dataclass(frozen=True)
class Files:
    """Where the comparison reads and writes.

    Attributes:
        corpus, questions: of ``examples/tiny_teacher/prepare.py``.
        results: folder of the raw data, one file per teacher and seed.
        cache: folder of aligned students and tokens, which can be made again.
    """

    corpus: Path = field(default=ROOT / "build" / "tiny_teacher" / "corpus.jsonl")
    questions: Path = field(default=ROOT / "build" / "tiny_teacher" / "recall.jsonl")
    results: Path = field(default=ROOT / "benchmarks" / "selection" / "results")
    cache: Path = field(default=ROOT / "build" / "selection")

    def check(self) -> None:
        """Raises FileNotFoundError, with the remedy, where the corpus or the questions are missing."""
        for path in (self.corpus, self.questions):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing; write it with `python examples/tiny_teacher/prepare.py --out {path.parent}`"
                )
