"""Models of all installed packages by name, without importing those packages.

A package offers a catalog through the entry point group `esbnn.models`: an object in a module that is light to import, with `package`,
`names` and `create(name, **arguments)`, which imports what it needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from esbnn_core.errors import EsbnnError, UserError

__all__ = ["Catalog", "catalogs", "create_model", "model_names"]

GROUP = "esbnn.models"


class Catalog(Protocol):
    """What an entry point has to name."""

    @property
    def package(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def create(self, name: str, /, **arguments: Any) -> Any: ...


def catalogs() -> list[Catalog]:
    """The catalogs of the installed packages, by package name."""
    return sorted((entry.load() for entry in entry_points(group=GROUP)), key=lambda catalog: str(catalog.package))


def model_names() -> list[str]:
    """All names, sorted."""
    return sorted({name for catalog in catalogs() for name in catalog.names})


def create_model(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build the model called `name`.

    Raises `UserError`, one line, for an unknown name (naming the closest) and for arguments that the model cannot be built with.
    """
    arguments = arguments or {}
    found = catalogs()
    for catalog in found:
        if name in catalog.names:
            try:
                return catalog.create(name, **arguments)
            except EsbnnError:
                raise
            except (TypeError, ValueError) as error:  # arguments are handed on until some constructor refuses them
                raise UserError(f"{name} cannot be built with {dict(arguments)}: {error}") from error
    if not found:
        raise UserError(f"no model is called {name!r}: no package with models is installed, such as esbnn-cls")
    known = model_names()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(f"no model is called {name!r}; the closest is {close[0]!r} (`esbnn models` lists all {len(known)})")
