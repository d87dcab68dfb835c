"""Binarization methods, one file each; `get` imports only the one that is asked for."""

from __future__ import annotations

import dataclasses
import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, Threshold

__all__ = ["Citation", "Code", "Method", "Scalars", "State", "Threshold", "get", "names"]


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def get(name: str | Method, **options: Any) -> Method:
    """The method called `name`, with its options changed as given.

    Raises `UserError` for an unknown name or option, naming the nearest known one.
    """
    if isinstance(name, Method):
        method = name
    else:
        if name not in names():
            raise UserError(f"unknown method {name!r}{_nearest(name, names())}; known: {', '.join(names())}")
        method = import_module(f"{__name__}.{name}").METHOD
    known = method.options()
    for option in options:
        if option not in known:
            raise UserError(
                f"method {method.name!r} has no option {option!r}{_nearest(option, list(known))}; known: {', '.join(known) or 'none'}"
            )
    return dataclasses.replace(method, **options)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
