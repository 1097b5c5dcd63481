"""Recall from long lists: key-value lines, a phone book, and the most common words.

Phone book after Jelassi et al. (arXiv 2402.01032), common words after RULER (arXiv 2404.06654); the texts are this library's.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

from hybridattn.evaluate.recall import RecallItem
from hybridattn.evaluate.recall_tasks.text import FIRST_NAMES, LAST_NAMES, NAMES, Room, asked, names


def _first_asked(rng: random.Random, depth: float | None, entries: int, questions: int) -> list[int]:
    """Which entries are asked, in which order: those around `depth`, or any."""
    if depth is None:
        return rng.sample(range(entries), questions)
    start = round(depth * (entries - questions))
    return rng.sample(range(start, start + questions), questions)


def _entries(room: Room, lines: list[str], ending: str, questions: int) -> int:
    """How many of `lines` fit in front of `ending`.

    Raises:
        ValueError: less than twice the number of questions.
    """
    left = room.left(room.tokens(ending), "the questions and their answers")
    count = 0
    for line in lines:
        left -= room.tokens(line)
        if left < 0:
            break
        count += 1
    if count < 2 * questions:
        raise ValueError(
            f"{room.task}: {room.length} tokens have room for {count} lines; at least {2 * questions} are needed, twice "
            "as many as are asked"
        )
    return count


def key_value(room: Room, rng: random.Random, depth: float | None, questions: int = 4) -> RecallItem:
    """As many ``name: number`` lines as fit, then `questions` of them asked again, one after the other."""
    keys = names(rng, NAMES)
    values = [str(rng.randrange(1000, 10000)) for _ in keys]
    lines = [f"{key}: {value}\n" for key, value in zip(keys, values, strict=True)]
    longest = max(keys, key=room.tokens)
    count = _entries(room, lines, "Again:\n" + questions * f"{longest}: 1000\n", questions)
    chosen = _first_asked(rng, depth, count, questions)
    separators = [f"{keys[i]}: " if n == 0 else f"\n{keys[i]}: " for n, i in enumerate(chosen)]
    text, spans = asked("".join(lines[:count]), "Again:\n", [values[i] for i in chosen], separators)
    return RecallItem(text, tuple(spans))


def phonebook(room: Room, rng: random.Random, depth: float | None) -> RecallItem:
    """As many people with their telephone numbers as fit, one of them asked."""
    people = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    rng.shuffle(people)
    phones = [f"{rng.randrange(100, 1000)}-{rng.randrange(1000, 10000)}" for _ in people]
    lines = [f"{person}: {phone}\n" for person, phone in zip(people, phones, strict=True)]
    longest = max(people, key=room.tokens)
    form = "\nQuestion: What is the telephone number of {}?\nAnswer: The telephone number of {} is"
    count = _entries(room, lines, form.format(longest, longest) + " 100-1000", 1)
    (chosen,) = _first_asked(rng, depth, count, 1)
    question = form.format(people[chosen], people[chosen])
    text, spans = asked("".join(lines[:count]), question, [phones[chosen]], [" "])
    return RecallItem(text, tuple(spans))


def common_words(room: Room, rng: random.Random, depth: float | None, common: int = 3, ratio: int = 8) -> RecallItem:
    """A list in which `common` words stand `ratio` times as often as all others; which are they?"""
    words = names(rng, NAMES)
    frequent, others = words[:common], words[common:]
    ending = (
        f"\n\nQuestion: Which {common} words are the most frequent in the list, in the order of their first appearance?"
        f"\nAnswer: The {common} most frequent words are"
    )
    prices = [room.tokens(f" {word},") for word in words]
    used = room.tokens("List:" + ending) + sum(prices[:common])
    # Tokens of a list in which the first so many of `others` stand once.
    totals = list(accumulate(prices[common:], initial=ratio * sum(prices[:common])))
    left = room.left(used + totals[common], f"{common} words {ratio} times, as many once, and the question")
    left += totals[common]
    times = 1 + left // totals[-1]
    rare = bisect_right(totals, left // times) - 1
    listed = (frequent * ratio + others[:rare]) * times
    rng.shuffle(listed)
    order = sorted(frequent, key=listed.index)
    text, spans = asked(f"List: {', '.join(listed)}.", ending, order, [" ", *[", "] * (common - 1)])
    return RecallItem(text, tuple(spans))
