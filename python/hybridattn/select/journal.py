"""Journal: measurements as lines of JSON, each synced before it is used, so that a killed run repeats none of them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Journal:
    """Append-only events with a key each; the first line says what they were measured on.

    Selectors ask for the same measurements in the same order when they run again, so this file is all the state that a
    resumed search needs. Several processes may share it: whoever measures holds its lock (`measuring`), the others wait
    and find the event that they were about to measure.

    Args:
        path: the file, made when absent; None keeps the events in memory only.
        identity: what the measurements depend on (models, held-out sequences, precision).

    Raises:
        ValueError: the file holds measurements of something else (naming what differs), or a line is damaged.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = dict(identity)
        self._events: dict[str, dict[str, Any]] = {}
        self._read, self._lines = 0, 0
        self._holds = 0
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with self.measuring():
            if not self._lines:
                self._append({"identity": self._identity})

    def get(self, key: str) -> dict[str, Any] | None:
        """The event of this or another process, or None."""
        if key not in self._events:
            self._merge()
        return self._events.get(key)

    @contextmanager
    def measuring(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the file's lock; what others finished before is known inside. A process that dies frees the lock.

        Args:
            waiting: called once if another process holds it.
        """
        if self.path is None or self._holds:
            yield
            return
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            self._holds = True
            try:
                self._merge()
                yield
            finally:
                self._holds = False

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        """Records an event; it is on disk when this returns. An event that is there already stays."""
        with self.measuring():
            if key not in self._events:
                event = {"key": key, **values}
                if self.path is not None:
                    self._append(event)
                self._events[key] = event
        return self._events[key]

    def _append(self, event: dict[str, Any]) -> None:
        assert self.path is not None
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        with open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._read += len(line)
        self._lines += 1

    def _merge(self) -> None:
        """Takes up the lines that were added since; one that was being written when its process ended is cut off."""
        if self.path is None or os.path.getsize(self.path) == self._read:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content) and self._holds:  # without the lock its writer may still be at it
            os.truncate(self.path, self._read + whole)
        for line in content[:whole].splitlines():
            self._lines += 1
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line {self._lines} is damaged ({error}); remove the file to score again"
                ) from error
            if self._lines == 1:
                self._check(values)
            else:
                self._events.setdefault(values["key"], values)
        self._read += whole

    def _check(self, header: dict[str, Any]) -> None:
        there, identity = header.get("identity", {}), self._identity
        differing = [name for name in sorted(there.keys() | identity.keys()) if there.get(name) != identity.get(name)]
        if differing:
            values = "; ".join(f"{name} was {there.get(name)!r}, is {identity.get(name)!r}" for name in differing)
            raise ValueError(f"{self.path} holds measurements of another run ({values}); choose another directory")
