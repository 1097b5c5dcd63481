"""Strict pydantic models: every fault in one line that names the key, and the nearest known one for an unknown key."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    """`values` as `model`.

    Raises:
        ValueError: one line per fault, each naming the key; unknown keys with the nearest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                lines.append(f"unknown key '{key}'{_nearest(model, fault['loc'])}")
            else:
                lines.append(f"{f'{key}: ' if key else ''}{fault['msg']} (got {fault['input']!r})")
        raise ValueError(f"{where}: " + "; ".join(lines)) from None


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    table: Any = model
    for part in location[:-1]:
        if get_origin(table) is dict:  # tables with names of the user's: the part is such a name
            table = get_args(table)[1]
            continue
        annotation = table.model_fields[part].annotation
        tables = [a for a in get_args(annotation) or (annotation,) if isinstance(a, type) and issubclass(a, BaseModel)]
        table = annotation if get_origin(annotation) is dict else tables[0]
    known = list(table.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(known) or 'none'}"
