"""Names of the classifiers, without importing them: what the `esbnn` command lists and asks before it loads `esbnn_cls`.

A top-level module of its own, since importing anything inside `esbnn_cls` registers the models with timm, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METHODS = ("adabin", "bireal", "bnn", "dorefa", "irnet", "rbnn", "reactnet", "recu", "reste", "siman", "xnor", "xnorpp")
_RESNETS = ("resnet20_cifar", "resnet18_cifar", "resnet18", "resnet34")

RESNET_NAMES: tuple[str, ...] = (
    *(f"{arch}_{method}" for arch in _RESNETS for method in METHODS),
    # Second official forms: one shortcut a convolution for CIFAR, ReCU's two-stage ImageNet network.
    "resnet20bireal_cifar_rbnn",
    "resnet20bireal_cifar_reste",
    "resnet18_recu2stage",
)
ES_NAMES: tuple[str, ...] = tuple(f"es_{name}" for name in RESNET_NAMES)
PLAIN_ONLY: tuple[str, ...] = ("nin_cifar_xnor", "resnet20_cifar_fp")


@dataclass(frozen=True)
class Catalog:
    """Names of a package's models and how to make one (which imports the package)."""

    package: str
    names: tuple[str, ...]
    create: Callable[..., Any]


def _create(name: str, **kwargs: Any) -> Any:
    import esbnn_cls  # noqa: F401  (registers the models)

    import timm

    return timm.create_model(name, **kwargs)


CATALOG = Catalog("esbnn_cls", tuple(sorted((*RESNET_NAMES, *ES_NAMES, *PLAIN_ONLY))), _create)
