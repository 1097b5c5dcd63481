"""Which implementation of an op runs: forced by argument, context manager or environment, and recorded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("aten", "naive")
"""``aten``: the chunked form composed of ATen ops, on any device; ``naive``: the recurrence, token by token."""

_forced: list[str] = []
"""Names of the `use_backend` blocks that are open, innermost last."""

_calls: Counter[tuple[str, str]] = Counter()


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend '{name}', known are {', '.join(BACKENDS)}")
    return name


def choose_backend(op: str, asked: str | None) -> str:
    """The backend of one call: the argument, else the innermost `use_backend`, else ``HYBRIDATTN_BACKEND``, else aten.

    Raises:
        ValueError: for an unknown name; nothing ever falls back silently.
    """
    if asked is not None:
        chosen = _known(asked, op)
    elif _forced:
        chosen = _forced[-1]
    else:
        chosen = _known(os.environ.get("HYBRIDATTN_BACKEND") or "aten", "HYBRIDATTN_BACKEND")
    return chosen


def record_call(op: str, backend: str) -> None:
    if not torch.compiler.is_compiling():
        _calls[op, backend] += 1


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend for every op called inside. Example: ``with use_backend("naive"): model(ids)``."""
    _forced.append(_known(name, "use_backend"))
    try:
        yield
    finally:
        _forced.pop()


def backend_report() -> dict[str, dict[str, int]]:
    """Calls so far: ``{op: {backend: count}}``. Calls inside a compiled graph are not counted."""
    report: dict[str, dict[str, int]] = {}
    for (op, backend), count in sorted(_calls.items()):
        report.setdefault(op, {})[backend] = count
    return report
