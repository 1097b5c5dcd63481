"""Closed-form fits of a mixer's gates to statistics of the attention it replaces.

Each function that changes a mixer gives the plan's words for the parameters that it changed, by name. Fits are least
squares over a few thousand tokens in fp64: a product and a solve of the hidden size's square, which `torch.linalg` does by
LAPACK; another linear algebra library, or a twin in C++, would bring nothing.

Shapes: N tokens that count, D hidden size, H heads, K key dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hybridattn.nn import DeltaNet, GatedDeltaNet, GatedLinearAttention, KimiDeltaAttention, Lightning
from hybridattn.nn.linear_attention import LinearAttention
from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.rwkv import Rwkv6
from hybridattn.nn.token_shift import ProjectionInputs

RIDGE = 1e-2
"""Weight of the penalty on a fit's weights, in mean squares of the inputs."""
LARGEST_LOGIT = 4.0
SMALL = 0.25
"""Root mean square of queries and keys before SiLU, where it is nearly linear."""
LARGEST_BIAS = 8.0
"""A gate's bias stays within this: beyond it gates hardly learn."""
SHIFTS = 48
"""Halvings of the interval in which a gate's bias is looked for."""


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """[D, M] W that minimises |inputs W - targets|^2 + RIDGE mean(diag(inputs^T inputs)) |W|^2, in fp64.

    Args:
        inputs: [N, D].
        targets: [N, M].
    """
    x, y = inputs.double(), targets.double()
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ y, left=True)


def set_decay(mixer: LinearAttention, gates: Callable[[], Tensor], target: Tensor, half_lives: str) -> dict[str, str]:
    """Makes the mean log decay of each head `target`, without touching what depends on the token.

    Args:
        gates: the mixer's log decay at the tokens that count, [N, H] or [N, H, K].
        target: [H] fp64, < 0.
        half_lives: the plan's words for it.
    """
    words = f"{half_lives}, by mean attention distance"

    def mean() -> Tensor:
        g = gates().double()
        return g.mean(0) if g.dim() == 2 else g.mean((0, 2))

    if isinstance(mixer, GatedDeltaNet) or (
        isinstance(mixer, KimiDeltaAttention) and not mixer.options.gate_lower_bound
    ):
        mixer.A_log.add_((target / mean()).log().to(mixer.A_log.dtype))
        return {"A_log": words}
    name = "dt_bias" if isinstance(mixer, KimiDeltaAttention) else "gk_proj.up.bias"
    _shift(mixer.get_parameter(name), mean, target)
    return {name: words}


def _shift(bias: nn.Parameter, mean: Callable[[], Tensor], target: Tensor) -> None:
    """Moves each head's part of `bias` [H K] to where `mean()` [H], monotone in it, is `target`, or as near as it may."""
    parts = bias.detach().double().unflatten(0, (len(target), -1))
    spread = parts - parts.mean(1, keepdim=True)

    def at(centre: Tensor) -> Tensor:
        bias.copy_((spread + centre[:, None]).flatten().to(bias.dtype))
        return mean()

    low, high = torch.full_like(target, -LARGEST_BIAS), torch.full_like(target, LARGEST_BIAS)
    rises = at(high) > at(low)
    for _ in range(SHIFTS):
        middle = (low + high) / 2
        above = (at(middle) > target) == rises
        high, low = torch.where(above, middle, high), torch.where(above, low, middle)
    at((low + high) / 2)


def no_decay(mixer: LinearAttention) -> str:
    """Why a mixer's decay is not set; "" where it is."""
    if isinstance(mixer, Lightning):
        return "lightning's decay is fixed per head"
    if isinstance(mixer, Rwkv6):
        return f"{mixer.kind}'s decay has a start of its own, from slow to fast channels"
    has_decay = isinstance(mixer, (GatedDeltaNet, KimiDeltaAttention, GatedLinearAttention))
    return "" if has_decay else f"{mixer.kind} has no decay"


