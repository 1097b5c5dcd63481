"""Where the time of a step of alignment and of matching goes, by kind of op: `python -m benchmarks.profile_stages`.

The model has SmolLM2-135M's shape and random weights; the second step is profiled, whose optimiser has its state.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import hybridattn as ha
from benchmarks import machine
from benchmarks.align_memory import OneBatch, models
from hybridattn.distill import AlignObjective, MatchObjective, Stage, Trainer

KINDS: Mapping[str, tuple[str, ...]] = {
    "loss": (
        "hybridattn::linear_kl_divergence",
        "hybridattn::linear_cross_entropy",
        "hybridattn::native_squared_distance",
    ),
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "hybridattn::linear"),
    "softmax attention": ("aten::_scaled_dot_product", "hybridattn::native_attention"),
    "rules": ("hybridattn::chunk_",),
    "norms": ("hybridattn::row_norm",),
    "rotary embedding of mixers": ("hybridattn::apply_rotary",),
    "optimiser": ("aten::_fused_adamw", "aten::_foreach", "Optimizer"),
    "copies and casts": ("aten::copy_", "aten::cat"),
    "zeros": ("aten::fill_",),
}
"""Kind -> beginnings of names; everything else is elementwise or bookkeeping."""
REST = "elementwise and the rest"

STAGES: Mapping[str, tuple[Callable[..., Any], Callable[..., Stage]]] = {
    "align": (AlignObjective, ha.presets.align),
    "match": (MatchObjective, ha.presets.match),
}


def kind_of(op: str) -> str:
    return next((kind for kind, names in KINDS.items() if op.startswith(names)), REST)


def shares(stage_name: str, model: str, B: int, T: int, dtype: str) -> dict[str, float]:
    """Kind -> its share of the time that ops took themselves, largest first."""
    objective, preset = STAGES[stage_name]
    teacher, student = models(model, torch.float32)
    stage = preset("paper", tokens=2 * B * T, seq_len=T, batch_size=B, dtype=dtype)
    data = OneBatch(B, T, teacher.config.vocab_size)
    with Trainer(objective(student, teacher, stage), stage, data) as trainer:
        trainer.run(0, 1)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            trainer.run(1, 2)
    times: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in sorted(times.items(), key=lambda item: -item[1])}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_stages", description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--model", default="smollm2-135m", choices=["smollm2-135m", "tiny"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    found = {name: shares(name, options.model, options.batch, options.tokens, options.dtype) for name in options.stages}
    table = Table("kind of op", *(f"{name}, share of a step" for name in found))
    for kind in [*KINDS, REST]:
        table.add_row(kind, *(f"{parts.get(kind, 0):.1%}" for parts in found.values()))
    Console().print(table)
    if options.out is not None:
        case = {"model": options.model, "B": options.batch, "T": options.tokens, "dtype": options.dtype}
        content = {"machine": machine.describe() | {"threads": torch.get_num_threads()}, "case": case, "shares": found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
