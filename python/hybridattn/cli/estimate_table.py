"""What ``hybridattn estimate`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hybridattn.run import Estimate

_COLUMNS = ("tokens", "TFLOP", "time", "weights", "training", "peak MiB")


def print_estimate(console: Console, estimate: Estimate) -> None:
    """One row per step that is not finished, and the totals."""
    if not estimate.steps:
        console.print("every step of this run is finished")
        return
    machine = estimate.machine
    table = Table(
        title=f"still to do, on {machine['processor']}, {machine['threads']} threads, {machine['dtype']}; memory in MiB",
        show_footer=True,
    )
    table.add_column("step", footer="all", overflow="fold")
    totals = (f"{estimate.tokens:,}", _tera(estimate.flops), _time(estimate.seconds), "", "", _mib(estimate.memory))
    for name, total in zip(_COLUMNS, totals, strict=True):
        table.add_column(name, footer=total, justify="right", no_wrap=True)
    bounds = list(dict.fromkeys(step.bound for step in estimate.steps if step.bound))
    for step in estimate.steps:
        memory = step.memory
        parts = (memory.parameters, memory.total - memory.parameters, memory.total)
        mark = f" [{bounds.index(step.bound) + 1}]" if step.bound else ""
        table.add_row(
            step.step + mark, f"{step.tokens:,}", _tera(step.flops), _time(step.seconds),
            *(_mib(part) if part else "" for part in parts),
        )  # fmt: skip
    console.print(table)
    for number, bound in enumerate(bounds, 1):
        console.print(f"[{number}] {bound}", highlight=False, markup=False)
    console.print(f"disk: {_mib(estimate.disk)} MiB for models and checkpoints", highlight=False)


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.2f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
