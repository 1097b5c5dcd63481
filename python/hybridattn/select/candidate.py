"""One hybrid in training by the stage-2 loss, parked on disk while others train."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from hybridattn.distill import MatchObjective, NonFiniteLoss, Stage, Trainer, load_checkpoint, save_checkpoint


def training_digest(stage: Stage, data: Any) -> str:
    """Names what candidates train on: the stage's numbers and the data."""
    fields = stage.model_dump(mode="json", exclude={"checkpoint_every", "log_every"})
    text = json.dumps([fields, getattr(data, "fingerprint", None)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def candidate_folder(parent: Path, layers: Iterable[int], digest: str) -> Path:
    """Where a candidate is parked.

    The set of layers is named by its bits as a number: a list of a deep model's layers would be too long a name.
    """
    return parent / "candidates" / f"{digest}-{sum(1 << layer for layer in layers):x}"


class TrainedCandidate:
    """A copy of the hybrid that keeps `layers`, and its trainer.

    It stands where its last parked state stood, so that after a kill at any moment the same steps follow, on a CPU to
    the same bits.
    """

    def __init__(
        self, student: Any, teacher: nn.Module, layers: frozenset[int], stage: Stage, data: Any, folder: Path
    ) -> None:
        from hybridattn.convert import keep_softmax

        self.layers, self.digest = layers, training_digest(stage, data)
        self.folder = folder
        self.model = keep_softmax(student, teacher, layers)
        self.trainer = Trainer(MatchObjective(self.model, teacher, stage), stage, data)
        self.trainer.__enter__()
        parked = load_checkpoint(self.folder)
        if parked is not None:
            self.trainer.load_state_dict(parked)

    def train_to(self, step: int, progress: Callable[[str], None]) -> str | None:
        """Trains up to `step` and parks the candidate there unless it is the last one.

        Returns:
            Why the training diverged, or None.
        """
        trainer = self.trainer
        every = trainer.stage.checkpoint_every or trainer.total_steps
        while trainer.step < step:
            progress(f"step {trainer.step}/{trainer.total_steps}")
            try:
                trainer.run(trainer.step, min(step, (trainer.step // every + 1) * every))
            except NonFiniteLoss as error:
                return str(error)
            if trainer.step < trainer.total_steps:
                save_checkpoint(self.folder, trainer.state_dict())
        return None

    def flops(self, tokens: int) -> float:
        return self.trainer.objective.flops(tokens)

    def close(self) -> None:
        """Frees the memory; what was parked stays."""
        self.trainer.__exit__(None, None, None)


def remove_parked(folder: Path) -> None:
    """Frees the disk of a candidate that nobody trains further."""
    shutil.rmtree(folder, ignore_errors=True)
