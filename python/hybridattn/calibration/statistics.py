"""What a teacher's attention looks at: how far back each head reads, and how much each token is read.

Shapes: B batch, T tokens, D hidden size, H query heads, HKV key/value heads, K head dim, C queries of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridattn import ops

CHUNK_SCORES = 1 << 24
"""Attention scores in memory at once (64 MiB): queries are taken in chunks."""
LONGEST_MEMORY = 16
"""Half-life of the slowest decay, in lengths of the longest document seen: what lies further cannot be told from it."""
FASTEST_DECAY = -5.0
"""Log decay per token of a head that attends to its own token only."""


@dataclass(frozen=True)
class AttentionStatistics:
    """Of one layer, over the queries that count.

    A document's first token is left out of what describes the others: many heads park on it the attention that they have
    no use for (attention sinks, Xiao et al., arXiv 2309.17453), which says nothing about memory.

    Attributes:
        distance: [H] fp64, mean number of tokens from a query back to what it attends to, without the first token.
        received: [B, T, H] fp32, attention that a token receives from the queries that see it, relative to attention that
            is the same for all visible tokens; of the attention that is not on the first token, except for itself. 1 is
            average, 0 is never read.
        visible: [N] fp64, entry n: how many queries see n + 1 tokens besides the first one.
    """

    distance: Tensor
    received: Tensor
    visible: Tensor


def attention_statistics(
    attention: Any, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], position_ids: Tensor, counted: Tensor
) -> AttentionStatistics:
    """Statistics of a Transformers attention module (Llama, Qwen2, Qwen3, Mistral; sliding windows too).

    Args:
        hidden_states: [B, T, D], the module's input.
        rotary: (cos, sin), each [B or 1, T, R].
        position_ids: [B, T], 0 where a document starts.
        counted: [B, T] bool, queries that count.
    """
    q = attention.q_proj(hidden_states).unflatten(-1, (-1, attention.head_dim))
    k = attention.k_proj(hidden_states).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = (ops.apply_rotary(x, *rotary).float() for x in (q, k))
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    batch, tokens, heads = q.shape[:3]
    visible = (position_ids + 1).clamp_max(window or tokens)
    besides = position_ids.clamp_max(window or tokens)
    mass, distance = (torch.zeros(heads, dtype=torch.float64, device=q.device) for _ in range(2))
    received = torch.zeros(batch, heads, tokens, device=q.device)
    places = torch.arange(tokens, device=q.device)
    step = max(1, CHUNK_SCORES // (heads * tokens))
    for row in range(batch):
        readers = torch.zeros(tokens, device=q.device)
        for start in range(0, tokens, step):
            chunk = slice(start, start + step)
            back = places[chunk, None] - places  # [C, T]
            seen = (back >= 0) & (back < visible[row, chunk, None])
            shares = _shares(q[row, chunk], k[row], seen, attention.scaling) * counted[row, chunk, None]
            later = shares * (back < position_ids[row, chunk, None])
            mass += later.sum((1, 2)).double()
            distance += (later * back).sum((1, 2)).double()
            received[row] += (shares * visible[row, chunk, None]).sum(1)
            readers += (seen & counted[row, chunk, None]).sum(0)
        received[row] /= readers.clamp_min(1)
    histogram = torch.bincount(besides[counted & (besides > 0)] - 1).double()
    share = (mass / histogram.sum()).float()[:, None]
    first = (position_ids == 0)[:, None]
    received = torch.where(first, received, received / share)
    return AttentionStatistics(distance / mass, received.transpose(1, 2), histogram)


def _shares(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Softmax weights [H, C, T] of queries [C, H, K] over keys [T, HKV, K]."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("cngk,tnk->ngct", grouped, k).flatten(0, 1) * scale
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def decay_of_distance(distance: Tensor, visible: Tensor) -> Tensor:
    """Log decay per token [H] fp64 with which exponentially falling weights lie, on average, `distance` tokens back.

    Over an endless past the weights e^(g n), n = 0, 1, ..., have the mean distance e^g / (1 - e^g), so that
    g = -log(1 + 1 / distance). A query that sees m tokens has the mean sum(n e^(g n)) / sum(e^(g n)) over n < m, whose
    average over all queries is solved for g by bisection: attention to all of a short document alike is then no decay
    rather than a half-life of that document.

    Args:
        distance: [H] fp64.
        visible: [N] fp64, how many queries see 1, ..., N tokens.
    """
    places = torch.arange(len(visible), dtype=torch.float64, device=visible.device)
    slowest = -math.log(2) / (LONGEST_MEMORY * len(visible))
    low, high = torch.full_like(distance, FASTEST_DECAY), torch.full_like(distance, slowest)
    for _ in range(60):
        middle = (low + high) / 2
        weights = torch.exp(middle[:, None] * places)
        means = (weights * places).cumsum(1) / weights.cumsum(1)
        too_far = (means * visible).sum(1) / visible.sum() > distance
        high, low = torch.where(too_far, middle, high), torch.where(too_far, low, middle)
    return (low + high) / 2
