"""Recall from context: texts whose marked spans can be known only from what stands before them, and results on them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RecallItem:
    """A text and the character spans ``[start, end)`` in it that are answers.

    Attributes:
        length: tokens that the text was built for; None where nobody said.
        depth: where in the context stands what is asked, 0 = at its beginning, 1 = at its end; None = anywhere.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    length: int | None = None
    depth: float | None = None


@dataclass(frozen=True)
class RecallTask:
    """Items of one kind.

    Attributes:
        joint: the answers of an item are parts of one response, which begins at the first of them; otherwise each
            answers a question of its own.
    """

    name: str
    items: tuple[RecallItem, ...]
    joint: bool = False


def wilson_interval(correct: int, answers: int) -> tuple[float, float]:
    """Score interval at 95 % of a share (Wilson 1927)."""
    z, n, p = 1.959964, answers, correct / answers
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)


class _Share:
    """What a number of answers, and of right ones among them, says."""

    answers: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.answers

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.correct, self.answers)


@dataclass(frozen=True)
class RecallCell(_Share):
    """Answers at one length and depth: how many there were, how many were right."""

    length: int | None
    depth: float | None
    answers: int
    correct: int


@dataclass(frozen=True)
class RecallResult(_Share):
    """Answers of one task: how many there were, how many were right, a 95 % interval of the share, and its cells."""

    task: str
    answers: int
    correct: int
    cells: tuple[RecallCell, ...] = ()

    @classmethod
    def of(cls, task: RecallTask, right: list[list[bool]]) -> RecallResult:
        """The result of `task` whose answers, item by item, were right or not."""
        found: dict[tuple[int | None, float | None], list[bool]] = {}
        for item, answers in zip(task.items, right, strict=True):
            found.setdefault((item.length, item.depth), []).extend(answers)
        cells = tuple(RecallCell(*place, len(answers), sum(answers)) for place, answers in found.items())
        return cls(task.name, sum(cell.answers for cell in cells), sum(cell.correct for cell in cells), cells)

    def to_json(self) -> dict[str, Any]:
        """As ``eval.json`` holds it."""
        return _row(self) | {
            "cells": [{"length": cell.length, "depth": cell.depth} | _row(cell) for cell in self.cells]
        }


def _row(counts: RecallResult | RecallCell) -> dict[str, Any]:
    low, high = counts.interval
    return {"accuracy": counts.accuracy, "low": low, "high": high, "answers": counts.answers}


_FORM = '{"text": str, "answers": [[start, end], ...]}, and where known "length": int, "depth": 0 to 1'


def load_task(path: str | Path) -> RecallTask:
    """Reads a task from a jsonl file with ``{"text": ..., "answers": [[start, end], ...]}`` on each line.

    A line may also say ``length`` (tokens) and ``depth`` (0 to 1), by which results are then told apart.

    Raises:
        ValueError: naming file and line, when a line is no such object or a span lies outside its text.
    """
    path = Path(path)
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"recall task {path.name}, line {number}"
        try:
            row = json.loads(line)
            length, depth = row.get("length"), row.get("depth")
            item = RecallItem(
                row["text"],
                tuple((int(start), int(end)) for start, end in row["answers"]),
                None if length is None else int(length),
                None if depth is None else float(depth),
            )
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: expected {_FORM} ({error!r})") from error
        if not item.answers or any(not 0 < start < end <= len(item.text) for start, end in item.answers):
            raise ValueError(f"{where}: each answer needs 0 < start < end <= {len(item.text)}, got {item.answers}")
        if item.depth is not None and not 0 <= item.depth <= 1:
            raise ValueError(f"{where}: depth is {item.depth}, expected 0 to 1")
        items.append(item)
    if not items:
        raise ValueError(f"recall task {path.name}: the file has no line")
    return RecallTask(path.stem, tuple(items))
