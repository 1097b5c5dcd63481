"""How many states a training forward pass saves for its backward pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_forced: list[int] = []
"""Values of the `use_state_interval` blocks that are open, innermost last."""


def _positive(value: int | str, source: str) -> int:
    try:
        interval = int(value)
    except ValueError:
        interval = 0
    if interval < 1:
        raise ValueError(f"{source}: expected a whole number of chunks, 1 or more, got {value}")
    return interval


def state_interval() -> int:
    """The innermost `use_state_interval`, else ``HYBRIDATTN_STATE_INTERVAL``, else 1.

    Raises:
        ValueError: the variable holds something else than a positive whole number.
    """
    if _forced:
        return _forced[-1]
    return _positive(os.environ.get("HYBRIDATTN_STATE_INTERVAL", 1), "HYBRIDATTN_STATE_INTERVAL")


@contextmanager
def use_state_interval(chunks: int) -> Iterator[None]:
    """Makes chunked ops called inside save the state at every `chunks`-th chunk only (chunks have 64 tokens).

    A state takes 4 K V bytes per head, so a layer saves 4 K V / (64 chunks) bytes per token and head from forward to
    backward: 1 KiB at K = V = 128 and 1 chunk, 128 bytes at 8. Backward computes the states between again, for one
    document and head per thread at a time (`chunks` states of scratch memory; the ``aten`` backend: all of the layer's),
    and the results are the same to the bit.

    Raises:
        ValueError: `chunks` is not positive.

    Example:
        >>> with ops.use_state_interval(8):
        ...     model(ids).loss.backward()
    """
    _forced.append(_positive(chunks, "use_state_interval"))
    try:
        yield
    finally:
        _forced.pop()
