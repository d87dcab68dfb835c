"""ReCU: a rectified clamp that moves dead weights, a learned scale after the convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esbnn_core.functional import normalised_tent_sign, sign, straight_through, tent_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, column, constant, filter_mean, parameter, per_filter

import torch
from torch import Tensor

EPS = 1e-5


def standardised(w: Tensor) -> Tensor:
    """Each filter minus its mean, scaled to variance 8 (unbiased, epsilon inside the root)."""
    u = w - filter_mean(w)
    return u * column(2 * math.sqrt(2) / (per_filter(u).var(1) + EPS).sqrt(), u)


@dataclass(frozen=True)
class ReCU(Method):
    """w_b = sign(clamp(u, -Q, Q)), Q the tau-quantile of a Laplace law fitted to |u| of the layer (paper, equation 9), detached.

    The clamp acts on the gradient only. While training, activations are divided by their sample's standard deviation, which moves
    no sign: inference leaves it out. `alpha` scales the output. tau_min, tau_max: ends of tau's schedule.
    """

    name = "recu"
    title = "ReCU"
    paper = Citation(
        "ReCU: Reviving the Dead Weights in Binary Neural Networks",
        "Z. Xu, M. Lin, J. Liu, J. Chen, L. Shao, Y. Gao, Y. Tian, R. Ji",
        "ICCV 2021",
        "https://arxiv.org/abs/2103.12369",
    )
    scheduled = True

    tau_min: float = 0.85
    tau_max: float = 0.99

    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"alpha": parameter(torch.rand(weight.shape[0]))}

    def schedule(self, p: float) -> dict[str, float]:
        a = (self.tau_max - self.tau_min) / (math.e - 1)
        return {"tau": a * math.exp(p) + self.tau_min - a}

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        u = standardised(w)
        size = u.detach().abs().mean()
        q = size * -math.log(2 - 2 * scalars["tau"]) if scalars["tau"] < 1 else torch.full_like(size, torch.inf)
        return straight_through(sign(u), torch.clamp(u, -q, q))

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return normalised_tent_sign(x, centre=False, eps=EPS) if training else tent_sign(x)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        u = standardised(w)
        return Code(bits_of(u), constant(1.0, u), constant(0.0, u))


METHOD = ReCU()
