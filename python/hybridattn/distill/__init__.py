"""Distillation in stages: `align` (1), `match` (2), `finetune` (3), their presets, and the loop they share."""

from hybridattn import _C
from hybridattn.distill import presets
from hybridattn.distill.align import AlignObjective, align
from hybridattn.distill.checkpoint import load_checkpoint, save_checkpoint
from hybridattn.distill.finetune import FinetuneObjective, finetune
from hybridattn.distill.loop import NonFiniteLoss, StepRecord, Trainer, TrainerState
from hybridattn.distill.match import MatchObjective, match
from hybridattn.distill.stage import Stage
from hybridattn.distill.stage_run import Progress, StageResult, run_stage

Schedule = _C.distill.Schedule

__all__ = [
    "AlignObjective",
    "FinetuneObjective",
    "MatchObjective",
    "NonFiniteLoss",
    "Progress",
    "Schedule",
    "Stage",
    "StageResult",
    "StepRecord",
    "Trainer",
    "TrainerState",
    "align",
    "finetune",
    "load_checkpoint",
    "match",
    "presets",
    "run_stage",
    "save_checkpoint",
]
