"""The other linear-attention rules, forward and backward, against this library's own composition of ATen ops, and Kimi delta
attention against Transformers' torch function too.

Letters: B batch, T tokens, H heads, D key and value dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

from benchmarks.registry import Contenders, Goal, benchmark
from benchmarks.rule_inputs import inputs, output_gradient, rule_work
from hybridattn import ops

SIBLINGS: dict[str, tuple[str, ...]] = {
    "kda": ("g", "beta"),
    "gla": ("g",),
    "delta_rule": ("beta",),
    "lightning": ("g",),
    "linear_attention": (),
    "dplr_delta_rule": ("g", "a", "b"),
}
"""Rule -> what it reads beside q, k and v."""
PER_CHANNEL = ("gla", "kda", "dplr_delta_rule")


def register_sibling(rule: str, gates: tuple[str, ...]) -> None:
    def build(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Contenders:
        q, k, v, g, beta = inputs(B, T, H, D, dtype)
        if rule in PER_CHANNEL:
            g = g.unsqueeze(-1) * torch.rand(D, generator=torch.Generator().manual_seed(2))
        known = {"g": g, "beta": beta, "a": -k, "b": k * beta.unsqueeze(-1)}
        named = {"q": q, "k": k, "v": v} | {name: known[name] for name in gates}
        given = {name: x.detach().requires_grad_() for name, x in named.items()}
        grad_out = output_gradient(B, T, H, D, dtype)
        op = getattr(ops, f"chunk_{rule}")

        def run(function: Callable[..., tuple[Tensor, Tensor | None]], **options: str) -> Callable[[], object]:
            return lambda: torch.autograd.grad(function(**given, **options)[0], list(given.values()), grad_out)

        found = {"hybridattn": run(op), "own ATen backend": run(op, backend="aten")}
        if rule == "kda":
            found["transformers"] = lambda: torch.autograd.grad(
                chunk_kimi_delta_attention(*given.values())[0], list(given.values()), grad_out
            )
        return found

    build.__doc__ = f"{rule.replace('_', ' ')}, forward and backward: gradients of every input."
    benchmark(
        f"chunk_{rule}/forward_backward",
        cases=[{"B": 1, "T": 1024, "H": 16, "D": 128}],
        tiny={"B": 1, "T": 96, "H": 2, "D": 16},
        dtypes=("float32", "bfloat16") if rule == "kda" else ("float32",),
        goals=[Goal("own ATen backend", 4.0, where={"dtype": "float32"})],
        work=rule_work(rule, backward=True),
    )(build)


for _rule, _gates in SIBLINGS.items():
    register_sibling(_rule, _gates)
