"""Steps of alignment and matching on a model shaped as SmolLM2-135M: this library's kernels against its ATen backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hybridattn as ha
from benchmarks.align_memory import OneBatch, models
from benchmarks.registry import Contenders, Goal, Work, benchmark
from hybridattn import ops
from hybridattn.distill import AlignObjective, MatchObjective, Stage, Trainer
from hybridattn.distill.objective import Objective


def stage_work(model: str, B: int, T: int) -> Work:
    return Work(tokens=B * T)


CASES: dict[str, Any] = {
    "cases": [{"model": "smollm2-135m", "B": 2, "T": 512}],
    "quick": [{"model": "smollm2-135m", "B": 1, "T": 512}],
    "tiny": {"model": "tiny", "B": 1, "T": 16},
    "threads": (2,),
    "dtypes": ("bfloat16",),
    "work": stage_work,
    "rounds": 3,
}


def steps(
    objective: Callable[..., Objective], preset: Callable[..., Stage], model: str, B: int, T: int, dtype: torch.dtype
) -> Contenders:
    """One optimiser step on each backend."""
    teacher, student = models(model, torch.float32)
    # With a rate of 0 all the work is done and the weights stay: every call measures the same.
    stage = preset(
        "paper", tokens=B * T, seq_len=T, batch_size=B, lr=0.0, mixer_lr=0.0, dtype=str(dtype).split(".")[-1]
    )
    data = OneBatch(B, T, teacher.config.vocab_size)

    def run(backend: str) -> Callable[[], object]:
        def step() -> list[float]:
            with ops.use_backend(backend), Trainer(objective(student, teacher, stage), stage, data) as trainer:
                return trainer.run(0, 1)

        return step

    return {"hybridattn": run("native"), "own ATen backend": run("aten")}


@benchmark("stages/align", goals=[Goal("own ATen backend", 2.0)], **CASES)
def align(model: str, B: int, T: int, dtype: torch.dtype) -> Contenders:
    """A step of stage 1, matrix products in `dtype`."""
    return steps(AlignObjective, ha.presets.align, model, B, T, dtype)


@benchmark("stages/match", goals=[Goal("own ATen backend", 1.3)], **CASES)
def match(model: str, B: int, T: int, dtype: torch.dtype) -> Contenders:
    """A step of stage 2 with every layer linear, matrix products in `dtype`."""
    return steps(MatchObjective, ha.presets.match, model, B, T, dtype)
