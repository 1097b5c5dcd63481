"""Which share of the teacher's recall from far context a hybrid keeps, on held-out text, without a recall task.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hybridattn import hf
from hybridattn.evaluate.quality import next_token_labels
from hybridattn.select.evaluator import CandidateEvaluator, Line, silent
from hybridattn.select.measurement import SetMeasurement

_TOKENS_AT_ONCE = 1024


def retained_recall(
    evaluator: CandidateEvaluator, sets: Sequence[Iterable[int]], progress: Line = silent
) -> list[float]:
    """For each set of softmax layers: right predictions of the next token, weighted by how much far context helps the
    teacher there (`RecallWeights`), over the teacher's. 1 is the teacher; chance fluctuations can exceed it.

    The hybrids are untrained; measurements are kept in the evaluator's journal.

    Raises:
        ValueError: the teacher itself predicts no such token right.
    """

    def right(number: int, hidden: Tensor) -> list[float]:
        batch, weights = evaluator.held_out[number], evaluator.token_weights()[number].to(hidden.device)
        labels, head = next_token_labels(batch), hf.head_weight(evaluator.teacher)
        needed = weights > 0
        predicted = torch.cat([(part @ head.T).argmax(-1) for part in hidden[needed].split(_TOKENS_AT_ONCE)])
        hits = torch.zeros_like(weights, dtype=torch.float64)
        hits[needed] = weights[needed].double() * (predicted == labels[needed])
        return hits.sum(1).tolist()

    measure = SetMeasurement(
        evaluator, evaluator.held_out, evaluator.mixers, right, f"recall {evaluator.window} ", heads=1
    )
    teacher, *hybrids = (sum(row) for row in measure([range(evaluator.num_layers), *sets], progress))
    if teacher == 0:
        raise ValueError(
            "select: the teacher predicts no held-out token right for which far context helps; a recall budget needs a "
            "corpus in which it does"
        )
    return [hybrid / teacher for hybrid in hybrids]
