"""Imports every file that registers benchmarks. A new file is added here."""

from importlib import import_module

import transformers

FILES = (
    "gated_delta_rule",
    "sibling_rules",
    "steps",
    "linear_losses",
    "attention",
    "dense",
    "linear",
    "transformers_models",
    "align_memory",
    "stages",
    "scaling",
)


def load() -> None:
    """Registers all benchmarks; once is enough, more does no harm."""
    # Their functions say once per process that they are the slow ones: that is what is measured.
    transformers.logging.set_verbosity_error()
    for name in FILES:
        import_module(f"benchmarks.{name}")
