"""IR-Net: balanced, standardised weights with a power-of-two scale, and a surrogate that sharpens during training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esbnn_core.functional import tanh_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, column, constant, filter_mean, per_filter

import torch
from torch import Tensor


def standardised(w: Tensor) -> Tensor:
    """Each filter minus its mean, divided by its standard deviation (unbiased, no epsilon)."""
    u = w - filter_mean(w)
    return u / column(per_filter(u).std(1), u)


def scale(u: Tensor) -> Tensor:
    """[O]: the power of two nearest to mean |u| of each filter, on a logarithmic scale (paper, equation 6)."""
    # ln/ln 2 in the tensor's own precision, rounded half to even: what the official code does.
    return torch.pow(2.0, torch.round(torch.log(per_filter(u).abs().mean(1)) / math.log(2)))


def decay(p: float, t_min: float, t_max: float) -> dict[str, float]:
    """t and k at progress p (paper, equation 10): t grows geometrically from t_min to t_max, k keeps the gradient's size."""
    t = t_min * 10 ** (p * math.log10(t_max / t_min))
    return {"t": t, "k": max(1 / t, 1.0)}


@dataclass(frozen=True)
class IRNet(Method):
    """w_b = s_o*sign(u), u standardised, s_o a detached power of two; both signs have the error decay estimator's gradient.

    t_min, t_max: ends of its schedule; the official VGG-Small uses t_min = 0.1.
    """

    name = "irnet"
    title = "IR-Net"
    paper = Citation(
        "Forward and Backward Information Retention for Accurate Binary Neural Networks",
        "H. Qin, R. Gong, X. Liu, M. Shen, Z. Wei, F. Yu, J. Song",
        "CVPR 2020",
        "https://arxiv.org/abs/1909.10788",
    )
    scheduled = True

    t_min: float = 1e-3
    t_max: float = 1e1

    def schedule(self, p: float) -> dict[str, float]:
        return decay(p, self.t_min, self.t_max)

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        u = standardised(w)
        return tanh_sign(u, scalars["t"], scalars["k"]) * column(scale(u.detach()), u)

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return tanh_sign(x, scalars["t"], scalars["k"])

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        u = standardised(w)
        return Code(bits_of(u), scale(u), constant(0.0, u))


METHOD = IRNet()
