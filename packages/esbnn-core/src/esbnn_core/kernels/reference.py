"""The operators in PyTorch, exactly: what the native kernels must equal, and what runs on other devices and without the library.

Sums of +-1 are made by float convolutions, which hold integers below 2**24 exactly; the float line that follows is `Evaluator`'s of
`esbnn_core.nn.canonical`, in its order. Arguments and shapes are described in `esbnn_core.kernels.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

from esbnn_core.kernels.layout import pack_words, prepared_bits, unpack_words

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bconv2d", "bconv2d_sums", "blinear", "pack_sign"]


def _bits(x: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
    """bool [N, C, H, W]."""
    bit = x >= threshold[:, :, None, None]
    return bit if flip is None else bit ^ flip.bool().view(1, -1, 1, 1)


def pack_sign(x: Tensor, threshold: Tensor, flip: Tensor | None, groups: int) -> Tensor:
    bits = _bits(x, threshold, flip)
    return pack_words(bits.movedim(1, -1).unflatten(-1, (groups, x.shape[1] // groups)))


def _signs(x: Tensor, threshold: Tensor | None, flip: Tensor | None, channels: int) -> Tensor:
    """+-1 as float32 [N, C, H, W], from floats or from words."""
    if x.dtype == torch.int64:
        bits = unpack_words(x, channels).flatten(-2).movedim(-1, 1)
    else:
        assert threshold is not None
        bits = _bits(x, threshold, flip)
    return bits.to(torch.float32).mul_(2).sub_(1)


def _convolve(
    s: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, pad: str
) -> Tensor:
    if pad != "skip" and any(padding):
        s = F.pad(s, (padding[1], padding[1], padding[0], padding[0]), value=1.0 if pad == "hi" else -1.0)
        padding = (0, 0)
    # A CPU's float convolution of +-1 is exact; others may use transforms that are only nearly so.
    out = F.conv2d(s, weight, None, list(stride), list(padding), list(dilation), groups)
    return out if out.device.type == "cpu" else out.round_()


def _sums(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    flip: Tensor | None,
    channels: int,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad: str,
    of_groups: bool,
) -> Tensor:
    s = _signs(x, threshold, flip, channels)
    if of_groups:
        w = torch.ones((groups, channels, *kernel), device=s.device)
    else:
        w = prepared_bits(weight, filters, channels, (kernel[0], kernel[1]), groups).to(torch.float32).mul_(2).sub_(1)
    return _convolve(s, w, stride, padding, dilation, groups, pad)


def bconv2d_sums(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    flip: Tensor | None,
    channels: int,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad: str,
    of_groups: bool,
) -> Tensor:
    sums = _sums(x, weight, threshold, flip, channels, filters, kernel, stride, padding, dilation, groups, pad, of_groups)
    return sums.to(torch.int32, memory_format=torch.contiguous_format)


def _per_channel(t: Tensor) -> Tensor:
    return t.view(1, -1, 1, 1)


def _activate(
    y: Tensor,
    act: str,
    lo: float,
    hi: float,
    pos: Tensor | None,
    neg: Tensor | None,
    shift_in: Tensor | None,
    shift_out: Tensor | None,
) -> Tensor:
    if act == "none":
        return y
    if act == "clamp":
        return y.clamp(lo, hi)
    y = y if shift_in is None else y + _per_channel(shift_in)
    rising = y if pos is None else y * _per_channel(pos)
    falling = y if neg is None else y * _per_channel(neg)
    y = torch.where(y > 0, rising, falling)
    return y if shift_out is None else y + _per_channel(shift_out)


def _constant(k: Tensor, row_class: Tensor | None, col_class: Tensor | None) -> Tensor:
    if row_class is not None and col_class is not None:
        k = k.index_select(1, row_class.long()).index_select(2, col_class.long())
    return _per_channel(k) if k.dim() == 1 else k.unsqueeze(0)


def bconv2d(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    flip: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    k: Tensor | None,
    row_class: Tensor | None,
    col_class: Tensor | None,
    shortcut: Tensor | None,
    pos: Tensor | None,
    neg: Tensor | None,
    shift_in: Tensor | None,
    shift_out: Tensor | None,
    channels: int,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad: str,
    copies: int,
    act: str,
    act_first: bool,
    lo: float,
    hi: float,
) -> Tensor:
    def of(what: bool) -> Tensor:
        return _sums(x, weight, threshold, flip, channels, filters, kernel, stride, padding, dilation, groups, pad, what)

    y = of(False).repeat(1, copies, 1, 1) * _per_channel(p)
    if q is not None:
        y = y + of(True).repeat_interleave(filters // groups, 1).repeat(1, copies, 1, 1) * _per_channel(q)
    if k is not None:
        y = y + _constant(k, row_class, col_class)
    if act_first:
        y = _activate(y, act, lo, hi, pos, neg, shift_in, shift_out)
    if shortcut is not None:
        y = y + shortcut
    finished = y if act_first else _activate(y, act, lo, hi, pos, neg, shift_in, shift_out)
    return finished.contiguous()


def blinear(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    flip: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    k: Tensor | None,
    features: int,
    filters: int,
) -> Tensor:
    packed = x.dtype == torch.int64
    lead = x.shape[:-1]
    rows = x.reshape(x.shape[0], -1, x.shape[-1])  # [N, L, I or words]
    maps = rows[:, None, :, None, :] if packed else rows.movedim(-1, 1).unsqueeze(2)
    one = (1, 1)
    y = bconv2d(
        maps, weight, threshold, flip, p, q, k, None, None, None, None, None, None, None,
        features, filters, one, one, (0, 0), one, 1, "skip", 1, "none", False, 0.0, 0.0,
    )  # fmt: skip
    return y.squeeze(2).movedim(1, -1).reshape(*lead, filters).contiguous()
