"""The teacher's hidden states on the held-out sequences, computed once: in memory when they fit, on disk otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MEMORY_LIMIT = 1 << 30
"""Bytes kept in memory; what comes after goes to disk."""


class TeacherStates:
    """Hidden states by batch number.

    Args:
        compute: batch number -> [B, T, D].
        folder: where a temporary folder is made once memory is full (the system's when None); it goes with this object.
        memory_limit: bytes to keep in memory.
    """

    def __init__(
        self, compute: Callable[[int], Tensor], folder: Path | None = None, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        self._compute, self._folder, self._left = compute, folder, memory_limit
        self._in_memory: dict[int, Tensor] = {}
        self._on_disk: dict[int, Path] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __getitem__(self, batch: int) -> Tensor:
        if batch in self._on_disk:
            return torch.load(self._on_disk[batch], mmap=True, weights_only=True)
        if batch not in self._in_memory:
            hidden = self._compute(batch)
            if hidden.nbytes > self._left:
                self._store(batch, hidden)
                return hidden
            self._left -= hidden.nbytes
            self._in_memory[batch] = hidden
        return self._in_memory[batch]

    def _store(self, batch: int, hidden: Tensor) -> None:
        if self._temporary is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="teacher-", dir=self._folder)
        path = Path(self._temporary.name) / f"{batch}.pt"
        torch.save(hidden.cpu(), path)
        self._on_disk[batch] = path
