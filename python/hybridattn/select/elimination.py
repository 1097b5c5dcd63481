"""Backward elimination: from the teacher down, softmax goes first where the hybrid misses it least. Gives nested sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hybridattn.select.evaluator import Line, silent
from hybridattn.select.set_race import BatchEvaluator, first_batches, race_sets


@dataclass(frozen=True)
class NestedOrder:
    """All layers, the most needed first; the first K of them keep softmax under a budget of K.

    Attributes:
        sizes: the K whose sets were compared with others; the order inside a group between two of them is that of single
            losses.
        history: one event per round: ``what``, ``loss`` (of the set that is left, on the sequences that the round read).
    """

    layers: list[int]
    sizes: list[int]
    history: list[dict[str, Any]]

    def top(self, keep: int) -> list[int]:
        """The set of `keep` layers, ascending."""
        return sorted(self.layers[:keep])


def backward_elimination(
    evaluator: BatchEvaluator,
    keep: int = 0,
    share: float = 0.25,
    confidence: float = 0.95,
    progress: Line = silent,
    tolerance: float = 0.0,
) -> NestedOrder:
    """Takes softmax away round by round until `keep` layers have it.

    Every round races the sets that lack one more layer and takes away those `share` of the layers that are missed least,
    given all that went before: two layers that work only together are both missed until one of them goes. Rounds take
    fewer layers the closer they come to `keep`, where a mistake counts.

    Args:
        keep: where the order stops mattering; layers below it are ordered by the last round's losses.
        share: of the layers beyond `keep`, how many go in one round at most.
        confidence: of each round's verdicts.
        tolerance: nats per token that do not matter to a race (`race_sets`).

    Raises:
        ValueError: `keep` is not in 0..layers or `share` not in (0, 1].
    """
    count = evaluator.num_layers
    if not 0 <= keep <= count:
        raise ValueError(f"backward_elimination: keep is {keep}, expected 0 to {count}")
    if not 0 < share <= 1:
        raise ValueError(f"backward_elimination: share is {share}, expected a value in (0, 1]")
    left, most_missed = list(range(count)), list(range(count))
    gone: list[int] = []
    sizes, history = [count], []
    while len(left) > keep:
        going = max(1, math.floor(share * (len(left) - keep)))
        sets = [[other for other in left if other != layer] for layer in left]
        size = len(left)
        line = lambda text, size=size: progress(f"{size} softmax layers left  {text}")  # noqa: E731
        raced = race_sets(evaluator, sets, going, confidence, line, tolerance)
        missed = [next(iter(set(left) - result.kept)) for result in raced]
        gone = missed[:going][::-1] + gone
        most_missed = missed[going:][::-1]
        left = sorted(most_missed)
        sizes.append(len(left))
        losses = raced[0].losses
        if not losses:  # one candidate alone is taken without a race
            (losses,) = evaluator.losses([left], line, range(first_batches(evaluator.batch_sizes)))
        history.append(
            {"what": f"take softmax from {', '.join(map(str, sorted(missed[:going])))}", "loss": fmean(losses)}
        )
    return NestedOrder(most_missed + gone, sizes, history)
