"""Checkpoints: a folder per step, complete or absent, checked when read. One rename makes it the current one."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hybridattn.distill.loop import TrainerState

_TENSORS, _META, _SUMS = "tensors.safetensors", "state.json", "sums.json"


def save_checkpoint(folder: str | Path, state: TrainerState) -> Path:
    """Writes ``folder/step-N`` and removes the older ones. A step that is there already is left as it is.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier checkpoint is intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.meta['step']:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if final.exists():
        return final
    try:
        partial.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, partial / _TENSORS)
        _write_json(partial / _META, state.meta)
        _write_json(partial / _SUMS, {name: _checksum(partial / name) for name in (_TENSORS, _META)})
        for path in [*partial.iterdir(), partial]:
            sync(path)
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"checkpoint: cannot write {final}: {error}; free some space or choose another run directory "
            "(an earlier checkpoint is intact)"
        ) from error
    sync(folder)
    for old in _checkpoints(folder):
        if old != final:
            shutil.rmtree(old)
    return final


def load_checkpoint(folder: str | Path) -> TrainerState | None:
    """The latest checkpoint in `folder`; None when there is none.

    Raises:
        ValueError: a file of it is missing or not what was written, naming the file.
    """
    found = _checkpoints(Path(folder))
    if not found:
        return None
    latest = found[-1]
    try:
        sums = json.loads((latest / _SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(latest / _SUMS, str(error)) from error
    for name in (_TENSORS, _META):
        path = latest / name
        if not path.exists():
            raise _damaged(path, "it is missing")
        if _checksum(path) != sums.get(name):
            raise _damaged(path, "its content is not what was written")
    return TrainerState(load_file(latest / _TENSORS), json.loads((latest / _META).read_text(encoding="utf-8")))


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"checkpoint: {path} is damaged ({why}); remove {path.parent} to start the stage again")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
