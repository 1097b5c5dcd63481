"""Runs the comparison, or goes on with it: `make bench-selection`, or `python -m benchmarks.selection.run --minutes 30`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from benchmarks.selection.cell import LOSSES, Cell, Show
from benchmarks.selection.contenders import plans, selectors
from benchmarks.selection.protocol import SEEDS, TEACHERS, Files, Protocol, Teacher
from benchmarks.selection.truth import most_promising, score_all
from hybridattn import _C


class OutOfTime(Exception):
    """The time budget is spent; what was measured is on disk."""


def compare(
    teachers: Iterable[Teacher], seeds: Iterable[int], protocol: Protocol, files: Files, show: Show = print
) -> Iterator[None]:
    """Takes all measurements that are missing, yielding after each piece of work.

    The order makes every prefix a balanced table: the first seed of all teachers before the second, and each budget of
    all teachers before the next.
    """
    files.check()
    _C.core.keep_freed_memory()
    teachers = list(teachers)
    for seed in seeds:
        cells = {teacher.name: Cell(teacher, seed, protocol, files, show) for teacher in teachers}
        for place in range(max(len(teacher.budgets) for teacher in teachers)):
            for teacher in teachers:
                if place < len(teacher.budgets):
                    yield from compare_at(cells[teacher.name], teacher.budgets[place])


def compare_at(cell: Cell, keep: int) -> Iterator[None]:
    """One teacher, seed and budget: what looks at the models, the ground truth, at last plans that look at nothing."""
    cell.reference()
    wanted = []
    for contender in selectors():
        wanted.append(contender.chosen(cell, keep)["layers"][str(keep)])
        yield
    for loss in LOSSES:
        score_all(cell, keep, loss)
        yield
    wanted += most_promising(cell, keep)
    wanted += [contender.chosen(cell, keep)["layers"][str(keep)] for contender in plans(cell, keep)]
    for layers in wanted:
        cell.distil(layers)
        yield


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection.run", description=__doc__)
    names = [teacher.name for teacher in TEACHERS]
    parser.add_argument("--minutes", type=float, help="stop when they are over, between two measurements")
    parser.add_argument("--teachers", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Files().results, help="folder of the raw data")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    teachers = [teacher for teacher in TEACHERS if teacher.name in options.teachers]
    work = compare(
        teachers, options.seeds, Protocol(), Files(results=options.results), lambda line: print(line, flush=True)
    )
    for _ in work:
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print("out of time; run the same command again to go on")
            return
    print("complete")


if __name__ == "__main__":
    main()
