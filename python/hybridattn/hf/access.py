"""A decoder's parts, alike for plain Transformers teachers and hybrids."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hybridattn.nn import FirstValue


def decoder_layers(model: Any) -> nn.ModuleList:
    return model.model.layers


def attention(model: Any, layer: int) -> nn.Module:
    """The attention module (or mixer) of one layer."""
    decoder_layer: Any = decoder_layers(model)[layer]
    return decoder_layer.self_attn


def head_weight(model: Any) -> Tensor:
    """[V, D]: hidden states to logits."""
    return model.get_output_embeddings().weight


def hidden_states(model: Any, batch: Any) -> Tensor:
    """[B, T, D] after the final norm, before the head; packed documents of `batch` do not see each other.

    Transformers reads document borders off the positions (each document starts at 0); mixers read `cu_seqlens`.
    Mixers with a value residual share the first one's values through `first_value`.
    """
    extra = {"unpadded": True, "first_value": FirstValue()}
    extra |= {} if batch.cu_seqlens is None else {"cu_seqlens": batch.cu_seqlens}
    output = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **extra)
    return output.last_hidden_state
