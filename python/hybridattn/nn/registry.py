"""The mixers by name, and how to build one from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridattn.nn.deltanet import DeltaNet
from hybridattn.nn.gated_deltanet import GatedDeltaNet
from hybridattn.nn.gated_linear_attention import GatedLinearAttention
from hybridattn.nn.kimi_delta_attention import KimiDeltaAttention
from hybridattn.nn.lightning import Lightning
from hybridattn.nn.mixer import Mixer
from hybridattn.nn.options import MixerOptions
from hybridattn.nn.rwkv import Rwkv6, Rwkv7
from hybridattn.nn.softmax_attention import SlidingWindowAttention, SoftmaxAttention

MIXERS: dict[str, type[Mixer]] = {
    mixer.kind: mixer
    for mixer in (
        GatedDeltaNet,
        DeltaNet,
        KimiDeltaAttention,
        GatedLinearAttention,
        Rwkv6,
        Rwkv7,
        Lightning,
        SoftmaxAttention,
        SlidingWindowAttention,
    )
}


def mixer_type(kind: str) -> type[Mixer]:
    """The class registered as `kind`; ValueError listing the known kinds otherwise."""
    if kind not in MIXERS:
        raise ValueError(f"unknown mixer {kind!r} (known: {', '.join(MIXERS)})")
    return MIXERS[kind]


def build_mixer(kind: str, options: MixerOptions | Mapping[str, Any], layer_idx: int | None = None) -> Mixer:
    """Builds a mixer from its name and options (an options object or a mapping, strictly checked).

    Raises:
        ValueError: unknown kind, unknown or missing option, value out of range.
        TypeError: options of another kind, or a value of the wrong type.
    """
    mixer = mixer_type(kind)
    if not isinstance(options, MixerOptions):
        options = mixer.options_type.from_dict(options)
    return mixer(options, layer_idx)
