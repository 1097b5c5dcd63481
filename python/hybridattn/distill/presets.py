"""Presets of the stages as published: "paper" (arXiv 2512.20569) and "radlads" (arXiv 2505.03005).

ha.presets.align("paper", tokens=1_000_000, batch_size=8)
ha.presets.sources("align", "paper")["lr"]
"""

from __future__ import annotations

from typing import Any

from hybridattn import _C
from hybridattn.distill.stage import Stage


def _preset(stage: str, name: str, overrides: dict[str, Any]) -> Stage:
    fields = {field: entry["value"] for field, entry in _C.distill.preset(stage, name).items()}
    return Stage(**(fields | overrides))


def align(name: str = "paper", **overrides: Any) -> Stage:
    """Stage 1, in which each mixer learns the teacher's attention outputs. `overrides` are fields of `Stage`."""
    return _preset("align", name, overrides)


def match(name: str = "paper", **overrides: Any) -> Stage:
    """Stage 2, in which the whole hybrid learns the teacher's distribution. `overrides` are fields of `Stage`."""
    return _preset("match", name, overrides)


def finetune(name: str = "paper", **overrides: Any) -> Stage:
    """Stage 3, next-token cross-entropy. `overrides` are fields of `Stage`."""
    return _preset("finetune", name, overrides)


def score(name: str = "paper", **overrides: Any) -> Stage:
    """The training of one candidate while layers are scored. `overrides` are fields of `Stage`."""
    return _preset("score", name, overrides)


def sources(stage: str, name: str = "paper") -> dict[str, str]:
    """Field -> where its value was published, for every field that the preset sets.

    Raises:
        ValueError: an unknown stage or preset.
    """
    return {field: entry["source"] for field, entry in _C.distill.preset(stage, name).items()}
