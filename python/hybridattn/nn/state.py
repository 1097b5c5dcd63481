"""What a mixer remembers between calls: its own MixerState, or a Transformers cache seen as one.

Shapes: B batch, T tokens, H heads, K key dim, V value dim, W convolution width, C convolved channels, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MixerState:
    """State of one mixer. An empty one starts a sequence; `Mixer.mix(state=...)` reads and updates it in place."""

    def __init__(self) -> None:
        self.recurrent: Tensor | None = None
        """[B, H, K, V], fp32: the linear rule's state."""
        self.convolution: Tensor | None = None
        """[B, C, W - 1]: inputs of the short convolutions of q, k and v, side by side."""
        self.previous: Tensor | None = None
        """[B, 1, D]: the last token's hidden state, for a token shift."""
        self.key: Tensor | None = None
        """[B, T, HKV, K]: keys of softmax attention."""
        self.value: Tensor | None = None
        """[B, T, HKV, K]: values of softmax attention."""
        self.padding: Tensor | None = None
        """[B, T] bool: which cached keys are tokens; None when all are."""
        self.seen = 0
        """Positions processed so far, padding included."""

    def extend(self, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Appends keys and values [B, T, HKV, K] and returns all of them with their padding mask [B, Tk] or None.

        `padding_mask` may cover the new tokens only or everything seen so far.
        """
        before = 0 if self.key is None else self.key.shape[1]
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], dim=1), torch.cat([self.value, value], dim=1)
        total, tokens = key.shape[1], key.shape[1] - before
        if padding_mask is None:
            if self.padding is not None:
                padding_mask = torch.nn.functional.pad(self.padding, (0, tokens), value=True)
        elif padding_mask.shape[1] == tokens and before:
            past = self.padding if self.padding is not None else padding_mask.new_ones(key.shape[0], before)
            padding_mask = torch.cat([past, padding_mask], dim=1)
        elif padding_mask.shape[1] != total:
            raise ValueError(
                f"softmax_attention: padding_mask covers {padding_mask.shape[1]} positions, "
                f"expected the {tokens} new ones or all {total}"
            )
        self.key, self.value, self.padding = key, value, padding_mask
        return key, value, padding_mask

    def forget(self, window: int, sinks: int) -> None:
        """Keeps only what a later query can still see: the first `sinks` positions and the last `window` - 1.

        With padding everything stays, because the sinks are at different places in each row.
        """
        if self.key is None or self.value is None or self.padding is not None:
            return
        if self.key.shape[1] > sinks + window - 1:
            recent = self.key.shape[1] - (window - 1)
            self.key = torch.cat([self.key[:, :sinks], self.key[:, recent:]], dim=1)
            self.value = torch.cat([self.value[:, :sinks], self.value[:, recent:]], dim=1)


class CacheState(MixerState):
    """One layer of a Transformers cache with the interface of MixerState."""

    def __init__(self, cache: Any, layer_idx: int, *, linear: bool) -> None:
        self._cache, self._layer_idx = cache, layer_idx
        if linear and not hasattr(
            cache.layers[layer_idx] if layer_idx < len(cache.layers) else None, "recurrent_states"
        ):
            raise ValueError(
                f"layer {layer_idx}: the cache ({type(cache).__name__}) has no recurrent state there; "
                "use hybridattn.hf.HybridCache(model.config)"
            )
        if not linear and layer_idx < len(cache.layers) and not hasattr(cache.layers[layer_idx], "keys"):
            raise ValueError(f'layer {layer_idx}: softmax attention needs a cache layer of type "full_attention"')
        self.padding = None
        self.seen = 0

    @property
    def recurrent(self) -> Tensor | None:
        layer = self._cache.layers[self._layer_idx]
        # `has_previous_state` is set by convolution updates alone, so it cannot tell whether this state exists.
        return layer.recurrent_states[0] if layer.is_recurrent_states_initialized[0] else None

    @recurrent.setter
    def recurrent(self, state: Tensor | None) -> None:
        assert state is not None
        layer = self._cache.layers[self._layer_idx]
        if layer.recurrent_states[0] is not state:
            self._cache.update_recurrent_state(state, self._layer_idx)
        layer.device = state.device
        layer.has_previous_state[0] = True

    @property
    def convolution(self) -> Tensor | None:
        layer = self._cache.layers[self._layer_idx]
        return layer.conv_states[0] if layer.is_conv_states_initialized[0] else None

    @convolution.setter
    def convolution(self, state: Tensor | None) -> None:
        assert state is not None
        self._cache.update_conv_state(state, self._layer_idx)

    @property
    def previous(self) -> Tensor | None:
        layer = self._cache.layers[self._layer_idx]
        return layer.conv_states[1].transpose(1, 2) if layer.is_conv_states_initialized[1] else None

    @previous.setter
    def previous(self, token: Tensor | None) -> None:
        assert token is not None
        self._cache.update_conv_state(token.transpose(1, 2), self._layer_idx, 1)

    def extend(self, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        key, value = self._cache.update(key.transpose(1, 2), value.transpose(1, 2), self._layer_idx)
        total = key.shape[2]
        if padding_mask is not None:
            if padding_mask.shape[1] < total:
                raise ValueError(
                    f"layer {self._layer_idx}: attention_mask covers {padding_mask.shape[1]} positions, "
                    f"the cache holds {total}"
                )
            padding_mask = padding_mask[:, -total:]
        return key.transpose(1, 2), value.transpose(1, 2), padding_mask

    def forget(self, window: int, sinks: int) -> None:
        """The Transformers cache counts its positions by its keys, so it keeps them all."""
