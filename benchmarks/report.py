"""Results on the terminal: a table per benchmark, then every goal beside what was reached."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.result import Result, case_label, shape_label

PEAKS = {
    "fp32_fma": "the fp32 multiply-add peak", "fp32_gemm": "torch's fp32 matrix product",
    "bf16_dot": "the bf16 dot-product peak", "bf16_gemm": "torch's bf16 matrix product",
    "update": "memory updated in place",
}  # fmt: skip


def show(results: list[Result], console: Console) -> None:
    """Prints one table per benchmark; ratios are peer / ours, so more than 1 is in our favour."""
    for name in dict.fromkeys(result["benchmark"] for result in results):
        own = [result for result in results if result["benchmark"] == name]
        console.print(f"\n[bold]{name}[/]: {own[0]['about']}")
        table = Table()
        for heading in ("case", "dtype", "threads", "contender"):
            table.add_column(heading, no_wrap=True)
        rows = [_cells(result, contender) for result in own for contender in result["contenders"]]
        headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for result in own:
            first = [shape_label(result), result["dtype"], str(result["threads"])]
            for contender in result["contenders"]:
                cells = _cells(result, contender)
                table.add_row(*first, contender, *(cells[heading] for heading in headings))
                first = ["", "", ""]
            table.add_section()
        console.print(table)
        for result in own:
            for line in _remarks(result):
                console.print(f"{case_label(result)}: {line}", highlight=False)


def _cells(result: Result, contender: str) -> dict[str, str]:
    """Heading -> what a table says about a contender; empty where it was not measured or has no meaning."""
    values, ratios = result["contenders"][contender], result["ratios"].get(contender, {})
    low, high = values["quartiles"]
    share = result["others_share_of_cpu"]
    return {
        "ms": f"{values['milliseconds']:.2f}",
        "quartiles": f"{low:.2f}-{high:.2f}",
        "us / token / head": _cell(values, "microseconds_per_token_head", "{:.3f}"),
        "tokens / s": _cell(values, "tokens_per_second", "{:,.0f}"),
        "x time": _cell(ratios, "time", "{:.2f}"),
        "extra MiB": _cell(values, "extra_mib", "{:.0f}"),
        "x memory": _cell(ratios, "memory", "{:.2f}"),
        "error": _cell(values, "error", "{:.0e}"),
        "others' CPU": "" if share is None or ratios else f"{share:.0%}",
    }


def _cell(values: dict[str, float], key: str, pattern: str) -> str:
    return pattern.format(values[key]) if key in values else ""


def _remarks(result: Result) -> list[str]:
    """What a table has no column for: speed against the machine's peaks, memory against its bound, what failed."""
    lines = []
    speeds = [f"{result[key]:.0f} {unit}" for key, unit in _SPEEDS.items() if key in result]
    shares = [f"{share:.0%} of {PEAKS[peak]}" for peak, share in result.get("shares", {}).items()]
    if speeds:
        lines.append(", ".join(speeds + shares))
    if "memory_bound_mib" in result:
        parts = ", ".join(f"{part} {mib:.0f}" for part, mib in result["memory_bound_mib"].items())
        lines.append(f"all memory is {result['memory_over_bound']:.2f} x ({parts}) MiB")
    lines += [f"[red]{name} cannot be measured:[/] {escape(reason)}" for name, reason in result["failed"].items()]
    return lines


_SPEEDS = {"gflops": "GFLOP/s", "gbytes_per_second": "GB/s"}


def show_goals(results: list[Result], console: Console) -> None:
    """Prints every goal of these results beside what was reached."""
    table = Table(title="What was wanted, at least, and what was reached", title_justify="left")
    for heading in ("benchmark", "case", "against"):
        table.add_column(heading, no_wrap=True)
    for heading in ("wanted", "reached"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for goal in result["goals"]:
            table.add_row(result["benchmark"], case_label(result), _against(goal), *_wanted(goal))
    if table.row_count:
        console.print()
        console.print(table)


def _against(goal: dict[str, Any]) -> str:
    if goal["quantity"] == "share":
        return f"share of {PEAKS[goal['against']]}"
    return f"{goal['against']}, {goal['quantity']}"


def _wanted(goal: dict[str, Any]) -> tuple[str, str]:
    wanted, value = goal["least"], goal["reached"]
    pattern = "{:.0%}" if goal["quantity"] == "share" else "{:.2f} x"
    if value is None:
        return pattern.format(wanted), "not measured"
    color = "green" if value >= wanted else "red"
    return pattern.format(wanted), f"[{color}]{pattern.format(value)}[/]"
