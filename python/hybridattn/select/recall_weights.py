"""How much each prediction of the teacher needs far context: the weights of the recall-weighted KL.

Shapes: B batch, T tokens, W window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.data.batch import document_marks
from hybridattn.distill.fingerprint import fingerprint, matrix_weights
from hybridattn.distill.precision import Precision
from hybridattn.evaluate.quality import next_token_labels


class RecallWeights:
    """Batch -> [B, T] >= 0: by how many nats the teacher's log-probability of the true next token drops when its
    context is cut to the last W/2 to W tokens; 0 where it does not drop or no token follows.

    Each row is read again in segments of W tokens that overlap by half, as documents of their own; a token counts in
    the first segment that gives it at least W/2 tokens of context, so two more forward passes are enough for all.

    Args:
        teacher: the model that is distilled.
        window: W, tokens; a quarter of the sequence when None.
        dtype: of the computation, "float32" or "bfloat16".

    Raises:
        ValueError: the window is below 2.

    Example:
        >>> ha.match(hybrid, teacher, data, stage, token_weights=RecallWeights(teacher, window=256))
    """

    def __init__(self, teacher: nn.Module, window: int | None = None, dtype: str = "float32") -> None:
        if window is not None and window < 2:
            raise ValueError(f"recall weights: window is {window} tokens, expected at least 2")
        self.teacher, self.window = teacher, window
        self.precision = Precision(dtype, hf.head_weight(teacher).device)

    @property
    def fingerprint(self) -> str:
        """Names what the weights depend on besides the batch."""
        return f"recall weights, window {self.window or 'a quarter'}, {fingerprint(self.teacher)}"

    def window_of(self, batch: Batch) -> int:
        """W for this batch.

        Raises:
            ValueError: nothing is left to cut off.
        """
        seq_len = batch.input_ids.shape[1]
        window = max(2, seq_len // 4) if self.window is None else self.window
        if window >= seq_len:
            raise ValueError(
                f"recall weights: a window of {window} tokens cuts nothing off sequences of {seq_len}; "
                "use longer sequences or a shorter window"
            )
        return window

    @torch.no_grad()
    def __call__(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """`hidden`: the teacher's hidden states [B, T, D] on `batch` where they are known already."""
        labels = next_token_labels(batch)
        if hidden is None:
            hidden = self._hidden(batch)
        segments, places, first = _segments(batch, self.window_of(batch))
        rows = len(labels)
        # Only the places where a segment counts go through the head.
        cut = self._hidden(segments).reshape(rows, places.numel(), -1)[:, first.reshape(-1)]
        drop = self._surprise(cut, labels) - self._surprise(hidden, labels)
        return drop.clamp_(min=0).masked_fill_(labels == -100, 0)

    def flops(self, tokens: int) -> float:
        """Operations for batches of `tokens` tokens whose hidden states are known."""
        body, head = matrix_weights(self.teacher, head=False), hf.head_weight(self.teacher).numel()
        return 2.0 * tokens * (2 * body + 2 * head)

    def _hidden(self, batch: Batch) -> Tensor:
        with self.precision.forward():
            return hf.hidden_states(self.teacher, batch)

    def _surprise(self, hidden: Tensor, labels: Tensor) -> Tensor:
        narrowed = self.precision.narrowed
        with self.precision.backward():
            head: Any = narrowed(hf.head_weight(self.teacher))
            return ops.linear_cross_entropy(narrowed(hidden), head, labels, reduction="none").float()


def _segments(batch: Batch, window: int) -> tuple[Batch, Tensor, Tensor]:
    """(segments as rows [B * S, W], their places in a row [S, W], where a segment is the first to count [S, W]).

    Read in order, the places that count are 0 to T - 1.
    """
    ids = batch.input_ids
    seq_len, stride = ids.shape[1], max(1, window // 2)
    starts = torch.tensor([*range(0, seq_len - window, stride), seq_len - window], device=ids.device)
    offsets = torch.arange(window, device=ids.device)
    places = starts[:, None] + offsets
    ends = torch.cat([starts.new_zeros(1), starts[:-1] + window])
    inside = torch.arange(seq_len, device=ids.device) if batch.position_ids is None else batch.position_ids
    positions = torch.minimum(inside.expand(ids.shape)[:, places], offsets).reshape(-1, window)
    position_ids, borders = document_marks(positions)
    return Batch(ids[:, places].reshape(-1, window), position_ids, borders), places, places >= ends[:, None]
