"""Needles in a haystack of prose: one, one among several, several under one name, several at once, and a pass key.

The kinds are those of RULER (arXiv 2404.06654) and of the pass key task (arXiv 2305.16300); sentences are this library's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hybridattn.evaluate.recall import RecallItem
from hybridattn.evaluate.recall_tasks.text import Room, asked, names, numbers


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _item(
    room: Room, rng: random.Random, facts: Sequence[str], depths: Sequence[float], question: str, answers: Sequence[str]
) -> RecallItem:
    separators = [" ", *[", "] * (len(answers) - 1)]
    ending = asked("", question, answers, separators)[0]
    text, spans = asked(room.prose(rng, facts, depths, ending), question, answers, separators)
    return RecallItem(text, tuple(spans))


def single(room: Room, rng: random.Random, depth: float | None) -> RecallItem:
    """One fact, asked at the end."""
    return multi_key(room, rng, depth, needles=1)


def multi_key(room: Room, rng: random.Random, depth: float | None, needles: int = 4) -> RecallItem:
    """`needles` facts of one form about different names, one of them asked: the one at `depth`."""
    keys, values = names(rng, needles), numbers(rng, needles)
    facts = [f"The secret number of {key} is {value}." for key, value in zip(keys, values, strict=True)]
    depths = [rng.random() if depth is None else depth, *(rng.random() for _ in facts[1:])]
    question = f"\n\nQuestion: What is the secret number of {keys[0]}?\nAnswer: The secret number of {keys[0]} is"
    return _item(room, rng, facts, depths, question, values[:1])


def multi_value(room: Room, rng: random.Random, depth: float | None, values: int = 3) -> RecallItem:
    """`values` numbers of one name, told at different places, all of them asked; another name has as many."""
    keys, found = names(rng, 2), numbers(rng, 2 * values)
    facts = [f"One of the secret numbers of {keys[i % 2]} is {value}." for i, value in enumerate(found)]
    question = (
        f"\n\nQuestion: What are the secret numbers of {keys[0]}, in the order in which they are told?"
        f"\nAnswer: The secret numbers of {keys[0]} are"
    )
    return _item(room, rng, facts, sorted(rng.random() for _ in facts), question, found[::2])


def multi_query(room: Room, rng: random.Random, depth: float | None, needles: int = 4, queries: int = 2) -> RecallItem:
    """`needles` facts about different names, `queries` of them asked at once."""
    keys, values = names(rng, needles), numbers(rng, needles)
    facts = [f"The secret number of {key} is {value}." for key, value in zip(keys, values, strict=True)]
    asked_for = _listed(keys[:queries])
    question = (
        f"\n\nQuestion: What are the secret numbers of {asked_for}, in this order?"
        f"\nAnswer: The secret numbers of {asked_for} are"
    )
    return _item(room, rng, facts, [rng.random() for _ in facts], question, values[:queries])


def passkey(room: Room, rng: random.Random, depth: float | None) -> RecallItem:
    """A code inside one sentence that is repeated over and over: nothing else is worth remembering."""
    code = numbers(rng, 1, digits=5)[0]
    fact = f"The door of the archive opens with the code {code}; keep the code {code} in mind."
    place = rng.random() if depth is None else depth
    question = (
        "\n\nQuestion: Which code opens the door of the archive?\nAnswer: The door of the archive opens with the code"
    )
    ending = f"{question} {code}"
    context = room.prose(rng, [fact], [place], ending, filler=("The road goes on and on, and nothing happens on it.",))
    text, spans = asked(context, question, [code], [" "])
    return RecallItem(text, tuple(spans))