def straighten_similarity(mixer: LinearAttention, x: ProjectionInputs, counted: Tensor) -> dict[str, str]:
    """Makes queries and keys small enough for SiLU to be nearly linear (SiLU(x) = x / 2 + x^2 / 4 - ...). The L2 norm
    behind it takes their size away again, so what remains is that similarities have the teacher's signs and angles.

    Where the mixer has q/k norms, their weights are scaled, otherwise the projections.
    """
    options = mixer.options
    if options.activation != "silu" or not options.l2_norm:
        return {}
    notes = {}
    groups = options.num_heads // options.num_kv_heads
    cloned = f"each KV head serves {groups} query heads; " if options.kv_sharing == "cloned" and groups > 1 else ""
    for letter in ("q", "k"):
        projection, norm = mixer.get_submodule(f"{letter}_proj"), getattr(mixer, f"{letter}_norm")
        heads = projection(x[f"{letter}_proj"][counted]).unflatten(-1, (-1, options.head_dim))
        heads = heads if norm is None else norm(heads)
        scale = SMALL / heads.double().square().mean().sqrt()
        scaled, name = (projection, f"{letter}_proj") if norm is None else (norm, f"{letter}_norm")
        for kind, parameter in scaled.named_parameters():
            parameter.mul_(scale.to(parameter.dtype))
            before = cloned if name == "k_proj" else ""
            notes[f"{name}.{kind}"] = f"{before}scaled to where SiLU is nearly linear"
    return notes


def set_write_strength(
    mixer: LinearAttention, x: ProjectionInputs, counted: Tensor, received: Tensor
) -> dict[str, str]:
    """beta = r / (1 + r) with r the attention that a token receives relative to the average, as a linear function of it.

    Args:
        counted: [B, T] bool.
        received: [N, H].
    """
    if not isinstance(mixer, DeltaNet):
        return {}
    logits = received.clamp_min(math.exp(-LARGEST_LOGIT)).log().clamp_max(LARGEST_LOGIT)
    _copy(mixer.b_proj.weight, ridge(x["b_proj"][counted], logits).T)
    return {"b_proj.weight": "ridge fit to the attention that each token receives"}


def set_output_gate(mixer: LinearAttention, x: ProjectionInputs, counted: Tensor, size: Tensor) -> dict[str, str]:
    """Fits the output gate to a constant per head: what leaves the norm with a mean square of 1 gets the size of the
    teacher's head, where a new gate lets through little and of either sign. Gates that are a sigmoid, and mixers without
    an output norm, stay as they are.

    Args:
        size: [H], root mean square of what the teacher's o_proj reads from each head at a token, averaged over tokens.
    """
    activation, projection = mixer.options.gate_activation, mixer.g_proj
    if projection is None or mixer.o_norm is None or activation == "sigmoid":
        return {}
    inputs, name = x["g_proj"][counted], "g_proj.weight"
    if isinstance(projection, LowRank):
        inputs, name = projection.down(inputs), "g_proj.up.weight"
        inputs = inputs.sigmoid() if activation == "inner_sigmoid" else inputs
    wanted = size if activation == "inner_sigmoid" else silu_inverse(size.double())
    weight = ridge(inputs, wanted.expand(len(inputs), -1)).T  # [H, D]
    _copy(mixer.get_parameter(name), weight.repeat_interleave(mixer.options.value_head_dim, 0))
    return {name: "ridge fit to the size of the teacher's heads"}


def silu_inverse(y: Tensor) -> Tensor:
    """z >= 0 with SiLU(z) = y, by Newton's method: SiLU is convex and rises up to 2.4, is nearly the identity beyond."""
    z = 2 * y.clamp_max(1) + (y - 1).clamp_min(0)
    for _ in range(20):
        gate = z.sigmoid()
        z = (z - (z * gate - y) / (gate * (1 + z * (1 - gate)))).clamp_min(0)
    return z


def _copy(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.to(parameter.dtype))
