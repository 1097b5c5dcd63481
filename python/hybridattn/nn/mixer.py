"""Mixer: what stands in the place of a decoder layer's attention.

Shapes: B batch, T tokens, D hidden size, R rotary width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hybridattn.nn.first_value import FirstValue
from hybridattn.nn.options import MixerOptions
from hybridattn.nn.state import CacheState, MixerState

Rotary = tuple[Tensor, Tensor]


class Mixer(nn.Module):
    """Base of every mixer: `mix` is the mathematics, `forward` the calling convention of a Transformers decoder layer."""

    kind: ClassVar[str]
    """Registry name, as in config.json and recipes."""
    options_type: ClassVar[type[MixerOptions]]
    is_linear: ClassVar[bool]
    """True when memory per sequence does not grow with its length."""
    keep_in_fp32: ClassVar[tuple[str, ...]] = ()
    """Parameters that stay at least fp32 when the module is cast to a narrower type."""

    def __init__(self, options: MixerOptions, layer_idx: int | None = None) -> None:
        super().__init__()
        if type(options) is not self.options_type:
            raise TypeError(f"{self.kind}: options must be {self.options_type.__name__}; got {type(options).__name__}")
        self.options = options
        self.layer_idx = layer_idx

    @abstractmethod
    def mix(
        self,
        hidden_states: Tensor,
        *,
        rotary: Rotary | None = None,
        padding_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: MixerState | None = None,
        first_value: FirstValue | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """Mixes tokens.

        Args:
            hidden_states: [B, T, D].
            rotary: (cos, sin), each [B, T, R] or [1, T, R]; required when options.rotary is "keep".
            padding_mask: [B, T] bool (or 0/1), true = token; padding stands on the left. With a state it may also cover
                everything seen so far.
            cu_seqlens: [N + 1] int64, borders of packed documents over the flattened B * T tokens; every row's end must
                be a border.
            state: an (empty or earlier) MixerState to continue from; it is updated in place. None keeps nothing.
            first_value: what this forward pass of the model shares between its mixers, for those with a value residual;
                None: this mixer is the first.

        Returns:
            (out [B, T, D], state). Outputs at padded positions have no meaning.

        Raises:
            ValueError: shapes disagree, rotary is missing, or cu_seqlens and state are both given.
        """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any | None = None,
        *,
        padding_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        unpadded: bool = False,
        first_value: FirstValue | None = None,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Drop-in for a Transformers attention module: returns (out [B, T, D], None).

        `attention_mask` may be the 2-D padding mask [B, Tk] or the 4-D mask that Transformers makes of it; a 4-D mask
        that says anything beyond causal attention with left padding raises ValueError (pass cu_seqlens instead).
        `unpadded` says that there is no padding, so that nothing need be read off a mask, which may be a window's.
        `cache` is what Transformers calls `past_key_values` since 5.24.
        """
        cache = past_key_values if cache is None else cache
        if padding_mask is None and attention_mask is not None and cu_seqlens is None and not unpadded:
            padding_mask = attention_mask if attention_mask.dim() == 2 else self._padding_of(attention_mask)
        state = None
        if cache is not None:
            if self.layer_idx is None:
                raise ValueError(f"{self.kind}: layer_idx is needed to use a cache; build the mixer with it")
            state = CacheState(cache, self.layer_idx, linear=self.is_linear)
        out, _ = self.mix(
            hidden_states,
            rotary=position_embeddings,
            padding_mask=padding_mask,
            cu_seqlens=cu_seqlens,
            state=state,
            first_value=first_value,
        )
        return out, None

    def _padding_of(self, attention_mask: Tensor) -> Tensor:
        """Padding mask [B, Tk] behind a causal 4-D attention mask [B, 1, T, Tk], bool or additive."""
        visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        visible = visible[:, 0]
        tokens, keys = visible.shape[1:]
        padding = visible[:, -1]
        causal = torch.ones(tokens, keys, dtype=torch.bool, device=visible.device).tril(keys - tokens)
        rows = padding[:, -tokens:, None]  # what a padded query sees does not matter
        if not torch.equal(visible & rows, causal & padding[:, None, :] & rows):
            raise ValueError(
                f"{self.kind}: the 4-D attention mask is not plain causal attention with padding; "
                "pass padding_mask [B, T] or, for packed documents, cu_seqlens"
            )
        return padding

    def _check(
        self, hidden_states: Tensor, rotary: Rotary | None, cu_seqlens: Tensor | None, state: MixerState | None
    ) -> None:
        options = self.options
        if hidden_states.dim() != 3 or hidden_states.shape[2] != options.hidden_size:
            raise ValueError(
                f"{self.kind}: hidden_states must be [B, T, {options.hidden_size}]; got {list(hidden_states.shape)}"
            )
        if options.rotary == "keep" and rotary is None:
            raise ValueError(
                f'{self.kind}: rotary (cos, sin) is missing; pass it or build the mixer with rotary="drop"'
            )
        if cu_seqlens is not None and state is not None:
            raise ValueError(
                f"{self.kind}: cu_seqlens (whole documents) and a state (one continued sequence) exclude each other"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Mixer:
        # Every cast and move of a module ends here, also when it is a child of a larger model.
        before = {name: self.get_parameter(name).data for name in self.keep_in_fp32}
        super()._apply(fn, recurse)
        for name, data in before.items():
            parameter = self.get_parameter(name)
            if parameter.dtype.itemsize < min(data.dtype.itemsize, torch.float32.itemsize):
                parameter.data = data.to(device=parameter.device)
        return self

    def extra_repr(self) -> str:
        options = self.options
        return f"heads={options.num_heads}/{options.num_kv_heads}, head_dim={options.head_dim}, rotary={options.rotary}"
