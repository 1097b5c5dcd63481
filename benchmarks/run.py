"""Runs benchmarks: `make bench`, or `python benchmarks/run.py --only linear_kl --quick`."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from benchmarks import entries, plot, report
from benchmarks.memory import MemoryMeter
from benchmarks.registry import Benchmark, Parameters, matching
from benchmarks.result import Effort, load, measure_case, save

LATEST = Path("build/benchmarks/latest.json")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="benchmarks whose name contains TEXT")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="fewer shapes and rounds, the most threads, no memory: a look, not a result",
    )
    size.add_argument("--tiny", action="store_true", help="the smallest shapes, one round: does everything run?")
    parser.add_argument("--threads", nargs="+", type=int, help="instead of each benchmark's own numbers of threads")
    parser.add_argument("--dtypes", nargs="+", help="of each benchmark's own, only these")
    parser.add_argument("--rounds", type=int, help="repetitions of each contender, interleaved, at most")
    parser.add_argument(
        "--patience", type=float, default=0, metavar="S", help="measure a disturbed case again, for S seconds"
    )
    parser.add_argument("--out", type=Path, default=LATEST, help="JSON file; its plots lie beside it, in a folder")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument(
        "--replot", type=Path, metavar="JSON", help="draw and print the results of an earlier run, and stop"
    )
    return parser.parse_args(argv)


def cases(benchmark: Benchmark, options: argparse.Namespace) -> list[tuple[Parameters, str, int]]:
    """(parameters, dtype, threads) of everything that is measured of one benchmark."""
    shapes = (benchmark.tiny,) if options.tiny else benchmark.quick if options.quick else benchmark.cases
    threads = options.threads or (benchmark.threads[-1:] if options.quick else benchmark.threads)
    dtypes = [dtype for dtype in benchmark.dtypes if not options.dtypes or dtype in options.dtypes]
    return [(shape, dtype, number) for shape in shapes for dtype in dtypes for number in threads]


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    # Piped into a file, a table must not be squeezed into 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    entries.load()
    try:
        if options.replot:
            described, results = load(options.replot)
            report.show(results, console)
            report.show_goals(results, console)
            plot.save_plots(results, options.replot.with_suffix(""), described)
            return
        chosen = list(matching(options.only))
    except ValueError as error:
        sys.exit(str(error))
    if options.list:
        for benchmark in chosen:
            console.print(f"[bold]{benchmark.name}[/]  {benchmark.about}")
        return
    fewer = options.rounds or (1 if options.tiny else 5 if options.quick else None)
    start, results = time.monotonic(), []
    with ExitStack() as stack:
        # Memory hardly depends on the number of threads: it is measured at the last one only.
        meter = None if options.quick else stack.enter_context(MemoryMeter())
        for benchmark in chosen:
            plan = cases(benchmark, options)
            for parameters, dtype, threads in plan:
                memory = meter if threads == plan[-1][2] else None
                effort = Effort(fewer, 3.0 if options.quick else 8.0, options.patience, memory)
                with console.status(f"{benchmark.name} {parameters}, {dtype}, {threads} threads"):
                    results.append(measure_case(benchmark, parameters, dtype, threads, effort))
            report.show([result for result in results if result["benchmark"] == benchmark.name], console)
    if not options.tiny:
        report.show_goals(results, console)
    save(results, options.out)
    described, results = load(options.out)
    plots = plot.save_plots(results, options.out.with_suffix(""), described)
    console.print(f"wrote {options.out} and {len(plots)} plots beside it, after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
