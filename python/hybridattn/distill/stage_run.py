"""A whole stage: from its last checkpoint to its end, with log lines, progress and checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridattn.distill.checkpoint import load_checkpoint, save_checkpoint
from hybridattn.distill.loop import StepRecord, Trainer


@dataclass(frozen=True)
class Progress:
    """How far a stage is. Its string is a line for people.

    Attributes:
        loss: mean over the steps since the last event.
        tokens_per_second: over the same steps.
        seconds_left: at that pace.
    """

    stage: str
    step: int
    total_steps: int
    tokens: int
    loss: float
    lr: float
    tokens_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        speed = f"{self.tokens_per_second:,.0f}".replace(",", " ")
        return f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  {speed} tok/s  {minutes}:{seconds:02d} left"


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The default of `progress` arguments: shows nothing."""


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        losses: one per optimiser step, earlier processes included.
        part_losses: name -> loss of the last step, per layer in align; empty in other stages.
        tokens: trained on, all processes together.
        flops: of these tokens, counted from the weights' multiply-adds.
        seconds: this process took.
    """

    stage: str
    steps: int
    tokens: int
    losses: list[float]
    part_losses: dict[str, float]
    flops: float
    seconds: float

    @property
    def final_loss(self) -> float:
        return self.losses[-1]


class _Log:
    """``log.jsonl``: a line every `every` steps, with means over those steps."""

    def __init__(self, trainer: Trainer, path: Path | None, progress: OnProgress) -> None:
        self.trainer, self.path, self.progress = trainer, path, progress
        # A line's loss does not depend on where an interrupted run was resumed; its speed is this process's.
        self.since = trainer.step - trainer.step % trainer.stage.log_every
        self.timed_from = trainer.step
        self.started = self.time = time.monotonic()
        if path is not None:
            _drop_lines_after(path, trainer.step)

    def __call__(self, record: StepRecord) -> None:
        trainer = self.trainer
        if record.step % trainer.stage.log_every and record.step != trainer.total_steps:
            return
        now = time.monotonic()
        losses = trainer.losses[self.since :]
        speed = (record.step - self.timed_from) * trainer.stage.tokens_per_step / max(now - self.time, 1e-9)
        tokens = record.step * trainer.stage.tokens_per_step
        line: dict[str, Any] = {
            "step": record.step,
            "tokens": tokens,
            "loss": math.fsum(losses) / len(losses),
            "lr": record.lr,
            "mixer_lr": record.mixer_lr,
            "grad_norm": record.grad_norm,
            "tokens_per_second": speed,
            "seconds": now - self.started,
        }
        if record.parts:
            line["parts"] = dict(zip(trainer.objective.parts, record.parts, strict=True))
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        left = (trainer.total_steps - record.step) * trainer.stage.tokens_per_step / speed
        lr = record.mixer_lr if trainer.objective.name == "align" else record.lr
        self.progress(
            Progress(trainer.objective.name, record.step, trainer.total_steps, tokens, line["loss"], lr, speed, left)
        )
        self.since = self.timed_from = record.step
        self.time = now


def run_stage(trainer: Trainer, run_dir: str | Path | None, progress: OnProgress = silent) -> StageResult:
    """Trains to the stage's end, from the last checkpoint in ``run_dir/checkpoint`` where there is one.

    Raises:
        ValueError: the checkpoint is damaged or of another recipe.
        NonFiniteLoss, OSError: as `Trainer.run` and `save_checkpoint`.
    """
    folder = None if run_dir is None else Path(run_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with trainer:
        saved = None if folder is None else load_checkpoint(folder / "checkpoint")
        if saved is not None:
            trainer.load_state_dict(saved)
        log = _Log(trainer, None if folder is None else folder / "log.jsonl", progress)
        every = trainer.stage.checkpoint_every if folder is not None else 0
        while trainer.step < trainer.total_steps:
            stop = trainer.total_steps if every == 0 else min(trainer.total_steps, (trainer.step // every + 1) * every)
            trainer.run(trainer.step, stop, log)
            if folder is not None:
                finished = trainer.step == trainer.total_steps
                save_checkpoint(folder / "checkpoint", trainer.state_dict(optimizer=not finished))
        return StageResult(
            stage=trainer.objective.name,
            steps=trainer.step,
            tokens=trainer.tokens,
            losses=trainer.losses,
            part_losses=dict(zip(trainer.objective.parts, trainer.parts, strict=True)) if trainer.parts else {},
            flops=trainer.objective.flops(trainer.tokens),
            seconds=time.monotonic() - started,
        )


def _drop_lines_after(path: Path, step: int) -> None:
    """Removes what an interrupted process logged after its last checkpoint; those steps run again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # a line that was being written when the process ended
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
