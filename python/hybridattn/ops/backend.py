"""Which implementation of an op runs: forced by argument, context manager or environment, and recorded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybridattn import _C

BACKENDS = ("native", "aten", "naive")
"""``native``: this library's kernels (CPU; float64, float32, bfloat16); ``aten``: a composition of ATen ops, on any device
and dtype; ``naive``: the recurrence, token by token."""

NATIVE_DTYPES = (torch.float64, torch.float32, torch.bfloat16)

_forced: list[str] = []
"""Names of the `use_backend` blocks that are open, innermost last."""

_calls: Counter[tuple[str, str]] = Counter()


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend '{name}', known are {', '.join(BACKENDS)}")
    return name


def forced_backend(op: str, asked: str | None) -> str | None:
    """The backend that a call must use: the argument, else the innermost `use_backend`, else ``HYBRIDATTN_BACKEND``;
    None where nobody asked for one.

    Raises:
        ValueError: for an unknown name; nothing that was asked for falls back silently.
    """
    if asked is not None:
        return _known(asked, op)
    if _forced:
        return _forced[-1]
    if wanted := os.environ.get("HYBRIDATTN_BACKEND"):
        return _known(wanted, "HYBRIDATTN_BACKEND")
    return None


def forced_dense_backend(op: str, asked: str | None) -> str | None:
    """`forced_backend` of an op whose composition of ATen ops is the formula itself, so that it serves as naive too."""
    forced = forced_backend(op, asked)
    return "aten" if forced == "naive" else forced


def choose_backend(op: str, asked: str | None, x: torch.Tensor) -> str:
    """The backend of one call on tensors like `x`: the forced one, else native where it can run, else aten.

    Raises:
        ValueError: as `forced_backend`.
    """
    can_run_native = x.device.type == "cpu" and x.dtype in NATIVE_DTYPES
    return forced_backend(op, asked) or ("native" if can_run_native else "aten")


def record_call(op: str, backend: str) -> None:
    if not torch.compiler.is_compiling():
        _calls[op, backend] += 1


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that the native kernels can use on this machine, the best one last."""
    return tuple(_C.core.kernel_instruction_sets())


def instruction_set() -> str:
    """The one that the native kernels use."""
    return str(_C.core.kernel_instruction_set())


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Makes the native kernels of this process, in every thread, use one instruction set.

    Outside such a block it is the one that the environment variable ``HYBRIDATTN_INSTRUCTION_SET`` names, else the best.

    Raises:
        ValueError: for an unknown name or a set that this machine lacks.
    """
    before = _C.core.force_instruction_set(name)
    try:
        yield
    finally:
        _C.core.force_instruction_set(before)


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
