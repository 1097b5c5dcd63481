"""Results as plain data, as a table on the terminal and as a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.measure import peak_memory, ratio, undisturbed
from benchmarks.registry import Benchmark, Parameters
from benchmarks.roofline import gemm_gflops
from hybridattn.ops import backend_report

Result = dict[str, Any]


def measure_case(
    benchmark: Benchmark, parameters: Parameters, threads: int, rounds: int, patience: float, memory: bool
) -> Result:
    """One case at one number of threads: times, peak memory, ratios peer / ours, and what else the machine did.

    `memory` False leaves memory out: it hardly depends on the number of threads.
    """
    torch.set_num_threads(threads)
    dtype = getattr(torch, benchmark.dtype)
    before = backend_report()
    contenders = benchmark.build(**parameters, dtype=dtype)
    timings, share = undisturbed(contenders, rounds, patience)
    ours, *peers = timings
    result: Result = {
        "benchmark": benchmark.name,
        "about": benchmark.about,
        "parameters": parameters,
        "dtype": benchmark.dtype,
        "threads": threads,
        "rounds": len(timings[ours].seconds),
        "others_share_of_cpu": share,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "backends": _new_calls(before),
        "goals": benchmark.goals,
        "contenders": {
            name: {
                "milliseconds": round(timing.median * 1e3, 3),
                "quartiles": [round(value * 1e3, 3) for value in timing.quartiles],
            }
            for name, timing in timings.items()
        },
        "ratios": {name: {"time": round(ratio(timings[name], timings[ours]), 3)} for name in peers},
    }
    if benchmark.flops:
        speed = benchmark.flops(**parameters) / timings[ours].median / 1e9
        result["gflops"] = round(speed, 1)
        result["share_of_fp32_gemm"] = round(speed / gemm_gflops(threads), 3)
    if memory:
        used = {name: peak_memory(benchmark, name, parameters, threads) for name in contenders}
        for name, peak in used.items():
            result["contenders"][name] |= {"inputs_mib": peak.inputs, "extra_mib": peak.extra}
        for name in peers:
            result["ratios"][name]["memory"] = round(used[name].extra / max(used[ours].extra, 0.01), 3)
        if benchmark.memory_bound:
            parts = benchmark.memory_bound(**parameters, dtype=dtype)
            bound = sum(parts.values())
            result["memory_bound_mib"] = parts
            result["memory_over_bound"] = round(used[ours].total / bound, 3)
    return result


def _new_calls(before: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """Op -> backends that ran since `before`."""
    return {
        op: [name for name, count in calls.items() if count > before.get(op, {}).get(name, 0)]
        for op, calls in backend_report().items()
        if calls != before.get(op)
    }


def save(results: list[Result], path: Path) -> None:
    """Writes the machine and all results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.describe(), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def shape_label(result: Result) -> str:
    return " ".join(f"{name} {value}" for name, value in result["parameters"].items())


def case_label(result: Result) -> str:
    plural = "s" * (result["threads"] > 1)
    return f"{shape_label(result)}, {result['dtype']}, {result['threads']} thread{plural}"


def show(results: list[Result], console: Console) -> None:
    """Prints one table per benchmark; ratios are peer / ours, so more than 1 is in our favour."""
    for name in dict.fromkeys(result["benchmark"] for result in results):
        own = [result for result in results if result["benchmark"] == name]
        console.print(f"\n[bold]{name}[/]: {own[0]['about']} {own[0]['dtype']}")
        table = Table()
        for heading in ("case", "threads", "contender"):
            table.add_column(heading, no_wrap=True)
        for heading in ("ms", "quartiles", "x time", "extra MiB", "x memory", "others' CPU"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in own:
            _add_rows(table, result)
        console.print(table)
        for result in own:
            if "gflops" in result:
                share = f"{result['share_of_fp32_gemm']:.0%} of torch's fp32 matrix product of 2,048"
                console.print(f"{case_label(result)}: {result['gflops']:.0f} GFLOP/s, {share}")
            if "memory_bound_mib" in result:
                parts = ", ".join(f"{part} {mib:.0f}" for part, mib in result["memory_bound_mib"].items())
                console.print(f"{case_label(result)}: all memory is {result['memory_over_bound']:.2f} x ({parts}) MiB")


def _add_rows(table: Table, result: Result) -> None:
    share = result["others_share_of_cpu"]
    first = [shape_label(result), str(result["threads"])]
    noise = "" if share is None else f"{share:.0%}"
    for contender, values in result["contenders"].items():
        ratios = result["ratios"].get(contender, {})
        low, high = values["quartiles"]
        table.add_row(
            *first,
            contender,
            f"{values['milliseconds']:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{ratios['time']:.2f}" if ratios else "",
            f"{values['extra_mib']:.0f}" if "extra_mib" in values else "",
            f"{ratios['memory']:.2f}" if "memory" in ratios else "",
            noise,
        )
        first, noise = ["", ""], ""
    table.add_section()
