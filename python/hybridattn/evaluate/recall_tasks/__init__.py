"""Recall tasks in natural tokens, built for any tokenizer at chosen lengths and depths.

Needles in prose (`needle`), long lists (`lists`), variable tracking (`tracking`); what they are made of is in `text`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridattn.evaluate.recall import RecallItem, RecallTask, load_task
from hybridattn.evaluate.recall_tasks import lists, needle, tracking
from hybridattn.evaluate.recall_tasks.text import Room


@dataclass(frozen=True)
class Family:
    """A kind of task.

    Attributes:
        write: one item that fills a room; its depth is None where it may be anywhere.
        has_depth: whether it has one place in the context that is asked for.
        joint: as `RecallTask.joint`.
    """

    write: Callable[[Room, random.Random, float | None], RecallItem]
    has_depth: bool = False
    joint: bool = False


FAMILIES: dict[str, Family] = {
    "needle": Family(needle.multi_key, has_depth=True),
    "needle_single": Family(needle.single, has_depth=True),
    "needle_multi_key": Family(needle.multi_key, has_depth=True),
    "needle_multi_value": Family(needle.multi_value, joint=True),
    "needle_multi_query": Family(needle.multi_query, joint=True),
    "passkey": Family(needle.passkey, has_depth=True),
    "variable_tracking": Family(tracking.variable_tracking, joint=True),
    "common_words": Family(lists.common_words, joint=True),
    "key_value": Family(lists.key_value, has_depth=True),
    "phonebook": Family(lists.phonebook, has_depth=True),
}
"""Name -> family; ``needle`` is short for ``needle_multi_key``."""


def build_task(
    name: str,
    tokenizer: Any,
    lengths: Sequence[int] = (512,),
    depths: Sequence[float] = (),
    items: int = 64,
    seed: int = 0,
) -> RecallTask:
    """A task by name (`FAMILIES`) or by the path of its jsonl file, which brings its own texts.

    Args:
        tokenizer: of the model that is to be asked; texts are made to fit in its tokens.
        lengths: tokens of a text, answers included; a text is at most so long.
        depths: where in the context stands what is asked, 0 to 1; anywhere when empty, and for a family that asks for
            several places at once.
        items: texts per length and depth.
        seed: equal seeds give equal texts.

    Raises:
        ValueError: `name` is neither (naming the known ones), a depth is outside 0 to 1, or a length has no room for the
            facts and the question.
    """
    if name.endswith(".jsonl"):
        return load_task(name)
    if name not in FAMILIES:
        raise ValueError(f"unknown recall task '{name}': expected {', '.join(FAMILIES)} or the path of a .jsonl file")
    if not lengths or items < 1:
        raise ValueError(f"recall task {name}: give at least one length and one item, got {list(lengths)} and {items}")
    if outside := [depth for depth in depths if not 0 <= depth <= 1]:
        raise ValueError(f"recall task {name}: depth {outside[0]} is outside 0 to 1")
    family = FAMILIES[name]
    found = []
    for length in dict.fromkeys(lengths):
        room = Room(tokenizer, length, name)
        for depth in dict.fromkeys(depths) if family.has_depth and depths else (None,):
            rng = random.Random(f"{name} {length} {depth} {seed}")
            found += [replace(family.write(room, rng, depth), length=length, depth=depth) for _ in range(items)]
    return RecallTask(name, tuple(found), family.joint)
