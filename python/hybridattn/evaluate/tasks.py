"""Recall tasks in natural tokens, built for any tokenizer: a needle in a haystack, and key-value lookup."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hybridattn.evaluate.recall import RecallItem, RecallTask, load_task

_ADJECTIVES = (
    "amber",
    "brisk",
    "calm",
    "dusty",
    "eager",
    "faint",
    "grand",
    "hollow",
    "icy",
    "jolly",
    "keen",
    "lucky",
    "misty",
    "noble",
    "pale",
    "quiet",
)
_NOUNS = (
    "falcon",
    "harbor",
    "lantern",
    "meadow",
    "orchard",
    "pebble",
    "quarry",
    "river",
    "saddle",
    "temple",
    "valley",
    "willow",
    "anchor",
)
_FILLER = (
    "The path led past the old mill and down to the water. ",
    "Nobody in the village could say when the rain would stop. ",
    "A cart stood by the gate, loaded with wood for the winter. ",
    "In the afternoon the wind turned and the fog came in. ",
    "She closed the book and looked out over the fields. ",
    "They had walked since dawn and were glad of the shade. ",
    "The market was quiet, and most of the stalls stayed empty. ",
    "Far away a bell was ringing, slow and hardly audible. ",
)


def _name(rng: random.Random, taken: set[str]) -> str:
    while True:
        name = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"
        if name not in taken:
            taken.add(name)
            return name


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def needle(tokenizer: Any, length: int = 512, items: int = 64, seed: int = 0, needles: int = 4) -> RecallTask:
    """`needles` facts at random depths in filler prose, one of them asked at the end (multi-key needle).

    Args:
        length: tokens per text, at most; the filler is cut to fit.

    Raises:
        ValueError: when the facts alone do not fit into `length` tokens.
    """
    rng = random.Random(seed)
    return RecallTask(f"needle-{length}", tuple(_needle_item(tokenizer, length, needles, rng) for _ in range(items)))


def _needle_item(tokenizer: Any, length: int, needles: int, rng: random.Random) -> RecallItem:
    taken: set[str] = set()
    facts = [(_name(rng, taken), str(rng.randrange(1000, 10000))) for _ in range(needles)]
    sentences = [f"The secret number of {name} is {number}. " for name, number in facts]
    name, number = rng.choice(facts)
    question = f"\nQuestion: what is the secret number of {name}?\nAnswer: The secret number of {name} is "
    budget = length - _tokens(tokenizer, "".join(sentences) + question + number)
    if budget < 0:
        raise ValueError(f"needle: {needles} facts and the question need {length - budget} tokens, length is {length}")
    filler: list[str] = []
    while True:
        sentence = rng.choice(_FILLER)
        budget -= _tokens(tokenizer, sentence)
        if budget < 0:
            break
        filler.append(sentence)
    for sentence in sentences:
        filler.insert(rng.randint(0, len(filler)), sentence)
    text = "".join(filler) + question
    return RecallItem(text + number, ((len(text), len(text) + len(number)),))


def key_value(tokenizer: Any, length: int = 512, items: int = 64, seed: int = 0, questions: int = 4) -> RecallTask:
    """As many ``name: number`` lines as fit into `length` tokens, then `questions` of them asked again.

    Raises:
        ValueError: when `length` has no room for twice as many lines as questions.
    """
    rng = random.Random(seed)
    line = _tokens(tokenizer, "amber-falcon: 1234\n") + 1
    pairs = min(length // line - questions - 1, len(_ADJECTIVES) * len(_NOUNS) // 2)
    if pairs < 2 * questions:
        raise ValueError(
            f"key_value: {length} tokens have room for {pairs} lines; {questions} questions need twice that"
        )
    return RecallTask(f"key-value-{length}", tuple(_key_value_item(pairs, questions, rng) for _ in range(items)))


def _key_value_item(pairs: int, questions: int, rng: random.Random) -> RecallItem:
    taken: set[str] = set()
    facts = [(_name(rng, taken), str(rng.randrange(1000, 10000))) for _ in range(pairs)]
    text = "".join(f"{name}: {number}\n" for name, number in facts) + "Again:\n"
    answers = []
    for name, number in rng.sample(facts, questions):
        text += f"{name}: "
        answers.append((len(text), len(text) + len(number)))
        text += f"{number}\n"
    return RecallItem(text, tuple(answers))


_BUILDERS: dict[str, Callable[..., RecallTask]] = {"needle": needle, "key_value": key_value}


def build_task(name: str, tokenizer: Any, length: int = 512, items: int = 64, seed: int = 0) -> RecallTask:
    """A task by name (``needle``, ``key_value``) or by the path of its jsonl file.

    Raises:
        ValueError: when `name` is neither, naming the known ones.
    """
    if name in _BUILDERS:
        return _BUILDERS[name](tokenizer, length=length, items=items, seed=seed)
    if name.endswith(".jsonl"):
        return load_task(name)
    raise ValueError(f"unknown recall task '{name}': expected {', '.join(_BUILDERS)} or the path of a .jsonl file")
