"""Variable tracking: a value that is handed on from variable to variable (RULER, arXiv 2404.06654; own sentences)."""

from __future__ import annotations

import random
import string

from hybridattn.evaluate.recall import RecallItem
from hybridattn.evaluate.recall_tasks.text import Room, asked, numbers


def _variables(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.sample(string.ascii_uppercase, 3))] = None
    return list(found)


def variable_tracking(
    room: Room, rng: random.Random, depth: float | None, hops: int = 2, chains: int = 2
) -> RecallItem:
    """`chains` values, each handed on `hops` times; which variables hold the first one?"""
    links = hops + 1
    variables = _variables(rng, chains * links)
    values = numbers(rng, chains, digits=5)
    facts = []
    for link in range(links):
        for chain in range(chains):
            place = chain * links + link
            source = values[chain] if link == 0 else variables[place - 1]
            facts.append(f"Let {variables[place]} be equal to {source}.")
    question = (
        f"\n\nQuestion: Which variables are equal to {values[0]}, in the order in which they are told?"
        f"\nAnswer: The variables that are equal to {values[0]} are"
    )
    answers, separators = variables[:links], [" ", *[", "] * hops]
    ending = asked("", question, answers, separators)[0]
    # Told in this order: a variable has a value before it hands it on.
    context = room.prose(rng, facts, sorted(rng.random() for _ in facts), ending)
    text, spans = asked(context, question, answers, separators)
    return RecallItem(text, tuple(spans))
