"""TokenShift: projections that read a mixture of a token and the one before it.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hybridattn.nn.low_rank import LowRank
from hybridattn.nn.state import MixerState


@dataclass(frozen=True)
class ProjectionInputs:
    """What each projection of a mixer reads, by the projection's name: the hidden states unless it has its own mixture."""

    hidden_states: Tensor
    """[B, T, D]"""
    shifted: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, projection: str) -> Tensor:
        return self.shifted.get(projection, self.hidden_states)


def previous_tokens(
    hidden_states: Tensor, padded: Tensor | None, cu_seqlens: Tensor | None, state: MixerState | None
) -> Tensor:
    """[B, T, D] at each position the token before it in its document: zero before the first one and for padding.

    Args:
        padded: [B, T, 1], true where a position is padding.
        cu_seqlens: [N + 1], borders of documents over the flattened tokens, row ends included.
        state: has the last token of an earlier call and takes that of this one.
    """
    if padded is not None:
        hidden_states = hidden_states.masked_fill(padded, 0)
    before = None if state is None else state.previous
    if before is None:
        before = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[2])
    previous = torch.cat([before.to(hidden_states.dtype), hidden_states[:, :-1]], dim=1)
    if state is not None:
        state.previous = hidden_states[:, -1:].detach()
    if cu_seqlens is not None:
        places = torch.arange(previous.shape[0] * previous.shape[1], device=cu_seqlens.device)
        starts = torch.isin(places, cu_seqlens).view(*previous.shape[:2], 1)
        previous = previous.masked_fill(starts, 0)
    return previous


class TokenShift(nn.Module):
    """x + (previous x - x) * m for each projection, m per channel; m starts at 0, which shifts nothing.

    "lerp": m = mix (RWKV-7, arXiv 2503.14456). "ddlerp": m = mix + lora(x + (previous x - x) * base), a mixture that
    depends on the data (RWKV-6, arXiv 2404.05892).
    """

    def __init__(self, kind: str, hidden_size: int, rank: int, projections: Iterable[str]) -> None:
        super().__init__()
        names = list(projections)
        self.mix = nn.ParameterDict({name: torch.zeros(hidden_size) for name in names})
        self.base: nn.Parameter | None = None
        self.lora: nn.ModuleDict | None = None
        if kind == "ddlerp":
            self.base = nn.Parameter(torch.zeros(hidden_size))
            self.lora = nn.ModuleDict(
                {name: LowRank(hidden_size, rank, hidden_size, activation="tanh", from_zero=True) for name in names}
            )

    def forward(self, hidden_states: Tensor, previous: Tensor) -> ProjectionInputs:
        """What each projection reads, given [B, T, D] and the tokens before them."""
        back = previous - hidden_states
        middle = hidden_states if self.base is None else hidden_states + back * self.base
        shifted = {}
        for name, mix in self.mix.items():
            share = mix if self.lora is None else mix + self.lora[name](middle)
            shifted[name] = (hidden_states + back * share).to(hidden_states.dtype)
        return ProjectionInputs(hidden_states, shifted)
