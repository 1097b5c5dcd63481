"""A result as plain data: one case at one number of threads, its times, memory, speeds, ratios and goals."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import compiled, machine, roofline
from benchmarks.measure import Timing, ratio, undisturbed
from benchmarks.memory import MemoryMeter
from benchmarks.registry import Benchmark, Contenders, Goal, Parameters, Work
from hybridattn import info
from hybridattn.ops import backend_report, instruction_set

Result = dict[str, Any]

_MEMORY_NOISE = 0.25
"""MiB by which two measurements of one call's peak memory differ: pages of libraries and of the allocator."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: of each contender at most; None: the benchmark's own number.
        seconds: after which a case begins no further round.
        patience: seconds to wait for other programs, and to measure again what they disturbed.
        memory: what measures peak memory; None: it is left out.
    """

    rounds: int | None = None
    seconds: float = 8.0
    patience: float = 0.0
    memory: MemoryMeter | None = None


def measure_case(benchmark: Benchmark, parameters: Parameters, dtype: str, threads: int, effort: Effort) -> Result:
    """Times, peak memory, ratios peer / ours, what was reached, and what else the machine did."""
    peaks = roofline.peaks(threads)
    torch.set_num_threads(threads)
    before = backend_report()
    contenders, failed = compiled.warm_up(benchmark.build(**parameters, dtype=getattr(torch, dtype)))
    timings, share = undisturbed(contenders, effort.rounds or benchmark.rounds, effort.seconds, effort.patience)
    ours, *peers = timings
    result: Result = {
        "benchmark": benchmark.name,
        "about": benchmark.about,
        "axis": benchmark.axis,
        "parameters": parameters,
        "dtype": dtype,
        "threads": threads,
        "rounds": len(timings[ours].seconds),
        "others_share_of_cpu": share,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "backends": _new_calls(before),
        "instruction_set": instruction_set(),
        "contenders": {name: _times(timing) for name, timing in timings.items()},
        "failed": failed,
        "ratios": {name: {"time": round(ratio(timings[name], timings[ours]), 3)} for name in peers},
    }
    if benchmark.work:
        _add_speeds(result, benchmark.work(**parameters), peaks)
    if benchmark.exact:
        _add_errors(result, contenders, benchmark.exact(**parameters, dtype=getattr(torch, dtype)))
    if effort.memory and benchmark.memory:
        _add_memory(result, benchmark, contenders, effort.memory)
    facts = _facts(result)
    result["goals"] = [reached(goal, result) for goal in benchmark.goals if goal.applies(facts)]
    return result


def _times(timing: Timing) -> dict[str, Any]:
    return {
        "milliseconds": round(timing.median * 1e3, 4),
        "quartiles": [round(value * 1e3, 4) for value in timing.quartiles],
    }


def _add_speeds(result: Result, work: Work, peaks: dict[str, float]) -> None:
    """Time per token and head of every contender; of ours also the speed and its shares of this machine's peaks."""
    for values in result["contenders"].values():
        seconds = values["milliseconds"] / 1e3
        if work.token_heads:
            values["microseconds_per_token_head"] = round(seconds * 1e6 / work.token_heads, 4)
        if work.tokens:
            values["tokens_per_second"] = round(work.tokens / seconds, 1)
    seconds = next(iter(result["contenders"].values()))["milliseconds"] / 1e3
    result["shares"] = {}
    if work.flops:
        result["gflops"] = round(work.flops / seconds / 1e9, 1)
        kind = "bf16" if result["dtype"] == "bfloat16" else "fp32"
        of = [peak for peak in (f"{kind}_fma", f"{kind}_dot", f"{kind}_gemm") if peak in peaks]
        result["shares"] |= {peak: round(result["gflops"] / peaks[peak], 3) for peak in of}
    if work.elements:
        size = getattr(torch, result["dtype"]).itemsize
        result["gbytes_per_second"] = round(size * work.elements / seconds / 1e9, 1)
        if "update" in peaks:
            result["shares"]["update"] = round(result["gbytes_per_second"] / peaks["update"], 3)


def _add_errors(result: Result, contenders: Contenders, exact: Any) -> None:
    """Of every contender: RMS of the difference from the fp64 result over its RMS, the worst of the result's tensors."""
    expected = exact if isinstance(exact, tuple) else (exact,)
    for name, contender in contenders.items():
        output: Any = contender()
        given = output if isinstance(output, tuple) else (output,)
        errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(given, expected, strict=True)]
        result["contenders"][name]["error"] = float(f"{max(errors):.2e}")


def _add_memory(result: Result, benchmark: Benchmark, contenders: Contenders, meter: MemoryMeter) -> None:
    parameters, dtype = result["parameters"], result["dtype"]
    used = {name: meter.peak(benchmark, name, parameters, dtype, result["threads"]) for name in contenders}
    ours, *peers = used
    for name, peak in used.items():
        result["contenders"][name] |= {"inputs_mib": peak.inputs, "extra_mib": peak.extra}
    for name in peers:
        result["ratios"][name]["memory"] = memory_ratio(used[name].extra, used[ours].extra)
    if benchmark.memory_bound:
        parts = benchmark.memory_bound(**parameters, dtype=getattr(torch, dtype))
        result["memory_bound_mib"] = parts
        result["memory_over_bound"] = round(used[ours].total / sum(parts.values()), 3)


def memory_ratio(peer: float, ours: float) -> float:
    """Of extra memory in MiB; what is less than can be told from the process's own noise counts as that."""
    return round(max(peer, _MEMORY_NOISE) / max(ours, _MEMORY_NOISE), 3)


def _facts(result: Result) -> dict[str, Any]:
    """What `Goal.where` may ask for."""
    amx = "amx_bf16" in info.collect().instruction_sets
    own = {name: result[name] for name in ("dtype", "threads", "instruction_set")}
    return {"amx": amx} | own | result["parameters"]


def reached(goal: Goal, result: Result) -> dict[str, Any]:
    """A goal with what was reached; None where it was not measured."""
    if goal.quantity == "share":
        value = result.get("shares", {}).get(goal.against)
    elif goal.against == "memory bound":
        over = result.get("memory_over_bound")
        value = round(1 / over, 3) if over else None
    else:
        value = result["ratios"].get(goal.against, {}).get(goal.quantity)
    return {"against": goal.against, "quantity": goal.quantity, "least": goal.least, "reached": value}


def _new_calls(before: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """Op -> backends that ran since `before`."""
    return {
        op: [name for name, count in calls.items() if count > before.get(op, {}).get(name, 0)]
        for op, calls in backend_report().items()
        if calls != before.get(op)
    }


def save(results: list[Result], path: Path) -> None:
    """Writes the machine with its peaks, and all results, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = sorted({result["threads"] for result in results})
    peaks = {"units": roofline.UNITS} | {str(number): roofline.peaks(number) for number in threads}
    content = {"machine": machine.describe() | {"peaks": peaks}, "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What `save` wrote: the machine and the results.

    Raises:
        ValueError: the file is of an older layout, or none of these.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if "peaks" not in content.get("machine", {}):
        raise ValueError(f"benchmarks: {path} has no peaks of its machine: measured by an older version, measure again")
    return content["machine"], content["results"]


def shape_label(result: Result) -> str:
    return " ".join(f"{name} {value}" for name, value in result["parameters"].items())


def case_label(result: Result) -> str:
    plural = "s" * (result["threads"] > 1)
    return f"{shape_label(result)}, {result['dtype']}, {result['threads']} thread{plural}"
