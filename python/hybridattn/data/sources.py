"""Documents of a corpus: txt, jsonl and parquet files, folders of them, and datasets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HUB_PREFIX = "hub:"
_HUB_NAME = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>.+))?")
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """One document's text and where it came from: `line` is its 1-based line or row, 0 when it is the whole file."""

    text: str
    source: str
    line: int = 0


@dataclass(frozen=True)
class Source:
    """A file or a hub dataset, and a fingerprint that changes when its content does."""

    name: str
    path: Path | None
    fingerprint: str
    dataset: Any = None


def find_sources(paths: Iterable[str | Path] | str | Path) -> list[Source]:
    """Resolves files, folders (recursively, hidden and binary files left out) and hub datasets, in a stable order.

    A hub dataset is written ``owner/name``, ``owner/name:config`` or ``owner/name:config@split`` (split ``train`` unless
    given); the prefix ``hub:`` says so explicitly.

    Raises:
        FileNotFoundError: a path does not exist and cannot be a hub dataset.
        ValueError: no paths, or a folder without text files.
    """
    found: list[Source] = []
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not given:
        raise ValueError("data: no source was given; name at least one file, folder or dataset")
    for entry in given:
        path = Path(entry)
        if str(entry).startswith(_HUB_PREFIX):
            found.append(_hub_source(str(entry).removeprefix(_HUB_PREFIX)))
        elif path.is_dir():
            found.extend(_folder_sources(path))
        elif path.is_file():
            found.append(Source(path.name, path, _content_hash(path)))
        elif path.suffix or path.is_absolute() or not _HUB_NAME.fullmatch(str(entry)):
            raise FileNotFoundError(f"data: there is no file or folder '{entry}'")
        else:
            found.append(_hub_source(str(entry)))
    return found


def read_documents(sources: Sequence[Source], field: str = "text", separator: str | None = None) -> Iterator[Document]:
    """Documents of all sources in order. A text file is one document, or several when `separator` stands between them.

    Raises:
        ValueError: naming file and line, when a line is not JSON, lacks `field`, or a text file is not UTF-8.
    """
    for source in sources:
        if source.path is None:
            yield from _hub_documents(source, field)
        elif source.path.suffix in _JSON_LINES:
            yield from _json_documents(source, field)
        elif source.path.suffix == ".parquet":
            yield from _parquet_documents(source, field)
        else:
            yield from _text_documents(source, separator)


def _folder_sources(folder: Path) -> list[Source]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    kept = [path for path in files if path.suffix == ".parquet" or _looks_like_text(path)]
    if not kept:
        raise ValueError(f"data: folder '{folder}' holds no text file ({len(files)} files of other kinds)")
    return [Source(str(path.relative_to(folder)), path, _content_hash(path)) for path in kept]


def _looks_like_text(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(8192)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut by the end of the sample is no sign of a binary file.
        if error.start < len(head) - 3:
            return False
    return bool(head) and b"\0" not in head


def _content_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _hub_source(entry: str) -> Source:
    import datasets

    match = _HUB_NAME.fullmatch(entry)
    if match is None:
        raise ValueError(f"data: '{entry}' is no dataset name; expected owner/name[:config][@split]")
    split = match["split"] or "train"
    try:
        dataset = datasets.load_dataset(match["name"], match["config"], split=split)
    except Exception as error:
        raise ValueError(
            f"data: cannot load '{entry}' (no such file or folder, and as a hub dataset: {error}); "
            "check the name and the connection, or give a local file"
        ) from error
    return Source(entry, None, dataset._fingerprint, dataset)


def _hub_documents(source: Source, field: str) -> Iterator[Document]:
    columns = source.dataset.column_names
    if field not in columns:
        raise ValueError(f"data: dataset '{source.name}' has no field '{field}'; its fields: {', '.join(columns)}")
    for number, row in enumerate(source.dataset.select_columns([field]), 1):
        yield Document(_string(row[field], source.name, number, field), source.name, number)


def _json_documents(source: Source, field: str) -> Iterator[Document]:
    assert source.path is not None
    with open(source.path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"data: {source.name}, line {number}: not valid JSON ({error})") from error
            if not isinstance(row, dict) or field not in row:
                has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"data: {source.name}, line {number}: no field '{field}' (found: {has})")
            yield Document(_string(row[field], source.name, number, field), source.name, number)


def _parquet_documents(source: Source, field: str) -> Iterator[Document]:
    from pyarrow import parquet

    table = parquet.ParquetFile(source.path)
    if field not in table.schema_arrow.names:
        names = ", ".join(table.schema_arrow.names)
        raise ValueError(f"data: {source.name} has no column '{field}'; its columns: {names}")
    number = 0
    for chunk in table.iter_batches(batch_size=1024, columns=[field]):
        for value in chunk.column(0).to_pylist():
            number += 1
            yield Document(_string(value, source.name, number, field), source.name, number)


def _text_documents(source: Source, separator: str | None) -> Iterator[Document]:
    assert source.path is not None
    try:
        text = source.path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {source.name} is not UTF-8 text (byte {error.start}); convert or remove it") from error
    if separator is None:
        yield Document(text, source.name)
        return
    line = 1
    for part in text.split(separator):
        yield Document(part, source.name, line)
        line += part.count("\n") + separator.count("\n")


def _string(value: Any, source: str, number: int, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"data: {source}, row {number}: field '{field}' holds {type(value).__name__}, expected text")
    return value
