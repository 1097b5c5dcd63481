"""Packing: a split's documents laid end to end and cut into rows of T tokens; row r as arrays or rows as a Batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hybridattn.data.batch import Batch, document_marks
from hybridattn.data.store import TokenStore


class PackedDocuments:
    """Documents `order` of a store as consecutive rows of `seq_len` tokens; a last, shorter row is left out.

    Raises:
        ValueError: `seq_len` is below 2.
    """

    def __init__(self, store: TokenStore, order: np.ndarray, seq_len: int) -> None:
        if seq_len < 2:
            raise ValueError(f"data: seq_len is {seq_len}, expected at least 2")
        self.store = store
        self.order = order
        self.seq_len = seq_len
        lengths = store.offsets[order + 1] - store.offsets[order]
        self._ends = np.cumsum(lengths, dtype=np.int64)

    @property
    def num_tokens(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return self.num_tokens // self.seq_len

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows as one batch; positions restart at each document and at each row."""
        ids = np.empty((len(rows), self.seq_len), dtype=np.int64)
        positions = np.empty_like(ids)
        mask = None if self.store.mask is None else np.empty(ids.shape, dtype=bool)
        names: dict[str, None] = {}
        for i, row in enumerate(rows):
            filled = 0
            for document, start, stop in self._pieces(row):
                span = slice(filled, filled + stop - start)
                ids[i, span] = self.store.tokens[start:stop]
                positions[i, span] = np.arange(stop - start)
                if mask is not None and self.store.mask is not None:
                    mask[i, span] = self.store.mask[start:stop]
                names[self.store.name(document)] = None
                filled = span.stop
        position_ids, offsets = document_marks(torch.from_numpy(positions))
        return Batch(
            input_ids=torch.from_numpy(ids),
            position_ids=position_ids,
            cu_seqlens=offsets,
            loss_mask=None if mask is None else torch.from_numpy(mask),
            document_ids=list(names),
        )

    def _pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(document, start, stop) in the store's tokens, for the documents of a row."""
        begin, end = row * self.seq_len, (row + 1) * self.seq_len
        pieces = []
        place = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            document = int(self.order[place])
            document_end = int(self._ends[place])
            stop = min(end, document_end)
            # Distance from the document's end is the same in the packed stream and in the store.
            shift = int(self.store.offsets[document + 1]) - document_end
            pieces.append((document, begin + shift, stop + shift))
            begin, place = stop, place + 1
        return pieces
