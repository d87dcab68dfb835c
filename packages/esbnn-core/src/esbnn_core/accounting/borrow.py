"""Run somebody's model on stand-in weights and give it back as it was."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["borrowed"]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within this block the model is in evaluation mode and holds copies of its tensors on `device`; on `meta` they have no values.

    Afterwards, also after an exception, every module's attributes are what they were: parameters, buffers, mode, hooks, whatever a
    forward has stored on a module or in a list or dict of it.
    """
    modules = list(model.modules())
    before = [_Snapshot(module) for module in modules]
    try:
        stand_in: dict[int, Tensor] = {}  # tied tensors stay tied
        for module in modules:
            module.training = False  # not eval(): models override it, and it may do more than this
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    if id(parameter) not in stand_in:
                        stand_in[id(parameter)] = nn.Parameter(_like(parameter.detach(), device), requires_grad=False)
                    # By attribute: recurrent layers keep a second list of their weights, which this renews.
                    setattr(module, name, stand_in[id(parameter)])
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    if id(buffer) not in stand_in:
                        stand_in[id(buffer)] = _like(buffer.detach(), device)
                    module._buffers[name] = stand_in[id(buffer)]
        yield
    finally:
        for snapshot in before:
            snapshot.restore()


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device) if device.type == "meta" else tensor.to(device, copy=True)


class _Snapshot:
    """A module's attributes, and the contents of the plain containers among them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.contents: list[tuple[Any, Any]] = [(v, v.copy()) for v in self.attributes.values() if type(v) in _CONTAINERS]

    def restore(self) -> None:
        self.module.__dict__.clear()
        self.module.__dict__.update(self.attributes)
        for container, content in self.contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
