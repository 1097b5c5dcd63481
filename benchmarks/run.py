"""Runs benchmarks: `make bench`, or `python benchmarks/run.py --only linear_kl --quick`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from benchmarks import entries, machine, plot, report
from benchmarks.registry import matching

LATEST = Path("build/benchmarks/latest.json")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="benchmarks whose name contains TEXT")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small shapes, few rounds: a look, not a result")
    size.add_argument("--tiny", action="store_true", help="the smallest shapes, one round: does everything run?")
    parser.add_argument("--threads", nargs="+", type=int, help="instead of each benchmark's own numbers of threads")
    parser.add_argument("--rounds", type=int, help="repetitions of each contender, interleaved")
    parser.add_argument(
        "--patience", type=float, default=0, metavar="S", help="measure a disturbed case again, for S seconds"
    )
    parser.add_argument("--out", type=Path, default=LATEST, help="JSON file; a PNG stands beside")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    # Piped into a file, a table must not be squeezed into 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=130)
    entries.load()
    try:
        chosen = list(matching(options.only))
    except ValueError as error:
        sys.exit(str(error))
    if options.list:
        for benchmark in chosen:
            console.print(f"[bold]{benchmark.name}[/]  {benchmark.about}")
        return
    fewer = options.rounds or (1 if options.tiny else 5 if options.quick else None)
    results = []
    for benchmark in chosen:
        threads = options.threads or benchmark.threads
        cases = (benchmark.tiny,) if options.tiny else benchmark.quick if options.quick else benchmark.cases
        for parameters in cases:
            for number in threads:
                rounds, memory = fewer or benchmark.rounds, number == threads[-1]
                with console.status(f"{benchmark.name} {parameters}, {number} threads"):
                    result = report.measure_case(benchmark, parameters, number, rounds, options.patience, memory)
                results.append(result)
        report.show([result for result in results if result["benchmark"] == benchmark.name], console)
    report.save(results, options.out)
    plot.save_plot(results, options.out.with_suffix(".png"), machine.describe())
    console.print(f"wrote {options.out} and {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
