"""Writes table and plots from the raw data: `python -m benchmarks.selection.report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.selection.contenders import DEFAULT
from benchmarks.selection.plots import save_cost, save_recall
from benchmarks.selection.protocol import Files
from benchmarks.selection.records import read_all
from benchmarks.selection.table import page


def write(folder: Path) -> Path:
    """``report.md``, ``recall.png`` and ``cost.png`` beside the raw data in `folder`; returns the page's path.

    Raises:
        FileNotFoundError, ValueError: no raw data, or damaged data.
    """
    records = read_all(folder)
    path = folder / "report.md"
    path.write_text(page(records), encoding="utf-8")
    found = [comparison for record in records for comparison in record.comparisons()]
    whole = [comparison for comparison in found if comparison.whole and DEFAULT in comparison.chosen]
    if whole:
        save_recall(whole, folder / "recall.png")
        save_cost(whole, folder / "cost.png")
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=Files().results, help="folder of the raw data")
    print(f"wrote {write(parser.parse_args(argv).results)}")


if __name__ == "__main__":
    main()
