"""The one form that every trained binary layer reduces to, and its evaluation in floating point.

With s, t the bits of activation and weight as +1 and -1, over the valid taps of a window (n of them, times channels):

    y_j = P_j * S_st[o] + Q_j * S_s[group(o)] + K_j,        o = j mod O

S_st, S_s (and S_t, n inside K) are integers; P, Q, K are folded in float64 and rounded once; multiplications and additions stay
separate roundings, in this order. Packed kernels evaluate the same line, so their numbers are the same by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from esbnn_core.functional import sign
from esbnn_core.methods import Threshold

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Canonical", "Evaluator"]


@dataclass(frozen=True)
class Canonical:
    """A binary layer, with the norm that follows it if there is one.

    bits: bool [O, I/g, kh, kw], true for +1 (a linear layer has kh = kw = 1). half, mid: float64 [O]; a weight is mid +- half.
    threshold: where the activations' bit switches; its value is None if it is made from each sample (`resolve`).
    pad: what padding contributes: nothing (`skip`), or a bit. post, bias: float64 [O] or none, a learned scale and a real bias.
    copies: of each output. mul, add: float64 [O*copies], the norm that follows (none: 1, 0). meta: method, layer, capacity.
    """

    bits: Tensor
    half: Tensor
    mid: Tensor
    lo: float
    hi: float
    kind: Literal["const", "table", "sample_mean", "computed"]
    threshold: Tensor | None
    flip: Tensor | None
    resolve: Callable[[Tensor], Threshold] = field(repr=False)
    pad: Literal["skip", "lo", "hi"]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    post: Tensor | None = None
    bias: Tensor | None = None
    copies: int = 1
    mul: Tensor | None = None
    add: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Evaluates a `Canonical` on tensors of one dtype and device; x [N, I, H, W] -> y [N, O*copies, H', W'].

    Tensors of half precision are computed in float32, whose sums of signs are exact, and rounded once at the end.
    """

    def __init__(self, form: Canonical, dtype: torch.dtype, device: torch.device) -> None:
        self.form = form
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        o, per_group = form.bits.shape[:2]
        mul = form.mul if form.mul is not None else torch.ones(o * form.copies, dtype=torch.float64, device=device)
        scale = (form.post if form.post is not None else 1.0) * form.half
        h, m = (form.hi - form.lo) / 2, (form.hi + form.lo) / 2
        self._m = m
        self._weight = torch.where(form.bits, 1.0, -1.0).to(dtype)
        self._p = self._fold(mul, h * scale).to(dtype)
        post = form.post if form.post is not None else torch.ones(o, dtype=torch.float64, device=device)
        has_mid = bool((form.mid != 0).any())
        self._q = self._fold(mul, h * post * form.mid).to(dtype) if has_mid else None
        self._ones = torch.ones((form.groups, per_group, *form.bits.shape[2:]), dtype=dtype, device=device) if has_mid else None
        self._mul, self._post = mul, post
        # Where the two values are not opposite and padding means fewer taps, K depends on how much of a window lies inside the map.
        self._bordered = m != 0 and form.pad == "skip" and any(form.padding)
        self._k: dict[tuple[int, int], Tensor] = {}

    def _fold(self, mul: Tensor, per_filter: Tensor) -> Tensor:
        return (mul.view(self.form.copies, -1) * per_filter).view(1, self.form.copies, -1, 1, 1)

    def _conv(self, s: Tensor, weight: Tensor, groups: int) -> Tensor:
        f = self.form
        padding = f.padding
        if f.pad != "skip" and any(padding):
            s = F.pad(s, (padding[1], padding[1], padding[0], padding[0]), value=1.0 if f.pad == "hi" else -1.0)
            padding = (0, 0)
        out = F.conv2d(s, weight, None, f.stride, padding, f.dilation, groups)
        # A CPU's float convolution of +-1 is exact; others may use transforms that are only nearly so.
        return out if out.device.type == "cpu" else out.round_()

    def _constant(self, size: tuple[int, int], s: Tensor) -> Tensor:
        """K for maps of this size, [1, copies, O, 1 or H', 1 or W']."""
        if not self._bordered:
            size = (0, 0)
        if size not in self._k:
            f = self.form
            t = self._weight.double()
            if self._m == 0:
                inner = torch.zeros(t.shape[0], 1, 1, dtype=torch.float64, device=t.device)
            elif self._bordered:
                inside = torch.ones((1, s.shape[1], *size), dtype=torch.float64, device=t.device)
                s_t = F.conv2d(inside, t, None, f.stride, f.padding, f.dilation, f.groups)[0]
                n = F.conv2d(inside, torch.ones_like(t), None, f.stride, f.padding, f.dilation, f.groups)[0]
                inner = self._m * (f.half.view(-1, 1, 1) * s_t + f.mid.view(-1, 1, 1) * n)
            else:
                n_taps = t[0].numel()
                inner = (self._m * (f.half * t.flatten(1).sum(1) + f.mid * n_taps)).view(-1, 1, 1)
            inner = self._post.view(-1, 1, 1) * inner
            if f.bias is not None:
                inner = inner + f.bias.view(-1, 1, 1)
            k = self._mul.view(1, f.copies, -1, 1, 1) * inner
            if f.add is not None:
                k = k + f.add.view(1, f.copies, -1, 1, 1)
            if len(self._k) > 8:
                self._k.clear()
            self._k[size] = k.to(self._p.dtype)
        return self._k[size]

    def bits(self, x: Tensor) -> Tensor:
        """The activations' bits as +1 and -1, in the dtype that is computed in."""
        f = self.form
        if f.kind == "const" and f.flip is None and f.threshold is not None and not f.threshold.any():
            return sign(x).to(self._weight.dtype)
        threshold = self.form.resolve(x) if f.threshold is None else Threshold(f.threshold, f.flip)
        shape = (*threshold.value.shape, *([1] * (x.dim() - 2)))
        bit = x >= threshold.value.view(shape)
        if threshold.flip is not None:
            bit = bit ^ threshold.flip.view(1, -1, *([1] * (x.dim() - 2)))
        return bit.to(self._weight.dtype).mul_(2).sub_(1)

    def __call__(self, x: Tensor) -> Tensor:
        f = self.form
        with torch.autocast(x.device.type, enabled=False):
            s = self.bits(x)
            sums = self._conv(s, self._weight, f.groups)
            y = sums.unsqueeze(1) * self._p
            if self._q is not None and self._ones is not None:
                s_s = self._conv(s, self._ones, f.groups).repeat_interleave(sums.shape[1] // f.groups, 1)
                y = y + s_s.unsqueeze(1) * self._q
            y = y.add_(self._constant((x.shape[2], x.shape[3]), s))
            return y.flatten(1, 2).to(x.dtype)
