"""Mixers as ordinary torch modules, with the parameter names of the C++ modules."""

from hybridattn.nn.deltanet import DeltaNet
from hybridattn.nn.gated_deltanet import GatedDeltaNet
from hybridattn.nn.lightning import Lightning
from hybridattn.nn.mixer import Mixer
from hybridattn.nn.options import (
    DeltaNetOptions,
    GatedDeltaNetOptions,
    LightningOptions,
    LinearAttentionOptions,
    MixerOptions,
    SlidingWindowOptions,
    SoftmaxAttentionOptions,
)
from hybridattn.nn.registry import MIXERS, build_mixer, mixer_type
from hybridattn.nn.softmax_attention import SlidingWindowAttention, SoftmaxAttention
from hybridattn.nn.state import CacheState, MixerState

__all__ = [
    "MIXERS",
    "CacheState",
    "DeltaNet",
    "DeltaNetOptions",
    "GatedDeltaNet",
    "GatedDeltaNetOptions",
    "Lightning",
    "LightningOptions",
    "LinearAttentionOptions",
    "Mixer",
    "MixerOptions",
    "MixerState",
    "SlidingWindowAttention",
    "SlidingWindowOptions",
    "SoftmaxAttention",
    "SoftmaxAttentionOptions",
    "build_mixer",
    "mixer_type",
]
