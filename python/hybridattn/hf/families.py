"""The teachers that can be converted."""

from __future__ import annotations

from typing import Any

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")
"""``model_type`` of supported configs; SmolLM2 and Llama 3.x are ``llama``."""


def check_teacher(config: Any) -> None:
    """Makes sure that a config's family is supported and its options are.

    Raises:
        ValueError: listing the supported families, or naming the option.
    """
    family = getattr(config, "model_type", type(config).__name__)
    if family not in SUPPORTED:
        raise ValueError(f"teacher of family '{family}' is not supported; supported are {', '.join(SUPPORTED)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"teacher with layer types {', '.join(sorted(kinds))} is not supported; supported are full_attention and "
            "sliding_attention"
        )
