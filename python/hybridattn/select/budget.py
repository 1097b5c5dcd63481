"""How many layers can keep softmax: from a latency, a memory or a recall budget, measured on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hybridattn.evaluate import measure_cost
from hybridattn.select.evaluator import CandidateEvaluator, Line, silent
from hybridattn.select.retained_recall import retained_recall

MIB = 1 << 20


@dataclass(frozen=True)
class KindCosts:
    """What a model of `num_layers` layers costs when all of them, or none, keep softmax; in between by the layer.

    Attributes:
        context: tokens before the one that is decoded.
        softmax_seconds, linear_seconds: per decoded token, batch 1.
        softmax_bytes, linear_bytes: of one sequence's cache after `context` tokens.
    """

    num_layers: int
    context: int
    softmax_seconds: float
    linear_seconds: float
    softmax_bytes: int
    linear_bytes: int

    def seconds(self, keep: int) -> float:
        """Per decoded token when `keep` layers keep softmax."""
        return self.linear_seconds + (self.softmax_seconds - self.linear_seconds) * keep / self.num_layers

    def cache_bytes(self, keep: int) -> int:
        return self.linear_bytes + (self.softmax_bytes - self.linear_bytes) * keep // self.num_layers

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_kinds(teacher: nn.Module, student: nn.Module, context: int, progress: Line = silent) -> KindCosts:
    """Decodes with teacher and all-linear student after `context` random tokens.

    Raises:
        ValueError: `context` is below 1.
    """
    costs = measure_cost({"softmax": teacher, "linear": student}, [context], progress=progress)["models"]
    softmax, linear = (costs[name]["points"][0] for name in ("softmax", "linear"))
    return KindCosts(
        num_layers=len(teacher.model.layers),  # type: ignore[union-attr, arg-type]
        context=context,
        softmax_seconds=softmax["decode_seconds"],
        linear_seconds=linear["decode_seconds"],
        softmax_bytes=softmax["cache_bytes"],
        linear_bytes=linear["cache_bytes"],
    )


def keep_for_latency(costs: KindCosts, milliseconds: float) -> int:
    """The most softmax layers with which a token decodes in `milliseconds`.

    Raises:
        ValueError: not even the fastest mix does.
    """
    fitting = [keep for keep in range(costs.num_layers + 1) if 1e3 * costs.seconds(keep) <= milliseconds]
    if not fitting:
        fastest = 1e3 * min(costs.seconds(0), costs.seconds(costs.num_layers))
        raise ValueError(
            f"select: a latency of {milliseconds:g} ms per token is out of reach: this machine needs {fastest:.3g} ms after "
            f"{costs.context} tokens of context whatever keeps softmax; allow more, or measure at a shorter context"
        )
    return fitting[-1]


def keep_for_memory(costs: KindCosts, mebibytes: float) -> int:
    """The most softmax layers with which one sequence's cache fits in `mebibytes`.

    Raises:
        ValueError: not even the smallest cache does.
    """
    fitting = [keep for keep in range(costs.num_layers + 1) if costs.cache_bytes(keep) <= mebibytes * MIB]
    if not fitting:
        smallest = min(costs.linear_bytes, costs.softmax_bytes) / MIB
        raise ValueError(
            f"select: a cache of {mebibytes:g} MiB per sequence is out of reach: after {costs.context} tokens it takes at "
            f"least {smallest:.3g} MiB whatever keeps softmax; allow more, or a shorter context"
        )
    return fitting[-1]


def keep_for_recall(
    evaluator: CandidateEvaluator, ranking: list[int], drop: float, progress: Line = silent
) -> tuple[int, list[dict[str, Any]]]:
    """The fewest layers of `ranking`, the most needed first, with which the untrained hybrid keeps 1 - `drop` of the
    teacher's recall (`retained_recall`), found by bisection. Distillation only adds to it.

    Returns:
        (K, one event per set tried: ``keep``, ``recall``).

    Raises:
        ValueError: `drop` is not in [0, 1).
    """
    if not 0 <= drop < 1:
        raise ValueError(f"select: recall_drop is {drop}, expected a share in [0, 1)")
    low, high = 0, evaluator.num_layers
    history = []
    while low < high:
        middle = (low + high) // 2
        (retained,) = retained_recall(evaluator, [ranking[:middle]], progress)
        history.append({"keep": middle, "recall": retained})
        low, high = (low, middle) if retained >= 1 - drop else (middle + 1, high)
    return low, history
