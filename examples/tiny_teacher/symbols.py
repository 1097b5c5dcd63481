"""The tiny teacher's language: 512 symbols and its documents: text, copying, key-value recall.

Symbols 0-255 are bytes (0 ends a document), 256-383 are keys, 384-511 are values. Written as text a key is
``<k17>`` and a value ``<v5>``, so every document is a plain string; ``tokenizer()`` maps it back to the same ids.
Bytes are written as the characters of Latin-1 that they stand for.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 512
EOS = 0
FIRST_KEY, FIRST_VALUE, KEYS = 256, 384, 128
LENGTH = 256
"""Tokens per document, the final EOS included."""


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in [low, high), its logarithm uniform."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high))))


def recall_document(rng: np.random.Generator, pairs: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs ``key value``, then keys again, each followed by the value it had.

    Args:
        pairs: How many pairs come first; when absent drawn from 4 to 112, half of the time log-uniformly, since
            short lists are what recall is learned from first.

    Returns:
        ``(tokens [LENGTH], answers [LENGTH])``; ``answers`` is True at the values that can be recalled.
    """
    if pairs is None:
        pairs = log_uniform(rng, 4, 113) if rng.random() < 0.5 else int(rng.integers(4, 113))
    n = pairs
    keys = rng.permutation(KEYS)[:n]
    values = rng.integers(0, KEYS, n)
    queries = (LENGTH - 1 - 2 * n) // 2
    asked = rng.integers(0, n, queries)
    tokens = np.zeros(LENGTH, dtype=np.int64)
    answers = np.zeros(LENGTH, dtype=bool)
    tokens[0 : 2 * n : 2] = FIRST_KEY + keys
    tokens[1 : 2 * n : 2] = FIRST_VALUE + values
    end = 2 * (n + queries)
    tokens[2 * n : end : 2] = FIRST_KEY + keys[asked]
    tokens[2 * n + 1 : end : 2] = FIRST_VALUE + values[asked]
    answers[2 * n + 1 : end : 2] = True
    tokens[end:] = EOS
    return tokens, answers


def copy_document(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random segment of 4 to 127 symbols (log-uniform), repeated to the document's end.

    ``answers`` is True from the segment's second occurrence on. Copying is what starts induction: without it recall
    does not appear within millions of tokens.
    """
    n = log_uniform(rng, 4, LENGTH // 2)
    segment = rng.integers(1, VOCABULARY, n)
    tokens = np.resize(segment, LENGTH).astype(np.int64)
    tokens[-1] = EOS
    answers = np.arange(LENGTH) > n
    answers[-1] = False
    return tokens, answers


def text_bytes(limit: int = 8_000_000) -> np.ndarray:
    """Bytes of the Python standard library's own sources: the plain text that every machine has."""
    root = Path(sysconfig.get_path("stdlib"))
    chunks: list[bytes] = []
    size = 0
    for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        data = path.read_bytes().replace(b"\0", b"")
        chunks.append(data)
        size += len(data)
        if size >= limit:
            break
    return np.frombuffer(b"\n".join(chunks)[:limit], dtype=np.uint8)


def text_document(rng: np.random.Generator, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A window of text; ``answers`` is True everywhere but at the end: all of it is worth predicting."""
    start = int(rng.integers(0, len(text) - LENGTH))
    tokens = text[start : start + LENGTH].astype(np.int64)
    tokens[-1] = EOS
    answers = np.ones(LENGTH, dtype=bool)
    answers[-1] = False
    return tokens, answers


def documents(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless documents: in turn text, copying, recall, recall."""
    rng = np.random.default_rng(seed)
    text = text_bytes()
    while True:
        yield text_document(rng, text)
        yield copy_document(rng)
        yield recall_document(rng)
        yield recall_document(rng)


def symbol(token: int) -> str:
    """How one symbol is written in text."""
    if token < FIRST_KEY:
        return chr(token)
    return f"<k{token - FIRST_KEY}>" if token < FIRST_VALUE else f"<v{token - FIRST_VALUE}>"


def as_text(tokens: Iterable[int]) -> str:
    return "".join(symbol(int(token)) for token in tokens)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is exactly the 512 symbols; symbol 0 is its EOS and padding token."""
    vocabulary = {symbol(token): token for token in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0)))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[kv]\d{1,3}>|[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=chr(0), pad_token=chr(0))
