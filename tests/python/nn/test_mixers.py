"""Mixers with every option: padding, packed documents, decoding, narrow dtypes, and options that are refused.

That C++ and Python compute the same is tested in tests/parity.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridattn.nn import MIXERS, build_mixer
from hybridattn.nn.state import MixerState
from tolerances import assert_close

SHAPE = {"hidden_size": 24, "num_heads": 6, "num_kv_heads": 2, "head_dim": 6}
LINEAR: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shared": {"kv_sharing": "shared"},
    "positions dropped": {"rotary": "drop"},
    "norms and biases": {"qk_norm": True, "qkv_bias": True, "output_bias": True},
    "convolution": {"short_convolution": 4},
    "ungated": {"output_gate": False},
    "unnormed": {"output_norm": False},
    "linear": {"activation": "none", "output_gate": False, "output_norm": False},
    "wide values": {"value_head_dim": 9},
}
CASES = {
    **{f"gated_deltanet, {name}": ("gated_deltanet", options) for name, options in LINEAR.items()},
    "gated_deltanet, raw keys": ("gated_deltanet", {"l2_norm": False}),
    "deltanet": ("deltanet", {"short_convolution": 2}),
    "deltanet, negative": ("deltanet", {"allow_negative_eigenvalues": True}),
    "lightning": ("lightning", {}),
    "lightning, retnet": ("lightning", {"decay_slopes": "retnet", "kv_sharing": "shared"}),
    "gla": ("gla", {}),
    "gla, everything": ("gla", {"value_head_dim": 9, "short_convolution": 3, "kv_sharing": "shared"}),
    "kda": ("kda", {}),
    "kda, bounded": ("kda", {"gate_lower_bound": -5.0, "allow_negative_eigenvalues": True}),
    "rwkv6": ("rwkv6", {}),
    "rwkv6, normed": ("rwkv6", {"output_norm": True, "state_balancing": False}),
    "rwkv6, shifted": ("rwkv6", {"token_shift": "ddlerp", "short_convolution": 3}),
    "rwkv6, group norm": ("rwkv6", {"output_norm": True, "group_norm": True}),
    "rwkv7": ("rwkv7", {}),
    "rwkv7, shifted": ("rwkv7", {"token_shift": "lerp", "output_gate": False}),
    "rwkv7, gate of low rank": ("rwkv7", {"output_gate_low_rank_dim": 3, "gate_activation": "inner_sigmoid"}),
    "rwkv7, everything": ("rwkv7", {"value_head_dim": 9, "short_convolution": 3, "kv_sharing": "shared"}),
    "softmax": ("softmax_attention", {"qk_norm": True, "qkv_bias": True}),
    "window": ("sliding_window", {"window": 5, "sinks": 2}),
}


@pytest.fixture(params=CASES)
def mixer(request: pytest.FixtureRequest) -> Any:
    kind, options = CASES[request.param]
    mixer = build_mixer(kind, SHAPE | options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():  # away from starts at 0, behind which nothing learns at first
            parameter.add_(0.05 * torch.randn_like(parameter))
    return mixer


def rotary(batch: int, tokens: int, start: int = 0) -> tuple[Tensor, Tensor]:
    angle = (start + torch.arange(tokens, dtype=torch.float64))[None, :, None] * torch.linspace(0.1, 1, 6).double()
    return angle.cos().expand(batch, -1, -1), angle.sin().expand(batch, -1, -1)


@torch.no_grad()
def test_left_padding_changes_nothing(mixer: Any) -> None:
    hidden, pad = torch.randn(1, 17, 24, dtype=torch.float64), 6
    alone, _ = mixer.mix(hidden, rotary=rotary(1, 17))
    rows = torch.cat([torch.randn(1, pad, 24, dtype=torch.float64), hidden], 1)
    mask = torch.arange(17 + pad)[None] >= pad
    padded, _ = mixer.mix(rows, rotary=rotary(1, 17 + pad, -pad), padding_mask=mask)
    assert_close(padded[:, pad:], alone)


@torch.no_grad()
def test_packed_documents_are_alone(mixer: Any) -> None:
    hidden = torch.randn(2, 12, 24, dtype=torch.float64)
    borders = [0, 5, 12, 13, 24]
    flat = hidden.reshape(1, 24, 24)
    places = torch.cat([torch.arange(end - begin) for begin, end in itertools.pairwise(borders)])
    cos, sin = (x[0, places].reshape(2, 12, -1) for x in rotary(1, 12))
    packed, _ = mixer.mix(hidden, rotary=(cos, sin), cu_seqlens=torch.tensor(borders))
    for begin, end in itertools.pairwise(borders):
        alone, _ = mixer.mix(flat[:, begin:end], rotary=rotary(1, end - begin))
        assert_close(packed.reshape(1, 24, -1)[:, begin:end], alone)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 21, [8, 1, 1, 11]])
def test_a_state_goes_on_where_it_stopped(mixer: Any, pieces: list[int]) -> None:
    hidden = torch.randn(2, 21, 24, dtype=torch.float64)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, :4] = False
    whole, _ = mixer.mix(hidden, rotary=rotary(2, 21), padding_mask=mask)
    state, outputs, begin = MixerState(), [], 0
    for piece in pieces:
        end = begin + piece
        out, _ = mixer.mix(
            hidden[:, begin:end], rotary=rotary(2, piece, begin), padding_mask=mask[:, :end], state=state
        )
        outputs.append(out)
        begin = end
    assert_close(torch.cat(outputs, 1)[mask], whole[mask])
    assert state.seen == 21


def test_every_parameter_gets_a_gradient(mixer: Any) -> None:
    out, _ = mixer.mix(torch.randn(2, 9, 24, dtype=torch.float64), rotary=rotary(2, 9))
    out.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_bf16_stays_near_fp64(mixer: Any) -> None:
    hidden = torch.randn(2, 33, 24, dtype=torch.float64)
    wide, _ = mixer.mix(hidden, rotary=rotary(2, 33))
    narrow = build_mixer(mixer.kind, mixer.options)
    narrow.load_state_dict(mixer.state_dict())
    narrow.bfloat16()
    out, _ = narrow.mix(hidden.bfloat16(), rotary=tuple(x.float() for x in rotary(2, 33)))
    assert out.dtype == torch.bfloat16
    # Eight bits of each weight and activation, through four matrix products.
    assert (out.double() - wide).square().mean().sqrt() <= 0.06 * wide.square().mean().sqrt()


@pytest.mark.parametrize("kind", MIXERS)
def test_options_survive_a_dict(kind: str) -> None:
    options = SHAPE | ({"window": 3} if kind == "sliding_window" else {})
    mixer = build_mixer(kind, options)
    assert build_mixer(kind, mixer.options.to_dict()).options == mixer.options


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mamba", {}, "unknown mixer 'mamba' .known: gated_deltanet"),
        ("gated_deltanet", {"short_conv": 4}, "unknown option short_conv"),
        ("gated_deltanet", {"num_kv_heads": 4}, "not a multiple of num_kv_heads 4"),
        ("gated_deltanet", {"short_convolution": 1}, "at least 2"),
        ("gated_deltanet", {"kv_sharing": "half"}, "must be one of cloned, shared"),
        ("lightning", {"decay_slopes": "steep"}, "must be one of lightning, retnet"),
        ("rwkv6", {"token_shift": "half"}, "must be one of none, lerp, ddlerp"),
        ("rwkv7", {"value_low_rank_dim": 0}, "value_low_rank_dim must be positive"),
        ("rwkv7", {"group_norm": True}, "group_norm has no effect without output_norm"),
        ("kda", {"gate_activation": "inner_sigmoid"}, "needs output_gate_low_rank_dim"),
        ("kda", {"output_gate_low_rank_dim": -1}, "a full matrix. or positive; got -1"),
        ("softmax_attention", {"sinks": 2}, "no effect without a window"),
        ("sliding_window", {}, "window must be positive"),
    ],
)
def test_wrong_options_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixer(kind, SHAPE | options)


def test_wrong_types_and_missing_options_are_named() -> None:
    with pytest.raises(TypeError, match=r"head_dim must be int; got 1.5"):
        build_mixer("gated_deltanet", SHAPE | {"head_dim": 1.5})
    with pytest.raises(ValueError, match="missing option hidden_size"):
        build_mixer("gated_deltanet", {"num_heads": 2})


def test_wrong_calls_are_named() -> None:
    mixer = build_mixer("gated_deltanet", SHAPE)
    hidden = torch.randn(1, 5, 24)
    with pytest.raises(ValueError, match=r"must be \[B, T, 24\]"):
        mixer.mix(torch.randn(1, 5, 23))
    with pytest.raises(ValueError, match=r"rotary .cos, sin. is missing"):
        mixer.mix(hidden)
    angles = tuple(x.float() for x in rotary(1, 5))
    with pytest.raises(ValueError, match="exclude each other"):
        mixer.mix(hidden, rotary=angles, cu_seqlens=torch.tensor([0, 5]), state=MixerState())
    with pytest.raises(ValueError, match=r"padding_mask must be \[1, 5\]"):
        mixer.mix(hidden, rotary=angles, padding_mask=torch.ones(1, 4))
    windowed = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril().triu(-2)
    with pytest.raises(ValueError, match="not plain causal attention"):
        mixer(hidden, angles, windowed)
