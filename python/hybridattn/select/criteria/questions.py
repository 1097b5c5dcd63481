"""Questions whose answers stand in the context: synthetic ones in the model's own tokens, or tasks in text.

Shapes: B batch, T tokens, D hidden size, A answer tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hybridattn import evaluate, hf, ops
from hybridattn.data import Batch
from hybridattn.select.criteria.criterion import Scoring
from hybridattn.select.criteria.perplexity import Without, replacements_of
from hybridattn.select.evaluator import CandidateEvaluator
from hybridattn.select.measurement import SetMeasurement

Measure = Literal["log_probability", "accuracy"]
"""Of an item: mean log-probability of its answers' tokens in nats, or share of answers that are the likeliest tokens."""


@dataclass(frozen=True)
class Questions:
    """Items of one kind.

    Attributes:
        ids: token ids of each item.
        spans: per item, per answer, the positions of its tokens.
    """

    name: str
    ids: list[list[int]]
    spans: list[list[list[int]]]

    @property
    def digest(self) -> str:
        return hashlib.blake2b(repr((self.ids, self.spans)).encode(), digest_size=6).hexdigest()


def associative_recall(tokens: Sequence[int], length: int, items: int, seed: int, hops: int = 1) -> Questions:
    """Pairs ``key value`` of random tokens, then keys again, each followed by the value it had.

    With more `hops` the value is a key itself, and its value follows as well: pairs of the first table, then of the
    second, ..., then for some keys the whole chain. Every token of a chain after its key is an answer.

    Source: multi-query associative recall, Zoology, arXiv 2312.04927; chains of values that are keys: variable tracking
    in RULER, arXiv 2404.06654.

    Args:
        tokens: the ids to draw from, without repetition.
        length: tokens per item, at most.

    Raises:
        ValueError: `length` or `tokens` do not suffice for four chains.
    """
    asked = length // 2 // (hops + 1)
    chains = min((length - asked * (hops + 1)) // (2 * hops), len(tokens) // (hops + 1))
    if min(chains, asked) < 4:
        raise ValueError(
            f"associative recall over {hops} hop(s): {length} tokens of {len(tokens)} kinds have room for "
            f"{min(chains, asked)} chains, at least 4 are needed; use longer sequences or give `length`"
        )
    rng = random.Random(seed)
    ids, spans = [], []
    for _ in range(items):
        drawn = rng.sample(list(tokens), chains * (hops + 1))
        chain = [drawn[i * (hops + 1) : (i + 1) * (hops + 1)] for i in range(chains)]
        text: list[int] = []
        for hop in range(hops):
            for number in rng.sample(range(chains), chains):
                text += chain[number][hop : hop + 2]
        places = []
        for number in (rng.randrange(chains) for _ in range(asked)):
            places.append(list(range(len(text) + 1, len(text) + hops + 1)))
            text += chain[number]
        ids.append(text)
        spans.append(places)
    return Questions(f"associative recall, {hops} hop(s)", ids, spans)


def text_task(name: str, tokenizer: Any, vocabulary: int, length: int, items: int, seed: int) -> Questions:
    """A recall task of `hybridattn.evaluate` by name or path.

    Raises:
        ValueError: there is no tokenizer, or the task is unknown or cannot be asked in so many tokens.
    """
    if tokenizer is None:
        raise ValueError(f"score_layers: the recall task '{name}' is in text; give the teacher's `tokenizer`")
    task = evaluate.build_task(name, tokenizer, (length,), items=items, seed=seed)
    encoded = evaluate.encode_task(task, tokenizer, vocabulary)
    return Questions(task.name, [row.ids for row in encoded], [row.spans for row in encoded])


def questions_of(task: str, scoring: Scoring, length: int, items: int, seed: int, hops: int = 1) -> Questions:
    """``synthetic`` associative recall, or a task in text; `length` 0 is that of a held-out sequence."""
    evaluator = scoring.models("recall")
    length = length or evaluator.seq_len
    if task == "synthetic":
        return associative_recall(known_tokens(evaluator), length, items, seed, hops)
    vocabulary = hf.head_weight(evaluator.teacher).shape[0]
    return text_task(task, scoring.tokenizer, vocabulary, length, items, seed)


def known_tokens(evaluator: CandidateEvaluator) -> list[int]:
    """The distinct tokens of the held-out sequences: what the model reads in its own domain."""
    return torch.cat([batch.input_ids.reshape(-1) for batch in evaluator.held_out]).unique().tolist()


def answer_values(
    evaluator: CandidateEvaluator,
    questions: Questions,
    sets: Sequence[Sequence[int]],
    without: Without,
    measure: Measure,
    scoring: Scoring,
    batch_size: int = 8,
) -> list[list[float]]:
    """[sets][items]: how well each hybrid answers, higher being better."""
    device = evaluator.held_out[0].input_ids.device
    batches, places = [], []
    for first in range(0, len(questions.ids), batch_size):
        rows = questions.ids[first : first + batch_size]
        longest = max(map(len, rows))
        # Padding stands on the right, where a causal model cannot see it from any answer.
        batches.append(Batch(torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)))
        places.append(questions.spans[first : first + batch_size])

    def value(number: int, hidden: Tensor) -> list[float]:
        return _item_values(evaluator, batches[number].input_ids, places[number], hidden, measure)

    name = f"{questions.name} {questions.digest}, {measure}, {without} "
    return SetMeasurement(evaluator, batches, replacements_of(evaluator, without), value, name)(sets, scoring.progress)


def _item_values(
    evaluator: CandidateEvaluator, tokens: Tensor, spans: list[list[list[int]]], hidden: Tensor, measure: Measure
) -> list[float]:
    narrowed, head = evaluator.precision.narrowed, hf.head_weight(evaluator.teacher)
    values = []
    for row, answers in enumerate(spans):
        positions = torch.tensor([place for answer in answers for place in answer], device=tokens.device)
        states, wanted = narrowed(hidden[row, positions - 1]), tokens[row, positions]
        with evaluator.precision.backward():
            if measure == "accuracy":
                hits = ((states @ narrowed(head).T).argmax(-1) == wanted).split([len(answer) for answer in answers])
                values.append(sum(bool(hit.all()) for hit in hits) / len(hits))
            else:
                losses = ops.linear_cross_entropy(states, narrowed(head), wanted, reduction="none")
                values.append(-float(losses.double().mean()))
    return values
