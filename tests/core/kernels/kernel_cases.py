"""Random binary layers with what a float64 convolution makes of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from esbnn_core.kernels import calls, layout, library, ops

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Layer:
    """Sizes of a layer and its input; tensors follow from `seed`."""

    n: int
    h: int
    w: int
    groups: int
    channels: int
    per_group: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    pad: str = "skip"
    threshold: str = "zero"  # zero, channel, sample, both
    flip: bool = False
    channels_last: bool = False
    seed: int = 0
    x: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        c = self.groups * self.channels
        self.x = torch.randint(-3, 4, (self.n, c, self.h, self.w), generator=g).float() / 2  # ties with thresholds are common
        if self.channels_last:
            self.x = self.x.to(memory_format=torch.channels_last)
        self.bits = torch.rand((self.filters, self.channels, *self.kernel), generator=g) < 0.5
        size = {"zero": (1, 1), "channel": (1, c), "sample": (self.n, 1), "both": (self.n, c)}[self.threshold]
        self.limit = torch.randint(-2, 3, size, generator=g).float() / 2 * (self.threshold != "zero")
        self.turned = torch.rand(c, generator=g) < 0.5 if self.flip else None
        self.weight = layout.prepare_weights(self.bits, self.groups)

    @property
    def filters(self) -> int:
        return self.groups * self.per_group

    @property
    def possible(self) -> bool:
        return all(
            size + 2 * p >= d * (k - 1) + 1
            for size, p, d, k in zip((self.h, self.w), self.padding, self.dilation, self.kernel, strict=True)
        )

    @property
    def window(self) -> tuple[Any, ...]:
        """Arguments of the operators from `channels` to `pad`."""
        return (self.channels, self.filters, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.pad)

    def signs(self) -> Tensor:
        bit = self.x.double() >= self.limit.double()[:, :, None, None]
        if self.turned is not None:
            bit = bit ^ self.turned.view(1, -1, 1, 1)
        return torch.where(bit, 1.0, -1.0).double()

    def sums(self, of_groups: bool = False) -> Tensor:
        """By a convolution in float64."""
        w = torch.where(self.bits, 1.0, -1.0).double()
        if of_groups:
            w = torch.ones((self.groups, self.channels, *self.kernel), dtype=torch.float64)
        s, (ph, pw) = self.signs(), self.padding
        value = {"skip": 0.0, "lo": -1.0, "hi": 1.0}[self.pad]
        s = F.pad(s, (pw, pw, ph, ph), value=value)
        return F.conv2d(s, w, None, self.stride, 0, self.dilation, self.groups).to(torch.int32)

    def prepared(self) -> Tensor:
        """Weights with what the active path wants."""
        if library.active() == "torch":
            return self.weight
        size = (self.n, self.h, self.w)
        return calls.expand_weights(self.bits, size, self.stride, self.padding, self.dilation, self.groups, self.pad)

    def run(self, of_groups: bool = False, packed: bool = False) -> Tensor:
        weight = self.prepared()
        if packed:
            words = ops.pack_sign(self.x, self.limit, self.turned, self.groups)
            return ops.bconv2d_sums(words, weight, None, None, *self.window, of_groups)
        return ops.bconv2d_sums(self.x, weight, self.limit, self.turned, *self.window, of_groups)


CHANNELS = [1, 2, 7, 16, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 192, 260]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Layers of all kinds; impossible ones (a kernel larger than its map) are left out."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, dilation, padding = pair(1, 5), pair(1, 3), pair(0, 4)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in range(2)]
    return Layer(
        n=draw(st.integers(1, 3)),
        h=least[0] + draw(st.integers(0, 9)),
        w=least[1] + draw(st.one_of(st.integers(0, 12), st.integers(240, 290))),
        groups=draw(st.integers(1, 4)),
        channels=draw(st.one_of(st.sampled_from(CHANNELS), st.integers(1, 200))),
        per_group=draw(st.integers(1, 20)),
        kernel=kernel,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        pad=draw(st.sampled_from(["skip", "lo", "hi"])),
        threshold=draw(st.sampled_from(["zero", "channel", "sample", "both"])),
        flip=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def grid() -> Iterator[Layer]:
    """More than 10,000 combinations of sizes, in an order that does not change: every n-th of them is a fair sample too."""
    combinations = list(
        itertools.product(
            [(1, 1), (3, 3), (2, 3), (5, 1)],  # kernel
            [(1, 1), (2, 1), (2, 2)],  # stride
            [(0, 0), (1, 1), (2, 0)],  # padding
            [(1, 1), (2, 1)],  # dilation
            ["skip", "lo", "hi"],
            [1, 2],  # groups
            CHANNELS,
            [(4, 5), (7, 8)],  # map
        )
    )
    random.Random(0).shuffle(combinations)
    for i, (kernel, stride, padding, dilation, pad, groups, channels, size) in enumerate(combinations):
        h, w = (max(size[j], dilation[j] * (kernel[j] - 1) + 1 - 2 * padding[j]) for j in range(2))
        threshold = ("zero", "channel", "sample", "both")[i % 4]
        yield Layer(
            1 + i % 2, h, w, groups, channels, (1, 8, 9, 17)[i // 4 % 4], kernel, stride, padding, dilation, pad, threshold, i % 3 == 0,
            i % 5 == 0, seed=i,
        )  # fmt: skip
