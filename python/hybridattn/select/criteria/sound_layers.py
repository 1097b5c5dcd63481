"""Scores that are no mean over sequences: made of the layers that did not diverge, the others are out with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Table = Sequence[Sequence[float]]
"""[layers][sequences]."""


def rows_of_sound_layers(
    tables: Sequence[Table], keep: int | None, rows_of: Callable[[list[Table], int | None], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of `LayerScores`, most important first.

    Args:
        tables: the values behind the scores; a layer with one that is not finite, or with none at all, diverged.
        keep: K, or None.
        rows_of: (tables of the other layers, K) -> their rows, ``layer`` counting these layers only.
    """
    layers = range(len(tables[0]))
    sound = [layer for layer in layers if all(len(t[layer]) and all(map(math.isfinite, t[layer])) for t in tables)]
    rows: list[dict[str, Any]] = []
    if sound:
        places = None if keep is None else min(keep, len(sound))
        found = rows_of([[table[layer] for layer in sound] for table in tables], places)
        rows = [row | {"layer": sound[row["layer"]]} for row in found]
    missing = {"score": math.nan, "low": math.nan, "high": math.nan, "verdict": "out", "steps": 0}
    reason = "diverged: a held-out value is not finite"
    return rows + [{"layer": layer, **missing, "reason": reason} for layer in layers if layer not in sound]


def finite_or_none(values: Sequence[float]) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [value if math.isfinite(value) else None for value in values]


def none_as_nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
