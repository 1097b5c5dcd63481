"""What a benchmark is: a function that builds contenders, registered with its shapes, threads, dtypes and goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "hybridattn"

Contenders = dict[str, Callable[[], object]]
"""Name -> what is measured. The first is this library's, the others are its peers; all read the same inputs."""

Parameters = dict[str, Any]
Build = Callable[..., Contenders]


@dataclass(frozen=True)
class Goal:
    """What is wanted, at least, in the cases it applies to.

    Attributes:
        against: a peer's name, for a ratio peer / ours; or a peak of `roofline`, for the share of it that is reached.
        least: the ratio (1.5: the peer takes half as long again) or the share (0.8: 80 %).
        quantity: of a ratio: ``time`` or ``memory``. A share is one of speed: ``share``.
        where: parameters, ``dtype`` and ``instruction_set`` (the best one of the machine) it is for; empty: all.
    """

    against: str
    least: float
    quantity: str = "time"
    where: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, facts: Mapping[str, Any]) -> bool:
        return all(facts.get(name) == value for name, value in self.where.items())


@dataclass(frozen=True)
class Work:
    """What one call has to do, whoever does it.

    Attributes:
        flops: floating-point operations; of a rule the dense count, which takes tiles on the diagonal as full.
        token_heads: tokens times heads, for the time of one token in one head.
        tokens: for tokens per second.
        elements: of the benchmark's dtype, that must come from or go to memory, where that is the limit.
    """

    flops: float | None = None
    token_heads: float | None = None
    tokens: float | None = None
    elements: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark.

    Attributes:
        build: called with a case's parameters and ``dtype``; its docstring says what is compared.
        cases, quick, tiny: parameters of a full run, of ``--quick``, and of the smallest call that still runs all code.
        goals: what is wanted.
        work: parameters -> what one call does, for speeds and shares of this machine's peaks.
        exact: parameters and dtype -> what a call should return, computed in fp64 from the same numbers.
        memory_bound: parameters -> MiB that arithmetic allows in total, by part.
        rounds: repetitions of each contender, at most.
        memory: whether peak memory is measured.
        axis: the parameter, or ``threads``, that a plot draws the time against, as a line; None: bars of ratios.
        other_work: names of contenders that do something else for comparison, so that results differ.
    """

    name: str
    build: Build
    cases: tuple[Parameters, ...]
    quick: tuple[Parameters, ...]
    tiny: Parameters
    threads: tuple[int, ...]
    dtypes: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    work: Callable[..., Work] | None = None
    exact: Callable[..., Any] | None = None
    memory_bound: Callable[..., dict[str, float]] | None = None
    rounds: int = 15
    memory: bool = True
    axis: str | None = None
    other_work: tuple[str, ...] = ()

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
    dtypes: Sequence[str] = ("float32",),
    goals: Sequence[Goal] = (),
    work: Callable[..., Work] | None = None,
    exact: Callable[..., Any] | None = None,
    memory_bound: Callable[..., dict[str, float]] | None = None,
    rounds: int = 15,
    memory: bool = True,
    axis: str | None = None,
    other_work: Sequence[str] = (),
) -> Callable[[Build], Build]:
    """Registers the decorated function as a benchmark; the arguments are `Benchmark`'s attributes.

    Example:
        >>> @benchmark("double", cases=[{"n": 1 << 20}], tiny={"n": 4}, goals=[Goal("times two", 1.0)])
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
            name, build, tuple(cases), tuple(quick or cases[:1]), tiny, tuple(threads), tuple(dtypes), tuple(goals),
            work, exact, memory_bound, rounds, memory, axis, tuple(other_work),
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
