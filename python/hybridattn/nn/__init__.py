"""Mixers as ordinary torch modules, with the parameter names of the C++ modules."""

from hybridattn.nn.deltanet import DeltaNet
from hybridattn.nn.first_value import FirstValue
from hybridattn.nn.gated_deltanet import GatedDeltaNet
from hybridattn.nn.gated_linear_attention import GatedLinearAttention
from hybridattn.nn.kimi_delta_attention import KimiDeltaAttention
from hybridattn.nn.lightning import Lightning
from hybridattn.nn.mixer import Mixer
from hybridattn.nn.options import (
    DeltaNetOptions,
    GatedDeltaNetOptions,
    GatedLinearAttentionOptions,
    KimiDeltaAttentionOptions,
    LightningOptions,
    LinearAttentionOptions,
    MixerOptions,
    Rwkv6Options,
    Rwkv7Options,
    SlidingWindowOptions,
    SoftmaxAttentionOptions,
)
from hybridattn.nn.registry import MIXERS, build_mixer, mixer_type
from hybridattn.nn.rwkv import Rwkv6, Rwkv7
from hybridattn.nn.softmax_attention import SlidingWindowAttention, SoftmaxAttention
from hybridattn.nn.state import CacheState, MixerState

__all__ = [
    "MIXERS",
    "CacheState",
    "DeltaNet",
    "DeltaNetOptions",
    "FirstValue",
    "GatedDeltaNet",
    "GatedDeltaNetOptions",
    "GatedLinearAttention",
    "GatedLinearAttentionOptions",
    "KimiDeltaAttention",
    "KimiDeltaAttentionOptions",
    "Lightning",
    "LightningOptions",
    "LinearAttentionOptions",
    "Mixer",
    "MixerOptions",
    "MixerState",
    "Rwkv6",
    "Rwkv6Options",
    "Rwkv7",
    "Rwkv7Options",
    "SlidingWindowAttention",
    "SlidingWindowOptions",
    "SoftmaxAttention",
    "SoftmaxAttentionOptions",
    "build_mixer",
    "mixer_type",
]
