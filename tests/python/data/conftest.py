"""A tokenizer with one id per ASCII character, so that tests can name the ids they expect."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def ascii_tokenizer(eos: str | None = "\0", characters: int = 128) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({chr(i): i for i in range(characters)}, unk_token="\1"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return ascii_tokenizer()


@pytest.fixture
def texts() -> list[str]:
    """Forty different documents of 5 to 44 characters."""
    return [f"{i:03d}:" + chr(97 + i % 26) * (i + 1) for i in range(40)]


@pytest.fixture
def make_tokenizer():
    return ascii_tokenizer
