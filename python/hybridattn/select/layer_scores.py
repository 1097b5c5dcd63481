"""LayerScores: one number per layer with its uncertainty and its cost, whatever the criterion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridattn import _C

ChoiceRule = Callable[[list[dict[str, Any]], int], list[int]]
"""(rows, most important first; K) -> the K layers that keep softmax."""


def highest(rows: list[dict[str, Any]], count: int) -> list[int]:
    """The first `count` rows' layers: each layer judged by its own score."""
    return [row["layer"] for row in rows[:count]]


@dataclass(frozen=True)
class LayerScores:
    """Importance of every layer, most important first.

    Attributes:
        rows: per layer ``layer``, ``score``, ``low``, ``high``, ``verdict``, ``steps``, ``reason``.
        tokens, flops, seconds: what the scoring cost, measurements that it shares with earlier ones not counted again.
        samples: layer -> the values behind its score, one per held-out sequence (or seed, or step, as the criterion
            says); paired between layers. Empty for a layer that was never scored or diverged.
        rule: how the layers of a budget follow from the rows.
    """

    criterion: str
    rows: list[dict[str, Any]]
    tokens: float
    flops: float
    seconds: float = 0.0
    samples: dict[int, list[float]] = field(default_factory=dict)
    rule: ChoiceRule = highest

    def top(self, k: int | None = None, fraction: float | None = None) -> list[int]:
        """The layers that keep softmax, ascending. Give `k` or `fraction` of all layers.

        Raises:
            ValueError: neither or both are given, or the number is out of range.
        """
        if (k is None) == (fraction is None):
            raise ValueError("top: give exactly one of k and fraction")
        count = _C.select.keep_of_fraction(len(self.rows), fraction) if k is None else k
        if not 0 <= count <= len(self.rows):
            raise ValueError(f"top: k is {count}, expected 0 to {len(self.rows)}")
        return sorted(self.rule(self.rows, count))

    def to_json(self) -> dict[str, Any]:
        return {
            "criterion": self.criterion,
            "rows": self.rows,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
        }


def rank_samples(
    samples: Sequence[Sequence[float]],
    important: Literal["high", "low"],
    keep: int | None = None,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Rows of `LayerScores` from values that are paired between layers.

    The score is a layer's mean, its interval the t interval of that mean; verdicts come from paired t tests, corrected
    for their number as in an exhaustive race. A layer with a value that is not finite is out, with the reason.

    Args:
        samples: [layers][sequences], at least two sequences.
        important: whether important layers have high or low values.

    Raises:
        ValueError: fewer than two values per layer, or not as many for each.
    """
    race = _C.select.Race(
        num_layers=len(samples),
        keep=keep,
        mode="exhaustive",
        confidence=confidence,
        direction="higher" if important == "high" else "lower",
    )
    for layer, values in enumerate(samples):
        race.record(layer, list(values))
    return race.ranking()
