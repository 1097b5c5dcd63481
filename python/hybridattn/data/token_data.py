"""TokenData: a corpus as training batches in a fixed order and as held-out batches of other documents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hybridattn.data.batch import Batch
from hybridattn.data.packing import PackedDocuments
from hybridattn.data.sources import Document, find_sources, read_documents
from hybridattn.data.store import TokenStore, cache_key, cached_store, store_in_memory, tokenise, tokenizer_fingerprint


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hybridattn" / "tokens"


class TokenData:
    """Packed sequences of `seq_len` tokens with EOS between documents, in a training and a held-out split.

    The split is by document: documents are ordered by a hash of their content and `split_seed`, and the first
    `held_out` share of them is held out. Equal documents have equal hashes, so a copy of a held-out document is never
    trained on. Batches depend only on (seed, step): a loop that starts at step n sees what an uninterrupted one saw.

    Build one with `from_files`, `from_texts` or `from_tokens`.

    Example:
        >>> data = TokenData.from_files(["corpus.jsonl"], tokenizer, seq_len=512, held_out=0.05)
        >>> data.check_vocabulary(model.config.vocab_size)
        >>> batch = next(data.train_batches(batch_size=8, start_step=100, seed=0))
        >>> held_out = data.held_out(64)

    Raises:
        ValueError: the corpus is empty, cannot be parted, or its training split is shorter than one sequence.
    """

    def __init__(self, store: TokenStore, seq_len: int, held_out: float = 0.05, split_seed: int = 0) -> None:
        if not 0 <= held_out < 1:
            raise ValueError(f"data: held_out is {held_out}, expected a share of the documents in [0, 1)")
        if len(store) == 0:
            raise ValueError("data: the corpus is empty (no document has any text); check the sources and `field`")
        self.store = store
        self.seq_len = seq_len
        self.held_out_share = held_out
        self.split_seed = split_seed
        keys = _mixed(np.asarray(store.hashes), split_seed)
        order = np.argsort(keys, kind="stable")
        count = _held_out_count(keys[order], held_out)
        self.held_out_documents = order[:count]
        self.train_documents = order[count:]
        self._held_out = PackedDocuments(store, self.held_out_documents, seq_len)
        self._train = PackedDocuments(store, self.train_documents, seq_len)
        if len(self._train) == 0:
            raise ValueError(
                f"data: {len(self._train.order)} training documents hold {self._train.num_tokens} tokens, one sequence "
                f"needs {seq_len}; use a longer corpus or a smaller seq_len"
            )

    @classmethod
    def from_files(
        cls,
        paths: Iterable[str | Path] | str | Path,
        tokenizer: Any,
        seq_len: int,
        *,
        held_out: float = 0.05,
        split_seed: int = 0,
        cache_dir: str | Path | None = None,
        field: str = "text",
        separator: str | None = None,
    ) -> TokenData:
        """Tokenises files (txt, jsonl, parquet), folders or hub datasets once and memory-maps the result afterwards.

        Args:
            tokenizer: a Transformers tokenizer with an EOS token.
            held_out: share of the documents that no stage trains on.
            cache_dir: folder of the token cache (default ``$XDG_CACHE_HOME/hybridattn/tokens``). Its entries are named
                by the tokenizer, the files' content, `field` and `separator`.
            field: the text's name in jsonl, parquet and datasets.
            separator: what stands between documents in a text file; without it a text file is one document.

        Raises:
            FileNotFoundError: a source does not exist.
            ValueError: naming the source, when it cannot be read; or the corpus is empty or too short.
        """
        sources = find_sources(paths)
        key = cache_key(
            [[[s.name, s.fingerprint] for s in sources], tokenizer_fingerprint(tokenizer), field, separator],
        )
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
        store = cached_store(folder, key, tokenise(read_documents(sources, field, separator), tokenizer))
        return cls(store, seq_len, held_out, split_seed)

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], tokenizer: Any, seq_len: int, *, held_out: float = 0.05, split_seed: int = 0
    ) -> TokenData:
        """Tokenises strings, one document each, in memory."""
        documents = (Document(text, "text", number) for number, text in enumerate(texts, 1))
        return cls(store_in_memory(tokenise(documents, tokenizer)), seq_len, held_out, split_seed)

    @classmethod
    def from_tokens(
        cls,
        tokens: Tensor | Sequence[Tensor | Sequence[int]],
        seq_len: int | None = None,
        *,
        loss_mask: Tensor | Sequence[Tensor] | None = None,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> TokenData:
        """Documents that are token ids already, EOS included where wanted.

        Args:
            tokens: ``[N, T]`` integers, each row one document, or a sequence of 1-D documents, packed to `seq_len`.
            seq_len: T of the tensor when absent.
            loss_mask: bool, shaped as `tokens`; True where a token counts in the loss.

        Raises:
            ValueError: a negative id, a `loss_mask` of another shape, or no `seq_len` for documents of unequal length.
        """
        documents = [np.asarray(document) for document in tokens]
        if seq_len is None:
            if not isinstance(tokens, Tensor) or tokens.dim() != 2:
                raise ValueError("from_tokens: give `seq_len`, or tokens as a tensor [N, T]")
            seq_len = tokens.shape[1]
        for number, ids in enumerate(documents, 1):
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (len(ids) and ids.min() < 0):
                raise ValueError(f"from_tokens: document {number} must be a 1-D list of token ids >= 0")
        mask = None
        if loss_mask is not None:
            rows = [np.asarray(row, dtype=bool) for row in loss_mask]
            if [row.shape for row in rows] != [ids.shape for ids in documents]:
                raise ValueError("from_tokens: loss_mask must have the shape of tokens")
            mask = np.concatenate(rows)
        pairs = (
            (Document("", "tokens", number), ids.astype(np.int32))
            for number, ids in enumerate(documents, 1)
            if len(ids)
        )
        return cls(store_in_memory(pairs, mask), seq_len, held_out, split_seed)

    def with_seq_len(self, seq_len: int) -> TokenData:
        """The same documents and split in sequences of another length; nothing is tokenised again."""
        return self if seq_len == self.seq_len else TokenData(self.store, seq_len, self.held_out_share, self.split_seed)

    @property
    def num_train_sequences(self) -> int:
        return len(self._train)

    @property
    def num_held_out_sequences(self) -> int:
        return len(self._held_out)

    @property
    def fingerprint(self) -> str:
        """Names content, split and sequence length: two data sets with one fingerprint give the same batches."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.store.hashes).tobytes())
        if self.store.mask is not None:
            digest.update(self.store.mask.tobytes())
        digest.update(f"{self.seq_len} {self.held_out_share} {self.split_seed}".encode())
        return digest.hexdigest()[:16]

    def train_batches(self, batch_size: int, start_step: int = 0, seed: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch_size` sequences, from step `start_step` on; each epoch has its own order.

        Raises:
            ValueError: `batch_size` < 1 or `start_step` < 0.
        """
        if batch_size < 1 or start_step < 0:
            raise ValueError(f"train_batches: batch_size {batch_size} must be >= 1 and start_step {start_step} >= 0")
        return self._train_batches(batch_size, start_step, seed)

    def _train_batches(self, batch_size: int, start_step: int, seed: int) -> Iterator[Batch]:
        per_epoch = len(self._train)
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        position = start_step * batch_size
        while True:
            rows = []
            for index in range(position, position + batch_size):
                if index // per_epoch != epoch:
                    epoch = index // per_epoch
                    order = np.random.default_rng([seed, epoch]).permutation(per_epoch)
                rows.append(int(order[index % per_epoch]))
            yield self._train.batch(rows)
            position += batch_size

    def held_out(self, n_sequences: int | None = None, batch_size: int = 8) -> list[Batch]:
        """The first `n_sequences` held-out sequences (all of them when None), always the same ones.

        Raises:
            ValueError: the held-out split is smaller than asked.
        """
        available = len(self._held_out)
        wanted = available if n_sequences is None else n_sequences
        if not 1 <= wanted <= available:
            raise ValueError(
                f"held_out: {max(wanted, 1)} sequences of {self.seq_len} tokens are needed, the held-out split has "
                f"{available} ({len(self.held_out_documents)} documents, {self._held_out.num_tokens} tokens); raise "
                f"held_out (now {self.held_out_share:g} of the documents) or use a longer corpus"
            )
        starts = range(0, wanted, batch_size)
        return [self._held_out.batch(range(start, min(start + batch_size, wanted))) for start in starts]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Makes sure that a model of `vocab_size` entries knows every token.

        Raises:
            ValueError: naming the id and the document, when one does not fit.
        """
        largest = int(self.store.tokens.max())
        if largest >= vocab_size:
            place = int(np.argmax(self.store.tokens))
            document = int(np.searchsorted(self.store.offsets, place, side="right")) - 1
            raise ValueError(
                f"data: token id {largest} in {self.store.name(document)} is outside the model's vocabulary of "
                f"{vocab_size}; tokenise with the teacher's own tokenizer"
            )

    def __repr__(self) -> str:
        return (
            f"TokenData({len(self.store)} documents, {len(self.store.tokens)} tokens: {self.num_train_sequences} training "
            f"and {self.num_held_out_sequences} held-out sequences of {self.seq_len})"
        )


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Content hashes re-mixed with `seed` (the finaliser of splitmix64, a bijection: equal only for equal hashes)."""
    mixed = hashes ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _held_out_count(ordered: np.ndarray, share: float) -> int:
    """How many of the ordered documents are held out: at least one if any, and never only some of equal documents.

    Raises:
        ValueError: there are no two different documents to part.
    """
    if share == 0:
        return 0
    count = max(1, round(share * len(ordered)))
    boundary = int(np.searchsorted(ordered, ordered[count - 1], side="right"))
    if boundary == len(ordered):
        boundary = int(np.searchsorted(ordered, ordered[-1], side="left"))
    if boundary == 0:
        raise ValueError(
            f"data: cannot hold out {share:g} of the documents: the corpus has {len(ordered)} document(s), all the same; "
            "give more documents (a text file is one, unless `separator` says what stands between them) or held_out=0"
        )
    return boundary
