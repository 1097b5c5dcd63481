"""TokenStore: the tokens of a corpus, document after document, in memory or memory-mapped from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridattn.data.sources import Document

_FORMAT = 1
_ARRAYS = ("tokens", "offsets", "hashes", "source_of", "line_of")
_TOKENISE_AT_ONCE = 256


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all documents.

    Attributes:
        tokens: int32 ``[total]``, each document followed by its EOS.
        offsets: int64 ``[documents + 1]``.
        hashes: uint64 ``[documents]`` of each document's tokens; equal documents have equal hashes.
        source_of, line_of: int32 / int64 ``[documents]``, the document's source and its line there (0: whole source).
        sources: names that `source_of` counts.
        mask: bool ``[total]``, True where the token counts in a loss; None when all do.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    source_of: np.ndarray
    line_of: np.ndarray
    sources: list[str]
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def name(self, document: int) -> str:
        source, line = self.sources[self.source_of[document]], int(self.line_of[document])
        return f"{source}:{line}" if line else source


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Changes when the tokenizer would give other ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = f"{type(tokenizer).__name__} {tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    return hashlib.blake2b(f"{special} {content}".encode()).hexdigest()[:32]


def tokenise(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document's ids with the BOS that the tokenizer itself would put first, and EOS last; empty ones are left out.

    Raises:
        ValueError: the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "data: the tokenizer has no EOS token, which must stand between documents; "
            "set one (tokenizer.eos_token = ...) before building the data"
        )
    opening = tokenizer("a")["input_ids"][:1]
    start = opening if tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id] else []
    waiting: list[Document] = []

    def flush() -> Iterator[tuple[Document, np.ndarray]]:
        encoded = tokenizer([document.text for document in waiting], add_special_tokens=False, verbose=False)
        for document, ids in zip(waiting, encoded["input_ids"], strict=True):
            if ids:
                yield document, np.array(start + ids + [tokenizer.eos_token_id], dtype=np.int32)
        waiting.clear()

    for document in documents:
        if document.text:
            waiting.append(document)
        if len(waiting) == _TOKENISE_AT_ONCE:
            yield from flush()
    if waiting:
        yield from flush()


class _Index:
    """What is known of each document besides its tokens, while a store is being written."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.hashes: list[int] = []
        self.source_of: list[int] = []
        self.line_of: list[int] = []
        self.sources: dict[str, int] = {}

    def add(self, document: Document, ids: np.ndarray) -> None:
        self.lengths.append(len(ids))
        self.hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little"))
        self.source_of.append(self.sources.setdefault(document.source, len(self.sources)))
        self.line_of.append(document.line)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "offsets": np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64),
            "hashes": np.array(self.hashes, dtype=np.uint64),
            "source_of": np.array(self.source_of, dtype=np.int32),
            "line_of": np.array(self.line_of, dtype=np.int64),
        }


def store_in_memory(pairs: Iterable[tuple[Document, np.ndarray]], mask: np.ndarray | None = None) -> TokenStore:
    """A store of (document, ids) pairs; `mask` covers all ids in order."""
    index = _Index()
    pieces = [np.zeros(0, dtype=np.int32)]
    for document, ids in pairs:
        index.add(document, ids)
        pieces.append(ids)
    return TokenStore(tokens=np.concatenate(pieces), sources=list(index.sources), mask=mask, **index.arrays())


def cached_store(folder: Path, key: str, pairs: Iterable[tuple[Document, np.ndarray]]) -> TokenStore:
    """The store named `key` in `folder`, built from `pairs` when absent; either whole or not there at all."""
    target = folder / key
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
        try:
            _write(temporary, pairs)
            try:
                temporary.rename(target)
            except OSError:
                # Another process may have finished the same cache first: its content is equal.
                if not target.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _load(target)


def _write(folder: Path, pairs: Iterable[tuple[Document, np.ndarray]]) -> None:
    index = _Index()
    with open(folder / "tokens.bin", "wb") as file:
        for document, ids in pairs:
            index.add(document, ids)
            file.write(ids.tobytes())
        _sync(file)
    for name, array in index.arrays().items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, array)
            _sync(file)
    with open(folder / "store.json", "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "sources": list(index.sources)}, file)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _load(folder: Path) -> TokenStore:
    meta = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS if name != "tokens"}
    size = (folder / "tokens.bin").stat().st_size
    if meta["format"] != _FORMAT or size != 4 * int(arrays["offsets"][-1]):
        raise ValueError(f"data: the token cache '{folder}' is damaged or of another version; remove it")
    tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r") if size else np.zeros(0, dtype=np.int32)
    return TokenStore(tokens=tokens, sources=meta["sources"], **arrays)


def cache_key(parts: Iterable[Any]) -> str:
    """One name for everything that decides the tokens."""
    return hashlib.blake2b(json.dumps([_FORMAT, *parts]).encode()).hexdigest()[:24]
