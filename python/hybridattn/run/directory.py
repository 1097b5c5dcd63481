"""The run directory: which recipe owns it, and its files, each written to a temporary name, synced and renamed."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from hybridattn.run.recipe import Recipe

_T = TypeVar("_T")


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` in one step; after a crash or on a full disk the old file is intact."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key}: {old!r} there, {new!r} now"]


class RunDirectory:
    """Files of one run. It belongs to its recipe from the first file on; the token cache is no such file.

    Raises:
        ValueError: when the directory belongs to another recipe, naming the keys that differ.
    """

    def __init__(self, path: str | Path, recipe: Recipe) -> None:
        self.path = Path(path)
        self._values = recipe.model_dump(mode="json", exclude_none=True)
        if self._owner.exists():
            differences = _differences(tomllib.loads(self._owner.read_text(encoding="utf-8")), self._values)
            if differences:
                raise ValueError(
                    f"run directory {self.path} belongs to another recipe ({'; '.join(differences)}); "
                    "choose another directory or remove this one"
                )
        elif self.path.exists() and any(path != self.cache for path in self.path.iterdir()):
            raise ValueError(f"run directory {self.path} is not empty and holds no recipe; choose another directory")

    @property
    def _owner(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def cache(self) -> Path:
        """Folder of the token cache, whose entries are named by their content."""
        return self.path / "cache"

    def claim(self) -> None:
        """Makes the directory the recipe's own; `folder` and `write` do so."""
        if not self._owner.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self._owner, tomli_w.dumps(self._values))

    def folder(self, *parts: str) -> Path:
        self.claim()
        folder = self.path.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def read(self, name: str) -> Any | None:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, name: str, value: Any) -> None:
        self.claim()
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(value, indent=2))

    def once(self, name: str, compute: Callable[[], _T]) -> _T | Any:
        """The JSON value in file `name`, computed and written when it is not there yet."""
        value = self.read(name)
        if value is None:
            value = compute()
            self.write(name, value)
        return value
