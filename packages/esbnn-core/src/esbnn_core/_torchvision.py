"""torchvision's operators in PyTorch, for machines where its compiled library does not load (a CPU torch beside a CUDA torchvision).

torchvision declares operators at import and fails without them. A finder in front of `sys.meta_path` lets the real
`torchvision.extension` run first; only if that found no operators are stand-ins defined, under the official schemas, so that
torchvision adds its own meta kernels and autograd on top. Where torchvision is whole nothing is changed. ESBNN_TORCHVISION_STANDIN=0
switches all this off. Nothing here imports torch until torchvision is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["active", "install"]

_SWITCH = "ESBNN_TORCHVISION_STANDIN"
_TARGET = "torchvision.extension"
_log = logging.getLogger(__name__)
_libraries: list[Any] = []  # operators vanish with the Library object that defined them


def active() -> bool:
    """Whether the stand-ins were defined in this process."""
    return bool(_libraries)


def install() -> None:
    """Put the finder in place, once; mend a torchvision whose import failed before us."""
    if os.environ.get(_SWITCH, "1") == "0" or any(isinstance(f, _Finder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    left_over = sys.modules.get(_TARGET)
    if left_over is not None:
        _complete(left_over)


class _Finder(importlib.abc.MetaPathFinder):
    busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TARGET or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _complete(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _complete(extension: ModuleType) -> None:
    """Define the stand-ins if torchvision found no operators of its own."""
    if active() or extension._has_ops():
        return
    from esbnn_core import _torchvision_ops

    _libraries.extend(_torchvision_ops.define())
    extension._has_ops = lambda: True  # type: ignore[attr-defined]
    _log.info(
        "torchvision's compiled operators did not load; PyTorch stand-ins answer for nms, roi_align and roi_pool (%s=0: off)", _SWITCH
    )
