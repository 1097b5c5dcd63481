"""``hybridattn eval --model FOLDER``: its options, from text to what `hybridattn.evaluate.evaluate_folders` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def folders(help: str, *names: str, least: int | None = None) -> Any:
    """An option that goes with ``--model``; its name is the parameter's unless `names` says otherwise."""
    return typer.Option(*names, help=help, min=least, rich_help_panel="A model in a folder")


def _listed(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The parts of ``a,b,c``.

    Raises:
        ValueError: naming the option and the part that is not of its kind.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(kind(part.strip()))
        except ValueError:
            expected = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"--{option}: expected {expected} with commas between them, got '{part}'") from None
    return found


_LISTS: dict[str, Callable[[str], Any]] = {"tasks": str, "lengths": int, "depths": float, "text": str, "lm_eval": str}


def evaluate_folder(model: str, given: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Measures `model` as the options of the command line say; writes the results into the file that ``out`` names.

    Raises:
        ValueError: an option that cannot be read, or as `evaluate_folders`.
        FileNotFoundError: there is no folder for ``out``.
    """
    from hybridattn.evaluate import FolderOptions, evaluate_folders
    from hybridattn.run.directory import write_atomically

    values: dict[str, Any] = {
        name: _listed(name.replace("_", "-"), value, _LISTS[name]) if name in _LISTS else value
        for name, value in given.items()
    }
    teacher, out = values.pop("teacher", None), values.pop("out", None)
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {Path(out).parent}")
    result = evaluate_folders(model, teacher, FolderOptions(**values), progress)
    if out is not None:
        write_atomically(Path(out), json.dumps(result, indent=2))
    return result
