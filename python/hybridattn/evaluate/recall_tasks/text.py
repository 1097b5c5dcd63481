"""What texts of recall tasks are made of: names, numbers, filler prose, and how much of it fits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

_ADJECTIVES = (
    "amber", "brisk", "calm", "dusty", "eager", "faint", "grand", "hollow", "icy", "jolly", "keen", "lucky", "misty",
    "noble", "pale", "quiet", "rapid", "silent", "tidy", "upper", "vivid", "warm", "young", "azure", "bold", "crisp",
    "distant", "early", "fresh", "gentle", "humble", "ivory", "lonely", "mellow", "narrow", "olive", "proud", "rustic",
    "sunny", "tall",
)  # fmt: skip
_NOUNS = (
    "falcon", "harbor", "lantern", "meadow", "orchard", "pebble", "quarry", "river", "saddle", "temple", "valley",
    "willow", "anchor", "bridge", "castle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket",
    "kettle", "ladder", "market", "needle", "ocean", "pillar", "rocket", "spider", "tunnel", "violin", "window", "barrel",
    "candle", "dragon", "feather", "glacier", "horizon", "mirror",
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jacob", "Karin", "Louis", "Maria",
    "Nils", "Olga", "Peter", "Rosa", "Simon", "Teresa", "Victor", "Alma", "Bruno", "Dora", "Emil", "Frida", "George",
    "Hanna", "Ivan", "Julia", "Konrad", "Lena", "Martin",
)  # fmt: skip
LAST_NAMES = (
    "Lind", "Moreau", "Novak", "Okafor", "Palmer", "Quinn", "Rossi", "Sato", "Tanaka", "Ueda", "Vogel", "Weber", "Young",
    "Zimmer", "Adler", "Berg", "Costa", "Dahl", "Evans", "Fischer", "Garcia", "Hansen", "Ibrahim", "Jensen", "Keller",
    "Larsen", "Meyer", "Nielsen", "Olsen", "Perez", "Rivera", "Schmidt",
)  # fmt: skip
_FILLER = (
    "The path led past the old mill and down to the water.",
    "Nobody in the village could say when the rain would stop.",
    "A cart stood by the gate, loaded with wood for the winter.",
    "In the afternoon the wind turned and the fog came in.",
    "She closed the book and looked out over the fields.",
    "They had walked since dawn and were glad of the shade.",
    "The market was quiet, and most of the stalls stayed empty.",
    "Far away a bell was ringing, slow and hardly audible.",
    "Bread was baked twice a week, on the days when the oven was lit.",
    "The ferry crossed once in the morning and once before dark.",
    "On the shelf stood jars of honey, each with a paper lid.",
    "Two boys were mending a fence and arguing about the weather.",
    "The stairs creaked, but the house slept on.",
    "After the harvest the fields were left to the crows.",
    "He wrote the letter again, shorter this time, and sealed it.",
    "Snow lay on the roofs until the end of March.",
)


def names(rng: random.Random, count: int) -> list[str]:
    """`count` different names such as ``amber-falcon``."""
    chosen = rng.sample(range(len(_ADJECTIVES) * len(_NOUNS)), count)
    return [f"{_ADJECTIVES[i // len(_NOUNS)]}-{_NOUNS[i % len(_NOUNS)]}" for i in chosen]


NAMES = len(_ADJECTIVES) * len(_NOUNS)
"""How many different `names` there are."""


def numbers(rng: random.Random, count: int, digits: int = 4) -> list[str]:
    """`count` different numbers of `digits` digits, without leading zero."""
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


class Room:
    """How much text fits where a task of some name may have so many tokens.

    Args:
        tokenizer: of the model that is to be asked.
        length: tokens of a whole text, answers included.
        task: named in errors.
    """

    def __init__(self, tokenizer: Any, length: int, task: str) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.task = task
        self._counts: dict[str, int] = {}

    def tokens(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return self._counts[text]

    def left(self, used: int, what: str) -> int:
        """Tokens that `used` leaves.

        Raises:
            ValueError: they do not even fit; `what` says what they are.
        """
        if used > self.length:
            raise ValueError(f"{self.task}: {what} need {used} tokens, length is {self.length}")
        return self.length - used

    def prose(
        self,
        rng: random.Random,
        facts: Sequence[str],
        depths: Sequence[float],
        ending: str,
        filler: Sequence[str] = _FILLER,
    ) -> str:
        """Filler with `facts` in it at `depths`, in the order of their depths, as long as fits before `ending`.

        Raises:
            ValueError: `facts` and `ending` alone do not fit.
        """
        # With its space in front, a sentence has as many tokens in the text as alone.
        sentences = [" " + fact for fact in facts]
        used = sum(self.tokens(sentence) for sentence in sentences) + self.tokens(ending)
        left = self.left(used, f"{len(facts)} fact{'s' * (len(facts) > 1)} and the question")
        text: list[str] = []
        while True:
            sentence = " " + rng.choice(filler)
            left -= self.tokens(sentence)
            if left < 0:
                break
            text.append(sentence)
        places = sorted((round(depth * len(text)), index) for index, depth in enumerate(depths))
        for before, (place, index) in enumerate(places):
            text.insert(place + before, sentences[index])
        return "".join(text)[1:]


def asked(
    context: str, question: str, answers: Sequence[str], separators: Sequence[str]
) -> tuple[str, list[tuple[int, int]]]:
    """Context, question and answers as one text, and where in it the answers stand.

    Args:
        separators: what stands before each answer.
    """
    text = context + question
    spans = []
    for separator, answer in zip(separators, answers, strict=True):
        text += separator
        spans.append((len(text), len(text) + len(answer)))
        text += answer
    return text, spans
