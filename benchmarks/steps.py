"""Decoding: one token of the gated delta rule in every sequence.

Letters: B sequences, H heads, D key and value dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from benchmarks.registry import Contenders, Goal, Work, benchmark
from benchmarks.rule_inputs import inputs
from hybridattn import ops


def step_work(B: int, H: int, D: int) -> Work:
    """The fp32 state is read and written; everything else is less than a fiftieth of it."""
    return Work(token_heads=B * H, elements=2 * B * H * D * D)


@benchmark(
    "step_gated_delta_rule",
    cases=[{"B": batch, "H": 32, "D": 128} for batch in (1, 8, 32)],
    quick=[{"B": batch, "H": 32, "D": 128} for batch in (1, 8, 32)],
    tiny={"B": 2, "H": 3, "D": 16},
    goals=[Goal("transformers", least, where={"B": batch}) for batch, least in ((1, 5.0), (8, 15.0), (32, 15.0))],
    work=step_work,
    rounds=51,
)
def step(B: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
    """One token of the gated delta rule: decoding."""
    given = inputs(B, 1, H, D, dtype)
    state = torch.randn(B, H, D, D, generator=torch.Generator().manual_seed(1))

    def run(**options: str) -> Callable[[], object]:
        own = state.clone()
        return lambda: ops.step_gated_delta_rule(*given, state=own, **options)

    kept = state.clone()

    def transformers() -> Tensor:
        nonlocal kept
        with torch.no_grad():
            out, kept = torch_recurrent_gated_delta_rule(*given, initial_state=kept, output_final_state=True)
        return out

    return {"hybridattn": run(), "own ATen backend": run(backend="aten"), "transformers": transformers}
