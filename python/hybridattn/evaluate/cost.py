"""What a model costs to run, against context length: time, peak memory and cache of prefill and decoding."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.hf.cache import CACHE_NAME
from hybridattn.info import collect

DECODE_TOKENS, REPEATS = 16, 5
"""What `measure_cost` measures unless told otherwise."""


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a Transformers cache: keys and values, linear states, whatever it and its layers hold."""

    def tensors(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from (tensor for part in value.values() for tensor in tensors(part))
        elif isinstance(value, (list, tuple)):
            yield from (tensor for part in value for tensor in tensors(part))

    found = {id(tensor): tensor for part in (cache, *cache.layers) for tensor in tensors(vars(part))}
    return sum(tensor.nbytes for tensor in found.values())


def measure_cost(
    models: Mapping[str, nn.Module],
    lengths: Sequence[int],
    *,
    batch_size: int = 1,
    decode_tokens: int = DECODE_TOKENS,
    repeats: int = REPEATS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Prefills random contexts of each length and decodes after them, model beside model.

    Times are medians over `repeats` rounds after one that warms up; every round measures each model once, so that a
    change of the machine's speed hits all of them. Memory is measured in a pass of its own.

    Args:
        models: name -> model, on one device, in the dtype to measure.
        lengths: tokens of context.
        batch_size: sequences at once.
        decode_tokens: tokens decoded one by one after the context.

    Returns:
        ``machine`` (processor or GPU, threads, dtype, versions) and how it was measured; ``models``: name ->
        ``parameter_bytes`` and ``points``, one per length, with ``prefill_seconds``, ``prefill_tokens_per_second``,
        ``decode_seconds`` (per step of `batch_size` tokens), ``decode_tokens_per_second``, ``prefill_peak_bytes`` and
        ``decode_peak_bytes`` (beyond the weights; None where the system does not tell), ``cache_bytes`` after the context.

    Raises:
        ValueError: no model, no length, or a length or count below 1.
    """
    if not models:
        raise ValueError("measure_cost: there is no model to measure")
    if not lengths:
        raise ValueError("measure_cost: give at least one length of context")
    counts = {"lengths": min(lengths), "batch_size": batch_size, "decode_tokens": decode_tokens, "repeats": repeats}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"measure_cost: {name} must be at least 1, got {count}")
    device = hf.head_weight(next(iter(models.values()))).device
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(hf.head_weight(model).shape[0] for model in models.values())
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for length in sorted(set(lengths)):
        ids = torch.randint(0, vocabulary, (batch_size, length + decode_tokens), generator=generator).to(device)
        runs = {name: _Run(model.eval(), ids, length) for name, model in models.items()}
        for round_ in range(repeats + 1):
            for name, run in runs.items():
                progress(f"{length} tokens  {name}  round {round_}/{repeats}")
                run.time(keep=round_ > 0)
        for name, run in runs.items():
            points[name].append(run.point())
    return {
        "machine": _machine(device, models),
        "batch_size": batch_size,
        "decode_tokens": decode_tokens,
        "repeats": repeats,
        "models": {
            name: {
                "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
                "points": points[name],
            }
            for name, model in models.items()
        },
    }


def _machine(device: torch.device, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    facts = collect()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else facts.cpu,
        "threads": facts.threads,
        "dtype": ", ".join(
            sorted({str(hf.head_weight(model).dtype).removeprefix("torch.") for model in models.values()})
        ),
        "versions": {name: facts.versions[name] for name in ("hybridattn", "torch", "transformers")},
    }


class _Run:
    """One model on one context: `ids` [B, length + tokens to decode]."""

    def __init__(self, model: Any, ids: Tensor, length: int) -> None:
        self.model, self.ids, self.length = model, ids, length
        self.prefill: list[float] = []
        self.decode: list[float] = []

    @property
    def _tokens(self) -> int:
        return self.ids.shape[1] - self.length

    @torch.inference_mode()
    def _step(self, ids: Tensor, cache: Any = None) -> Any:
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})
        return output[CACHE_NAME]

    def _decode(self, cache: Any) -> None:
        for position in range(self.length, self.ids.shape[1]):
            cache = self._step(self.ids[:, position : position + 1], cache)

    def time(self, keep: bool) -> None:
        clock = _synchronised(self.ids.device)
        start = clock()
        cache = self._step(self.ids[:, : self.length])
        middle = clock()
        self._decode(cache)
        end = clock()
        if keep:
            self.prefill.append(middle - start)
            self.decode.append((end - middle) / self._tokens)

    def point(self) -> dict[str, Any]:
        peak = _PeakMemory(self.ids.device)
        cache = self._step(self.ids[:, : self.length])
        prefill_peak, held = peak.read(), cache_bytes(cache)
        self._decode(cache)
        prefill, decode, batch = statistics.median(self.prefill), statistics.median(self.decode), self.ids.shape[0]
        return {
            "length": self.length,
            "prefill_seconds": prefill,
            "prefill_tokens_per_second": batch * self.length / prefill,
            "decode_seconds": decode,
            "decode_tokens_per_second": batch / decode,
            "prefill_peak_bytes": prefill_peak,
            "decode_peak_bytes": peak.read(),
            "cache_bytes": held,
        }


def _synchronised(device: torch.device) -> Callable[[], float]:
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


class _PeakMemory:
    """Highest memory in use since the last reading, beyond what was in use at the start.

    On a GPU PyTorch counts its own allocations; on Linux the kernel counts the process's resident memory (in pages, so
    what a tiny model needs drowns in what the process does besides); elsewhere there is nothing to read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._give_back()
        self._start = self._in_use()
        self._reset()

    def read(self) -> int | None:
        """Bytes; the next reading starts from here."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _resident("VmHWM")
        self._give_back()
        self._reset()
        return None if peak is None or self._start is None else max(0, peak - self._start)

    def _give_back(self) -> None:
        """Freed memory that the process keeps would count as used, and be used again without being seen."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if self.device.type == "cpu" else None
        if trim is not None:
            trim(0)

    def _in_use(self) -> int | None:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmRSS")

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            self._start = None


def _resident(field: str) -> int | None:
    """Bytes of resident memory: VmRSS (now) or VmHWM (the highest since the last reset)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(status.split(field + ":")[1].split()[0]) * 1024
