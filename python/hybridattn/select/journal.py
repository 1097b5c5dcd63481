"""Journal: measurements as lines of JSON, each synced before it is used, so that a killed run repeats none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Append-only events with a key each; the first line says what they were measured on.

    Selectors ask for the same measurements in the same order when they run again, so this file is all the state that a
    resumed search needs.

    Args:
        path: the file, made when absent; None keeps the events in memory only.
        identity: what the measurements depend on (models, held-out sequences, precision).

    Raises:
        ValueError: the file holds measurements of something else (naming what differs), or a line is damaged.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._events: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._complete_lines(path) if path.exists() else []
        if lines:
            self._check(json.loads(lines[0]), dict(identity))
            self._events = {event["key"]: event for event in map(json.loads, lines[1:])}
        else:
            self._append({"identity": dict(identity)})

    def get(self, key: str) -> dict[str, Any] | None:
        return self._events.get(key)

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        """Records an event; it is on disk when this returns."""
        event = {"key": key, **values}
        if self.path is not None:
            self._append(event)
        self._events[key] = event
        return event

    def _append(self, event: dict[str, Any]) -> None:
        assert self.path is not None
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _complete_lines(self, path: Path) -> list[str]:
        """All lines; one that was being written when the process ended is cut off."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        lines = content[:whole].decode("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is damaged ({error}); remove the file to score again"
                ) from error
        return lines

    def _check(self, header: dict[str, Any], identity: dict[str, Any]) -> None:
        there = header.get("identity", {})
        differing = [name for name in sorted(there.keys() | identity.keys()) if there.get(name) != identity.get(name)]
        if differing:
            values = "; ".join(f"{name} was {there.get(name)!r}, is {identity.get(name)!r}" for name in differing)
            raise ValueError(f"{self.path} holds measurements of another run ({values}); choose another directory")
