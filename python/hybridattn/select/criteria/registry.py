"""The criteria by name, and how to build one from plain values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hybridattn.select.criteria.activation import ActivationError
from hybridattn.select.criteria.alignment import AdditionAlignment, RemovalAlignment
from hybridattn.select.criteria.average import AverageAlignmentRank, AverageRank
from hybridattn.select.criteria.criterion import RegisteredCriterion
from hybridattn.select.criteria.divergence import Addition, Removal
from hybridattn.select.criteria.gates import LearnedGates
from hybridattn.select.criteria.halo import RecallOverQuality
from hybridattn.select.criteria.perplexity import BypassedPerplexity
from hybridattn.select.criteria.plans import Explicit, First, Last, Random, Uniform
from hybridattn.select.criteria.recall import AssociativeRecall, MultiHopRecall
from hybridattn.select.criteria.spacing import Spaced
from hybridattn.validation import validated

CRITERIA: dict[str, type[RegisteredCriterion]] = {
    criterion.name: criterion
    for criterion in (
        Addition,
        Removal,
        AverageRank,
        AdditionAlignment,
        RemovalAlignment,
        AverageAlignmentRank,
        ActivationError,
        BypassedPerplexity,
        AssociativeRecall,
        MultiHopRecall,
        Spaced,
        RecallOverQuality,
        LearnedGates,
        Uniform,
        Random,
        First,
        Last,
        Explicit,
    )
}

ALIASES = {"addition": "ga_s2", "removal": "gr_s2"}
"""Plain words for the two criteria that are asked for most."""


def criterion_type(name: str) -> type[RegisteredCriterion]:
    """The class registered as `name`.

    Raises:
        ValueError: there is none, naming the nearest one and all.
    """
    found = CRITERIA.get(ALIASES.get(name, name))
    if found is None:
        known = [*ALIASES, *CRITERIA]
        close = difflib.get_close_matches(name, known, n=1)
        nearest = f", the nearest is '{close[0]}'" if close else ""
        raise ValueError(f"criterion is {name!r}{nearest}; known are {', '.join(known)}")
    return found


def build_criterion(name: str, options: Mapping[str, Any] | None = None) -> RegisteredCriterion:
    """A criterion from its name and options.

    Raises:
        ValueError: unknown name or option (with the nearest known one), or a value out of range.
    """
    return validated(criterion_type(name), dict(options or {}), f"criterion '{name}'")
