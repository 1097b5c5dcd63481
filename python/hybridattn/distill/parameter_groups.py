"""Parameter groups of the optimiser: mixers and the rest, each with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hybridattn import _C
from hybridattn.distill.stage import Stage


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], mixers: Iterable[nn.Module], stage: Stage
) -> list[dict[str, Any]]:
    """Groups for AdamW. What belongs to one of `mixers` learns at `mixer_lr`; modules decide, not names.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``mixer`` (bool); empty groups are left out.
    """
    of_mixers = {id(parameter) for module in mixers for parameter in module.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        key = (id(parameter) in of_mixers, _C.distill.decays(name, parameter.dim()))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr": stage.lr_at(0, mixer=mixer),
            "weight_decay": stage.weight_decay if decays else 0.0,
            "mixer": mixer,
        }
        for (mixer, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]
