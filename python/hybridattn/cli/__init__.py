"""The command line: ``hybridattn run recipe.toml``, or its steps one by one (`app`)."""

from hybridattn.cli.app import main

__all__ = ["main"]
