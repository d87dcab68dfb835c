"""ES-BNN's core: expanding-and-shrinking arithmetic, binary layers, binarization methods, accounting.

Importing it is cheap: no torch is imported until a public name is used. It makes `import torchvision` and `import timm` work where
torchvision's compiled operators do not load (see `esbnn_core._torchvision`), so import it before them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esbnn_core import _torchvision

if TYPE_CHECKING:
    from esbnn_core.accounting import count_ops
    from esbnn_core.convert import binarize
    from esbnn_core.es import ESPlan, ExpandShrink
    from esbnn_core.nn import BinaryConv2d, BinaryLinear, BinaryUnit, ReplicatedBatchNorm2d
    from esbnn_core.training import Progress, begin_step

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryUnit",
    "ESPlan",
    "ExpandShrink",
    "Progress",
    "ReplicatedBatchNorm2d",
    "begin_step",
    "binarize",
    "count_ops",
]

_HOME = {
    "BinaryConv2d": "nn",
    "BinaryLinear": "nn",
    "BinaryUnit": "nn",
    "ESPlan": "es",
    "ExpandShrink": "es",
    "Progress": "training",
    "ReplicatedBatchNorm2d": "nn",
    "begin_step": "training",
    "binarize": "convert",
    "count_ops": "accounting",
}

_torchvision.install()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("esbnn-core")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
