"""Binary image classifiers, plain and with expanding-and-shrinking. Importing this package registers its models with timm.

Training and evaluation are `esbnn_cls.train.train` and `esbnn_cls.evaluate.evaluate`. The command `esbnn-cls` and the names of the
models live in light modules beside it (`esbnn_cls_cli`, `esbnn_cls_catalog`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import esbnn_core  # noqa: F401  (makes torchvision and timm importable where torchvision's operators do not load)
from esbnn_cls import models

if TYPE_CHECKING:
    from esbnn_cls.modelfolder import load_classifier, save_classifier
    from esbnn_cls.recipe_file import load_recipe

__all__ = ["load_classifier", "load_recipe", "models", "save_classifier"]

_HOME = {"load_classifier": "modelfolder", "save_classifier": "modelfolder", "load_recipe": "recipe_file"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("esbnn-cls")
    if name in _HOME:
        return getattr(import_module(f"esbnn_cls.{_HOME[name]}"), name)
    raise AttributeError(f"module 'esbnn_cls' has no attribute {name!r}")
