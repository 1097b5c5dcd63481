"""The compiled module: typed by the Python functions and classes that wrap it."""

from typing import Any

__version__: str
distill: Any
select: Any
transfer: Any
core: Any
