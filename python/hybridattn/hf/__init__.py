"""Hugging Face Transformers: the hybrid model and its registration, supported teachers, access to a decoder's parts."""

from transformers import AutoConfig, AutoModelForCausalLM

from hybridattn.hf.access import attention, decoder_layers, head_weight, hidden_states
from hybridattn.hf.cache import HybridCache
from hybridattn.hf.configuration import HybridConfig
from hybridattn.hf.families import SUPPORTED, check_teacher
from hybridattn.hf.modeling import HybridForCausalLM
from hybridattn.hf.native_layers import native_layers

AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)

__all__ = [
    "SUPPORTED",
    "HybridCache",
    "HybridConfig",
    "HybridForCausalLM",
    "attention",
    "check_teacher",
    "decoder_layers",
    "head_weight",
    "hidden_states",
    "native_layers",
]
