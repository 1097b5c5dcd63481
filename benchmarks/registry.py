"""What a benchmark is: a function that builds contenders, registered with its shapes, threads, dtype and goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Contenders = dict[str, Callable[[], object]]
"""Name -> what is measured. The first is this library's, the others are its peers; all read the same inputs."""

Parameters = dict[str, Any]
Build = Callable[..., Contenders]


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark.

    Attributes:
        build: called with a case's parameters and ``dtype``; its docstring says what is compared.
        cases, quick, tiny: parameters of a full run, of ``--quick``, and of the smallest call that still runs all code.
        goals: "time" and "memory": the ratio peer / ours that is wanted, at least.
        memory_bound: parameters -> MiB that arithmetic allows in total, by part.
        rounds: repetitions of each contender in a full run.
        flops: parameters -> floating-point operations of one call, for GFLOP/s beside this machine's matrix product.
    """

    name: str
    build: Build
    cases: tuple[Parameters, ...]
    quick: tuple[Parameters, ...]
    tiny: Parameters
    threads: tuple[int, ...]
    dtype: str
    goals: dict[str, float] = field(default_factory=dict)
    memory_bound: Callable[..., dict[str, float]] | None = None
    rounds: int = 15
    flops: Callable[..., float] | None = None

    @property
    def about(self) -> str:
        """First line of what is compared."""
        return (self.build.__doc__ or "").strip().split("\n")[0]


_registered: dict[str, Benchmark] = {}


def benchmark(
    name: str,
    *,
    cases: Sequence[Parameters],
    tiny: Parameters,
    quick: Sequence[Parameters] = (),
    threads: Sequence[int] = (1, 2),
    dtype: str = "float32",
    goals: dict[str, float] | None = None,
    memory_bound: Callable[..., dict[str, float]] | None = None,
    rounds: int = 15,
    flops: Callable[..., float] | None = None,
) -> Callable[[Build], Build]:
    """Registers the decorated function as a benchmark.

    Example:
        >>> @benchmark("double", cases=[{"n": 1 << 20}], tiny={"n": 4})
        ... def double(n, dtype):
        ...     x = torch.ones(n, dtype=dtype)
        ...     return {"hybridattn": lambda: x + x, "times two": lambda: x * 2}

    Raises:
        ValueError: the name is taken.
    """

    def register(build: Build) -> Build:
        if name in _registered:
            raise ValueError(f"benchmark: '{name}' is registered twice")
        _registered[name] = Benchmark(
            name, build, tuple(cases), tuple(quick or cases[:1]), tiny, tuple(threads), dtype, goals or {},
            memory_bound, rounds, flops,
        )  # fmt: skip
        return build

    return register


def find(name: str) -> Benchmark:
    """The benchmark of exactly this name."""
    return _registered[name]


def matching(patterns: Sequence[str]) -> Iterator[Benchmark]:
    """Benchmarks whose name contains one of `patterns`; all of them for none.

    Raises:
        ValueError: a pattern that no name contains.
    """
    for pattern in patterns:
        if not any(pattern in name for name in _registered):
            raise ValueError(f"benchmarks: no name contains '{pattern}', known are {', '.join(_registered)}")
    for name, found in _registered.items():
        if not patterns or any(pattern in name for pattern in patterns):
            yield found
