"""One real layer's binary twin."""

from __future__ import annotations

from typing import TypeVar

from esbnn_core.methods import Method
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear

import torch
from torch import nn

__all__ = ["binary_twin", "padding_of", "replace_module", "settle"]

L = TypeVar("L", bound=BinaryLayer)


def padding_of(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The padding as numbers; None where it cannot be said so (`same` with an even kernel)."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    numbers = tuple(int(p) for p in conv.padding)
    return (numbers[0], numbers[1])


def binary_twin(old: nn.Module, method: Method, shift: bool | None) -> BinaryLayer:
    """A binary layer of the same geometry, its weights not yet those of `old`."""
    if isinstance(old, nn.Linear):
        return BinaryLinear(old.in_features, old.out_features, old.bias is not None, method, shift)
    assert isinstance(old, nn.Conv2d)
    padding = padding_of(old)
    assert padding is not None
    return BinaryConv2d(
        old.in_channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        (old.stride[0], old.stride[1]),
        padding,
        (old.dilation[0], old.dilation[1]),
        old.groups,
        old.bias is not None,
        method,
        shift=shift,
    )


@torch.no_grad()
def settle(twin: L, old: nn.Module) -> L:
    """Bring a twin to `old`'s device, dtype, mode and, where the shapes agree, weights; returns it."""
    assert isinstance(old, nn.Conv2d | nn.Linear)
    twin.to(device=old.weight.device, dtype=old.weight.dtype)
    if twin.weight.shape == old.weight.shape:
        twin.weight.copy_(old.weight)
    if twin.bias is not None and old.bias is not None and twin.bias.shape == old.bias.shape:
        twin.bias.copy_(old.bias)
    # Scales and codes of a method start from its weight.
    for name, tensor in twin.method.weight_state(twin.kernel.detach()).items():
        twin.state[name].copy_(tensor)
    twin.refresh()
    twin.weight.requires_grad_(old.weight.requires_grad)
    twin.train(old.training)
    return twin


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `name` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
