"""HybridCache: what a hybrid remembers while it generates."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from hybridattn.nn import mixer_type

CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""What this release of Transformers calls a model's cache; 5.24 renamed ``past_key_values``."""


class HybridCache(Cache):
    """Keys and values where a layer has softmax attention, a state of constant size where it is linear.

    Unlike Transformers' DynamicCache it counts its positions itself, so it works for a model without any softmax layer.

    Args:
        config: of the hybrid.

    Attributes:
        seen: positions processed so far, padding included.
    """

    def __init__(self, config: Any) -> None:
        linear = [kind == "linear_attention" and mixer_type(config.mixer).is_linear for kind in config.layer_types]
        # The second state is for a token shift.
        super().__init__(
            layers=[LinearAttentionLayer(number_of_states=2) if is_linear else DynamicLayer() for is_linear in linear]
        )
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(keys that queries meet, position of the first one)."""
        return self.seen + query_length, 0

    @property
    def is_compileable(self) -> bool:
        """False: keys grow, and `generate` would otherwise prepare static masks for a model without keys."""
        return False

    def reset(self) -> None:
        super().reset()
        self.seen = 0
