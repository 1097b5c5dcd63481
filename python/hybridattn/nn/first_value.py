"""FirstValue: how the values of a model's first mixer reach the later ones within one forward pass.

Shapes: B batch, T tokens, H heads, V value dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FirstValue:
    """What the mixers of one forward pass share: the values of the first of them that has a value residual.

    The first one is the lowest layer with such a mixer, whatever kind of attention the layers below it kept. A decoder
    makes one for every forward pass and hands it to each of its layers, in order.

    Attributes:
        value: [B, T, H, V] once the first mixer has run.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._owner: Any = None
        self._in_graph = False

    def seen_by(self, mixer: Any, value: Tensor) -> Tensor | None:
        """The first mixer's values, or None where `mixer` is the first: its `value` is then kept for the others.

        Raises:
            RuntimeError: the first mixer ran without a gradient, this one runs with one: a reentrant checkpoint, which
                would lose the gradient that goes back to the first mixer's values.
        """
        # A checkpoint runs the first mixer again, which must not take itself for a later one.
        if self._owner is None or self._owner is mixer:
            self._owner, self.value, self._in_graph = mixer, value, torch.is_grad_enabled()
            return None
        assert self.value is not None
        if torch.is_grad_enabled() and not self._in_graph:
            raise RuntimeError(
                f"{mixer.kind}: the first mixer's values carry no gradient; checkpoint layers with use_reentrant=False"
            )
        return self.value.to(value)

    def detach(self) -> None:
        """Cuts the first mixer's values from its graph: what later mixers learn stays with them."""
        if self.value is not None:
            self.value = self.value.detach()

    def copy(self) -> FirstValue:
        """For another way through the layers above."""
        other = FirstValue()
        other.value, other._owner, other._in_graph = self.value, self._owner, self._in_graph
        return other
