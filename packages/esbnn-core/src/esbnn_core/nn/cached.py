"""Keeping a module's canonical form while nothing that it is made from changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from esbnn_core.nn.canonical import Canonical, Evaluator

import torch
from torch import Tensor, nn

__all__ = ["CachedForm"]


def fingerprint(tensors: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Something that changes when one of the tensors is replaced, moved or written to in a way that torch counts."""
    # Tensors made in inference mode keep no version.
    return tuple((id(t), t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors if t is not None)


class CachedForm(nn.Module):
    """Keeps the canonical form of a module, and drops it whenever what it was made from may have changed."""

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[Any, Evaluator] | None = None
        self._moves = 0
        self.register_load_state_dict_post_hook(_on_load)

    def weights_moved(self) -> None:
        """Forget everything that was derived from the weights; called after an optimizer's step."""
        self._cached = None
        self._moves += 1

    def canonical(self) -> Canonical:
        raise NotImplementedError(f"{type(self).__name__}.canonical")

    def _depends_on(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def _generation(self) -> int:
        """Grows whenever weights may have moved without a trace in `fingerprint`."""
        return self._moves

    def wants_gradient(self, x: Tensor) -> bool:
        """Whether a gradient could be asked for, of x or of anything that the form is made from."""
        return torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self._depends_on()))

    def evaluator(self, x: Tensor) -> Evaluator:
        """The canonical form ready for tensors like x."""
        key = (x.dtype, x.device, self._generation(), fingerprint(self._depends_on()))
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, Evaluator(self.canonical(), x.dtype, x.device))
        return self._cached[1]

    def train(self, mode: bool = True) -> CachedForm:
        self._cached = None
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> CachedForm:
        self._cached = None
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cached": None}


def _on_load(module: nn.Module, keys: Any) -> None:
    if isinstance(module, CachedForm):
        module.weights_moved()
