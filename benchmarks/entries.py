"""Imports every file that registers benchmarks. A new file is added here."""

from importlib import import_module

FILES = ("rules", "linear_losses", "attention", "align_memory", "stages", "transformers_models")


def load() -> None:
    """Registers all benchmarks; once is enough, more does no harm."""
    for name in FILES:
        import_module(f"benchmarks.{name}")
