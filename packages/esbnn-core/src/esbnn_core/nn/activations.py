"""Activations that come with binary networks. Parameters are as wide as the tensor, expanded channels included."""

from __future__ import annotations

from esbnn_core.errors import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Maxout", "RPReLU", "ScaleMap", "make_activation"]


def _maps(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *([1] * (x.dim() - 2)))


class RPReLU(nn.Module):
    """y = PReLU(x + b1) + b2, all three a channel (ReActNet, section 4.2)."""

    def __init__(self, channels: int, init: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.weight = nn.Parameter(torch.full((channels,), init))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x + _maps(self.shift_in, x), self.weight) + _maps(self.shift_out, x)


class Maxout(nn.Module):
    """y = pos_c*relu(x) - neg_c*relu(-x): a PReLU whose positive slope is learned too (AdaBin, section 3.4)."""

    def __init__(self, channels: int, pos: float = 1.0, neg: float = 0.25) -> None:
        super().__init__()
        self.neg_scale = nn.Parameter(torch.full((channels,), neg))
        self.pos_scale = nn.Parameter(torch.full((channels,), pos))

    def forward(self, x: Tensor) -> Tensor:
        return _maps(self.pos_scale, x) * F.relu(x) - _maps(self.neg_scale, x) * F.relu(-x)


class ScaleMap(nn.Module):
    """Multiply by a learned constant map Gamma (XNOR-Net++, section 3.2), for maps of one size.

    form: `full` Gamma[c, h, w]; `outer` alpha[c]*beta[h, w]; `rank_one` alpha[c]*beta[h]*gamma[w], the one that the paper prefers;
    `channel` alpha[c], for any size.
    """

    def __init__(self, channels: int, size: tuple[int, int] = (1, 1), form: str = "rank_one") -> None:
        super().__init__()
        h, w = size
        shapes = {
            "channel": {"alpha": (channels, 1, 1)},
            "full": {"alpha": (channels, h, w)},
            "outer": {"alpha": (channels, 1, 1), "beta": (1, h, w)},
            "rank_one": {"alpha": (channels, 1, 1), "beta": (1, h, 1), "gamma": (1, 1, w)},
        }
        if form not in shapes:
            raise UserError(f"unknown form {form!r} of a scale map; known: {', '.join(shapes)}")
        self._names = tuple(shapes[form])
        for name, shape in shapes[form].items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))

    def forward(self, x: Tensor) -> Tensor:
        for name in self._names:
            x = x * getattr(self, name)
        return x


def make_activation(name: str, channels: int) -> nn.Module:
    """An activation by name: hardtanh, relu, prelu, rprelu, maxout, none. `channels` is the tensor's width."""
    makers = {
        "hardtanh": lambda: nn.Hardtanh(),
        "relu": lambda: nn.ReLU(),
        "prelu": lambda: nn.PReLU(channels),
        "rprelu": lambda: RPReLU(channels),
        "maxout": lambda: Maxout(channels),
        "none": lambda: nn.Identity(),
    }
    if name not in makers:
        raise UserError(f"unknown activation {name!r}; known: {', '.join(makers)}")
    return makers[name]()
