"""Linear mixers against their definition, written token by token and head by head from their options alone."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridattn.nn import FirstValue, build_mixer
from tolerances import assert_close

SHAPE = {"hidden_size": 20, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "norm_eps": 1e-3}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"kv_sharing": "shared", "value_head_dim": 5},
    {"rotary": "drop", "activation": "none"},
    {"qk_norm": True, "qkv_bias": True, "output_bias": True},
    {"short_convolution": 3, "kv_sharing": "shared"},
    {"output_gate": False},
    {"output_norm": False},
    {"output_gate": False, "output_norm": False, "l2_norm": False},
]
KINDS = [
    ("gated_deltanet", {}),
    ("gated_deltanet", {"allow_negative_eigenvalues": True}),
    ("deltanet", {}),
    ("deltanet", {"allow_negative_eigenvalues": True}),
    ("lightning", {}),
    ("lightning", {"decay_slopes": "retnet"}),
    ("gla", {}),
    ("gla", {"gate_low_rank_dim": 3, "gate_logit_normalizer": 4.0}),
    ("kda", {}),
    ("kda", {"gate_lower_bound": -5.0}),
    ("rwkv6", {}),
    ("rwkv6", {"state_balancing": False, "gate_activation": "silu"}),
    ("rwkv7", {}),
    ("rwkv7", {"state_balancing": False}),
    ("rwkv6", {"token_shift": "ddlerp"}),
    ("rwkv6", {"group_norm": True, "output_norm": True, "token_shift": "lerp"}),
    ("rwkv7", {"token_shift": "ddlerp", "value_residual": True}),
    ("kda", {"output_gate_low_rank_dim": 3, "gate_activation": "sigmoid"}),
    ("rwkv7", {"output_gate_low_rank_dim": 3, "gate_activation": "inner_sigmoid"}),
]


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def convolved(x: Tensor, taps: Tensor) -> Tensor:
    """x [T, C], taps [C, 1, W]; the last tap meets the token itself."""
    width = taps.shape[-1]
    return torch.stack(
        [sum(taps[:, 0, width - 1 - back] * x[t - back] for back in range(min(width, t + 1))) for t in range(len(x))]
    )


def read_by(mixer: Any, name: str, x: Tensor) -> Tensor:
    """What the projection `name` reads: x, or its mixture of each token and the one before."""
    shift = getattr(mixer, "token_shift", None)
    if shift is None:
        return x
    back = F.pad(x, (0, 0, 1, -1)) - x
    share = shift.mix[name]
    if mixer.options.token_shift == "ddlerp":
        share = share + low_rank(shift.lora[name], x + back * shift.base)
    return x + back * share


def projected(mixer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k [T, H, K] and v [T, H, V] as the rule reads them."""
    o = mixer.options
    names = ("q_proj", "k_proj", "v_proj")
    q, k, v = (F.linear(read_by(mixer, n, x), getattr(mixer, n).weight, getattr(mixer, n).bias) for n in names)
    q, k = q.view(len(x), -1, o.head_dim), k.view(len(x), -1, o.head_dim)
    if o.qk_norm:
        q, k = normed(q, mixer.q_norm.weight, o.norm_eps), normed(k, mixer.k_norm.weight, o.norm_eps)
    if o.rotary == "keep":
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    q, k = q.flatten(1), k.flatten(1)
    if o.short_convolution:
        q, k, v = (
            convolved(y, c.weight)
            for y, c in ((q, mixer.q_conv1d), (k, mixer.k_conv1d), (v, mixer.v_conv1d))
        )  # fmt: skip
    if o.activation == "silu":
        q, k, v = F.silu(q), F.silu(k), F.silu(v)
    q, k, v = q.view(len(x), -1, o.head_dim), k.view(len(x), -1, o.head_dim), v.view(len(x), -1, o.value_head_dim)
    if o.l2_norm:
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    group = o.num_heads // k.shape[1]
    heads = [head // group for head in range(o.num_heads)]
    return q, k[:, heads], v[:, heads]


def low_rank(module: Any, x: Tensor) -> Tensor:
    hidden = x @ module.down.weight.T
    middle = {"none": hidden, "tanh": hidden.tanh(), "sigmoid": 1 / (1 + (-hidden).exp())}[module.activation]
    return middle @ module.up.weight.T + (0 if module.up.bias is None else module.up.bias)


def gates(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Log decay [T, H] or [T, H, K] and, for delta rules, beta [T, H]."""
    o, heads = mixer.options, mixer.options.num_heads

    def per_channel(y: Tensor) -> Tensor:
        return y.view(len(x), heads, o.head_dim)

    if mixer.kind == "gla":
        return per_channel(F.logsigmoid(low_rank(mixer.gk_proj, x))) / o.gate_logit_normalizer, None
    if mixer.kind == "rwkv6":
        x = read_by(mixer, "w_lora", x)
        return per_channel((-(mixer.w0 + low_rank(mixer.w_lora, x)).exp()).clamp_min(-5)), None
    if mixer.kind == "rwkv7":
        x = read_by(mixer, "w_lora", x)
        return per_channel(-math.exp(-0.5) * (mixer.w0 + low_rank(mixer.w_lora, x)).sigmoid()), None
    if mixer.kind == "lightning":
        exponents = torch.arange(heads, dtype=torch.float64)
        slopes = {"lightning": -(2 ** (-8 * (exponents + 1) / heads)), "retnet": (1 - 2 ** (-5 - exponents)).log()}
        return slopes[o.decay_slopes].expand(len(x), -1), None
    beta = torch.sigmoid(x @ mixer.b_proj.weight.T) * (2 if o.allow_negative_eigenvalues else 1)
    if mixer.kind == "deltanet":
        return torch.zeros_like(beta), beta
    if mixer.kind == "kda":
        raw, rate = per_channel(low_rank(mixer.f_proj, x) + mixer.dt_bias), mixer.A_log.exp()[:, None]
        bound = o.gate_lower_bound
        return (bound * (rate * raw).sigmoid() if bound else -rate * F.softplus(raw)), beta
    return -mixer.A_log.exp() * F.softplus(x @ mixer.a_proj.weight.T + mixer.dt_bias), beta


def by_definition(mixer: Any, x: Tensor, cos: Tensor, sin: Tensor, first: Tensor | None = None) -> Tensor:
    """`first` [T, H, V]: the values of the model's first mixer, where there is one below."""
    o = mixer.options
    q, k, v = projected(mixer, x, cos, sin)
    if first is not None:
        opened = (mixer.v0 + low_rank(mixer.v_lora, read_by(mixer, "v_proj", x))).sigmoid()
        v = v + (mixer.v_scale * opened).view_as(v) * (first - v)
    decay, beta = gates(mixer, x)
    rate = None
    if mixer.kind == "rwkv7":
        raw = mixer.a0 + low_rank(mixer.a_lora, read_by(mixer, "a_lora", x))
        rate = raw.sigmoid().view(len(x), o.num_heads, o.head_dim)
    out = torch.zeros(len(x), o.num_heads, o.value_head_dim, dtype=x.dtype)
    for head in range(o.num_heads):
        state = torch.zeros(o.head_dim, o.value_head_dim, dtype=x.dtype)
        for t in range(len(x)):
            key, kept = k[t, head], decay[t, head].exp()
            removed = 0
            if rate is not None:
                unit = key / (key.square().sum() + 1e-6).sqrt()
                removed = torch.outer(rate[t, head] * unit, unit @ state)
            if mixer.kind.startswith("rwkv") and o.state_balancing:
                key = key * (1 - kept + (0 if rate is None else rate[t, head]))
            state = (kept[:, None] if kept.dim() else kept) * state - removed
            written = v[t, head] if beta is None else beta[t, head] * (v[t, head] - key @ state)
            state = state + torch.outer(key, written)
            out[t, head] = o.head_dim**-0.5 * (q[t, head] @ state)
    if o.output_norm and getattr(o, "group_norm", False):
        out = F.group_norm(out.flatten(1), o.num_heads, mixer.o_norm.weight, mixer.o_norm.bias, 1e-5)
    elif o.output_norm:
        out = normed(out, mixer.o_norm.weight, o.norm_eps)
    out = out.reshape(len(x), -1)
    if o.output_gate:
        y = read_by(mixer, "g_proj", x)
        gate = low_rank(mixer.g_proj, y) if o.output_gate_low_rank_dim else y @ mixer.g_proj.weight.T
        out = out * {"silu": F.silu(gate), "sigmoid": gate.sigmoid(), "inner_sigmoid": gate}[o.gate_activation]
    return F.linear(out, mixer.o_proj.weight, mixer.o_proj.bias)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize(("kind", "extra"), KINDS, ids=lambda part: part if isinstance(part, str) else ",".join(part))
@pytest.mark.parametrize("tokens", [1, 13])
def test_a_mixer_is_its_definition(kind: str, extra: dict[str, Any], options: dict[str, Any], tokens: int) -> None:
    if extra.get("group_norm"):
        options = {name: value for name, value in options.items() if name != "output_norm"}
    mixer = build_mixer(kind, SHAPE | extra | options).double()
    for parameter in mixer.parameters():  # away from plain starts: identity taps, norms of one
        parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, tokens, 20, dtype=torch.float64)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1] * 2).double()
    cos, sin = angle.cos(), angle.sin()
    below, first = None, [None, None]
    if extra.get("value_residual"):
        values = torch.randn(2, tokens, 4, mixer.options.value_head_dim, dtype=torch.float64)
        below, first = FirstValue(), list(values)
        below.seen_by("another mixer", values)
    out, _ = mixer.mix(x, rotary=(cos[None], sin[None]), first_value=below)
    assert_close(out, torch.stack([by_definition(mixer, row, cos, sin, f) for row, f in zip(x, first, strict=True)]))
