"""Contenders that torch.compile makes: compiled before anything is timed, and named in the result where that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# Compiling Transformers' unrolled loop takes minutes; what was compiled once is found again by the next run.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).resolve().parent.parent / "build/benchmarks/inductor")
)

import torch

from benchmarks.registry import Contenders


class CompilationFailedError(RuntimeError):
    """torch.compile, or a first call of what it made, failed."""


class Compiled:
    """A contender around a function that `warm_up` compiles; before that it runs the function as it is.

    Args:
        function: what is compiled.
        run: given the function, makes one call of the contender: forward, or forward and backward.
    """

    def __init__(self, function: Callable[..., object], run: Callable[[Callable[..., object]], object]) -> None:
        self._function, self._run = function, run

    def __call__(self) -> object:
        return self._run(self._function)

    def warm_up(self) -> None:
        """Compiles, and calls twice: a second call may compile again for what the first one taught.

        Raises:
            CompilationFailedError: with the first line of the compiler's error.
        """
        try:
            self._function = torch.compile(self._function, dynamic=False)
            self()
            self()
        except Exception as error:  # a compiler raises anything
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise CompilationFailedError(f"{type(error).__name__}: {first_line}") from error


def warm_up(contenders: Contenders) -> tuple[Contenders, dict[str, str]]:
    """Calls every contender once, or compiles it.

    Returns:
        Those that run, and of those that could not be compiled: name -> reason.
    """
    if "torch._dynamo" in sys.modules:
        # A function that was compiled for eight other shapes would silently run as it is.
        torch._dynamo.reset()
    running, failed = {}, {}
    for name, contender in contenders.items():
        try:
            contender.warm_up() if isinstance(contender, Compiled) else contender()
            running[name] = contender
        except CompilationFailedError as error:
            failed[name] = str(error)
    return running, failed
