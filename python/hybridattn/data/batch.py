"""Batch: B packed sequences of T tokens and where their documents begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed sequences. Attention and recurrent state must not cross a document boundary.

    Attributes:
        input_ids: ``[B, T]`` int64.
        position_ids: ``[B, T]`` int64, 0 at each document's first token of a row; None when each row is one document.
        cu_seqlens: ``[N + 1]`` int64 document offsets over the flattened ``B * T`` tokens, row ends included; None when
            each row is one document.
        loss_mask: ``[B, T]`` bool, True where a token counts in the loss; None when all count.
        document_ids: names of the documents in the batch, for error messages.

    Example:
        >>> batch = Batch(torch.zeros(4, 512, dtype=torch.long))
        >>> [part.input_ids.shape[0] for part in batch.split(3)]
        [3, 1]
    """

    input_ids: Tensor
    position_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    loss_mask: Tensor | None = None
    document_ids: Sequence[str] = ()

    @property
    def num_tokens(self) -> int:
        """All tokens that a model processes, B * T."""
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on `device`."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=moved(self.position_ids),
            cu_seqlens=moved(self.cu_seqlens),
            loss_mask=moved(self.loss_mask),
        )

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``[start, stop)`` as a batch of their own; `document_ids` stay those of the whole batch."""
        positions, offsets = (
            (None, None) if self.position_ids is None else document_marks(self.position_ids[start:stop])
        )
        return replace(
            self,
            input_ids=self.input_ids[start:stop],
            position_ids=positions,
            cu_seqlens=offsets,
            loss_mask=None if self.loss_mask is None else self.loss_mask[start:stop],
        )

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive micro-batches of at most `size` rows."""
        for start in range(0, self.num_sequences, size):
            yield self.rows(start, min(start + size, self.num_sequences))


def document_marks(positions: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``(position_ids [B, T], cu_seqlens [N + 1])`` of packed rows, or two Nones when each row is one document.

    A document begins wherever its position is 0; each row starts one.
    """
    starts = (positions.reshape(-1) == 0).nonzero().reshape(-1)
    if len(starts) == positions.shape[0]:
        return None, None
    return positions, torch.cat([starts, starts.new_tensor([positions.numel()])])
