"""What is added around a binary unit: one pipeline that owns every change of width, stride and number of blocks."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, TypeAlias, get_args

from esbnn_core.errors import UserError
from esbnn_core.es import Slot, divides
from esbnn_core.functional import adapt_blocks
from esbnn_core.methods import Method
from esbnn_core.nn.layers import BinaryConv2d
from esbnn_core.nn.norm import ReplicatedBatchNorm2d
from esbnn_core.nn.unit import BinaryUnit

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Shortcut", "ShortcutKind"]

ShortcutKind: TypeAlias = Literal["identity", "pad", "avg_pad", "conv", "avg_conv", "avg_ceil_conv", "binary"]


class Shortcut(nn.Module):
    """[N, c_in*m_in, H, W] -> [N, c_out*m_out, H/stride, W/stride].

    kind: `identity`; `pad` (option A: every stride-th pixel, zero channels half in front and half behind, inside each block) or
    `avg_pad` (mean of stride x stride pixels instead); `conv` (real 1x1 with stride, then batch norm), `avg_conv` (mean of pixels,
    then 1x1), `avg_ceil_conv` (the same, a last odd row counted without padding); `binary` (the method's 1x1 and batch norm).
    slot: the setting of the layer that it goes around, for the kinds with weights. Widths and strides that do not change make every
    kind an identity. The blocks of what it makes are tiled or averaged to m_out.
    """

    def __init__(
        self,
        kind: ShortcutKind,
        c_in: int,
        c_out: int,
        stride: int = 1,
        m_in: int = 1,
        m_out: Fraction | int = 1,
        slot: Slot | None = None,
        method: Method | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(ShortcutKind):
            raise UserError(f"unknown shortcut {kind!r}; known: {', '.join(get_args(ShortcutKind))}")
        changes = stride != 1 or c_in != c_out
        self.kind: ShortcutKind = kind if changes else "identity"
        if changes and kind == "identity":
            raise UserError(f"an identity cannot go from {c_in} to {c_out} channels with stride {stride}")
        if self.kind in ("pad", "avg_pad") and c_out < c_in:
            raise UserError(f"a padded shortcut cannot go from {c_in} down to {c_out} channels")
        if self.kind in ("identity", "pad", "avg_pad") and not divides(Fraction(m_in), Fraction(m_out)):
            raise UserError(f"a shortcut has {m_in} blocks of {c_out} channels, and {m_out} are wanted; neither divides the other")
        self.c_in, self.c_out, self.stride, self.m_in = c_in, c_out, stride, m_in
        self.channels = int(c_out * m_out)
        self.pool: nn.Module = nn.Identity()
        if self.kind in ("avg_pad", "avg_conv") and stride > 1:
            self.pool = nn.AvgPool2d(stride, stride)
        elif self.kind == "avg_ceil_conv" and stride > 1:
            self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        slot = slot or Slot()
        if self.kind in ("conv", "avg_conv", "avg_ceil_conv"):
            conv_stride = stride if self.kind == "conv" else 1
            filters = slot.filters(c_out)
            self.conv = nn.Conv2d(slot.channels_in(c_in), filters, 1, conv_stride, groups=slot.groups, bias=False)
            self.norm = ReplicatedBatchNorm2d(filters, slot.copies)
        elif self.kind == "binary":
            if method is None:
                raise UserError("a binary shortcut needs a method")
            layer = BinaryConv2d(slot.channels_in(c_in), slot.filters(c_out), 1, stride, groups=slot.groups, method=method)
            self.unit = BinaryUnit(layer, "n", copies=slot.copies)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        if self.kind == "pad":
            x = x[:, :, :: self.stride, :: self.stride]
        if self.kind in ("pad", "avg_pad"):
            extra = self.c_out - self.c_in
            x = x.unflatten(1, (self.m_in, self.c_in))
            x = F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2)).flatten(1, 2)
        elif self.kind in ("conv", "avg_conv", "avg_ceil_conv"):
            x = self.norm(self.conv(x))
        elif self.kind == "binary":
            x = self.unit(x)
        return adapt_blocks(x, self.channels)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.c_in} -> {self.c_out}, stride={self.stride}, channels={self.channels}"
