"""Recall from context: texts whose marked spans can be known only from what stands before them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.data import Batch


@dataclass(frozen=True)
class RecallItem:
    """A text and the character spans ``[start, end)`` in it that are answers."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RecallTask:
    name: str
    items: tuple[RecallItem, ...]


@dataclass(frozen=True)
class RecallResult:
    """Answers of one task: how many there were, how many were right, and a 95 % interval of the share."""

    task: str
    answers: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.answers

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 % (Wilson 1927)."""
        z, n, p = 1.959964, self.answers, self.accuracy
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, center - half), min(1.0, center + half)


def load_task(path: str | Path) -> RecallTask:
    """Reads a task from a jsonl file with ``{"text": ..., "answers": [[start, end], ...]}`` on each line.

    Raises:
        ValueError: naming file and line, when a line is no such object or a span lies outside its text.
    """
    path = Path(path)
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"recall task {path.name}, line {number}"
        try:
            row = json.loads(line)
            item = RecallItem(row["text"], tuple((int(start), int(end)) for start, end in row["answers"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{where}: expected {{"text": str, "answers": [[start, end], ...]}} ({error!r})'
            ) from error
        if not item.answers or any(not 0 < start < end <= len(item.text) for start, end in item.answers):
            raise ValueError(f"{where}: each answer needs 0 < start < end <= {len(item.text)}, got {item.answers}")
        items.append(item)
    if not items:
        raise ValueError(f"recall task {path.name}: the file has no line")
    return RecallTask(path.stem, tuple(items))


Encoded = tuple[list[int], list[list[int]]]
"""Token ids of a text and, per answer, the positions of the tokens that overlap it."""


def encode_task(task: RecallTask, tokenizer: Any, vocab_size: int) -> list[Encoded]:
    """The task in tokens.

    Raises:
        ValueError: naming task and item, when an answer has no token, begins with the text's first token (nothing stands
            before it), or a token is outside the vocabulary.
    """
    return [_encode(item, tokenizer, vocab_size, f"{task.name}, item {n}") for n, item in enumerate(task.items, 1)]


def _encode(item: RecallItem, tokenizer: Any, vocab_size: int, where: str) -> Encoded:
    encoded = tokenizer(item.text, return_offsets_mapping=True, add_special_tokens=False)
    ids = encoded["input_ids"]
    positions = [
        [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
        for start, end in item.answers
    ]
    for (start, end), places in zip(item.answers, positions, strict=True):
        if not places or places[0] == 0:
            why = "is the text's first token, which nothing stands before" if places else "has no token"
            raise ValueError(f"recall task {where}: the answer {item.text[start:end]!r} at [{start}, {end}] {why}")
    if max(ids) >= vocab_size:
        raise ValueError(
            f"recall task {where}: token id {max(ids)} is outside the model's vocabulary of {vocab_size}; "
            "use the teacher's own tokenizer"
        )
    return ids, positions


@torch.no_grad()
def score_recall(
    model: nn.Module, tokenizer: Any, task: RecallTask, batch_size: int = 8, device: str | torch.device = "cpu"
) -> RecallResult:
    """Counts the answers of which every token is the model's most likely one, given the true tokens before it.

    That is what greedy generation from the true prefix would answer, at the price of one forward pass per text.

    Args:
        model: a plain Transformers decoder or a hybrid.
        tokenizer: a fast tokenizer (character offsets are needed).

    Raises:
        ValueError: as `encode_task`.
    """
    encoded = encode_task(task, tokenizer, hf.head_weight(model).shape[0])
    answers = correct = 0
    for first in range(0, len(encoded), batch_size):
        rows = encoded[first : first + batch_size]
        right = _right_answers(model, rows, device)
        answers += len(right)
        correct += sum(right)
    return RecallResult(task.name, answers, correct)


def _right_answers(model: nn.Module, rows: Sequence[Encoded], device: str | torch.device) -> list[bool]:
    length = max(len(ids) for ids, _ in rows)
    # Padding stands on the right, where a causal model cannot see it from any answer.
    tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows], device=device)
    hidden = hf.hidden_states(model, Batch(tokens))
    places = [(row, p) for row, (_, spans) in enumerate(rows) for span in spans for p in span]
    row_index, position = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
    head = hf.head_weight(model)
    guess: Tensor = (hidden[row_index, position - 1].to(head.dtype) @ head.T).argmax(-1)
    right = (guess == tokens[row_index, position]).split([len(span) for _, spans in rows for span in spans])
    return [bool(answer.all()) for answer in right]
