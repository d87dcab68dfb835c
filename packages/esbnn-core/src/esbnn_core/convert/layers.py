"""Single layers: a real one's binary twin, an expanded shortcut, the adaptation of blocks."""

from __future__ import annotations

from typing import TypeVar

from esbnn_core.es import Slot
from esbnn_core.functional import adapt_blocks
from esbnn_core.methods import Method
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear

import torch
from torch import Tensor, nn

__all__ = ["Blocks", "binary_twin", "expanded_conv", "padding_of", "replace_module", "settle"]


class Blocks(nn.Module):
    """`adapt_blocks` to a fixed number of channels; a module, since a pickled graph is traced once more when it is loaded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return adapt_blocks(x, self.channels)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


M = TypeVar("M", bound=nn.Module)


def padding_of(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The padding as numbers; None where it cannot be said so (`same` with an even kernel)."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    numbers = tuple(int(p) for p in conv.padding)
    return (numbers[0], numbers[1])


def binary_twin(old: nn.Conv2d | nn.Linear, method: Method, shift: bool | None, slot: Slot | None = None) -> BinaryLayer:
    """A binary layer in `old`'s place, with its weights where the shapes agree. slot: its setting under expanding-and-shrinking."""
    if isinstance(old, nn.Linear):
        return settle(BinaryLinear(old.in_features, old.out_features, old.bias is not None, method, shift), old)
    padding = padding_of(old)
    assert padding is not None, "the selection leaves such layers out"
    slot = slot or Slot()
    twin = BinaryConv2d(
        slot.channels_in(old.in_channels),
        slot.filters(old.out_channels),
        (old.kernel_size[0], old.kernel_size[1]),
        (old.stride[0], old.stride[1]),
        padding,
        (old.dilation[0], old.dilation[1]),
        old.groups * slot.groups,
        old.bias is not None,
        method,
        shift=shift,
    )
    return settle(twin, old)


def expanded_conv(old: nn.Conv2d, slot: Slot) -> nn.Conv2d:
    """A real convolution under expanding-and-shrinking (a shortcut), with `old`'s weights where the shapes agree."""
    new = nn.Conv2d(
        slot.channels_in(old.in_channels),
        slot.filters(old.out_channels),
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        old.groups * slot.groups,
        old.bias is not None,
    )
    return settle(new, old)


@torch.no_grad()
def settle(twin: M, old: nn.Module) -> M:
    """Bring a twin to `old`'s device, dtype and mode, and to its parameters where the shapes agree; returns it."""
    weight = old.weight
    assert isinstance(weight, Tensor)
    twin.to(device=weight.device, dtype=weight.dtype)
    for name, theirs in old.named_parameters(recurse=False):
        mine = getattr(twin, name)
        if mine is not None:
            if mine.shape == theirs.shape:
                mine.copy_(theirs)
            mine.requires_grad_(theirs.requires_grad)
    if isinstance(twin, BinaryLayer):
        # Scales and codes of a method start from its weight.
        for name, tensor in twin.method.weight_state(twin.kernel.detach()).items():
            twin.state[name].copy_(tensor)
        twin.refresh()
    twin.train(old.training)
    return twin


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `name` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
