"""AdaBin: two free values for the weights of each filter and for the activations of each layer."""

from __future__ import annotations

from dataclasses import dataclass

from esbnn_core.functional import tanh_sign, tent_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, Threshold, bits_of, column, filter_mean, parameter, per_filter
from esbnn_core.methods.irnet import decay

import torch
from torch import Tensor


def centre_and_distance(w: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """beta_o (mean) and alpha_o of each filter, both [O, 1, 1, 1] (paper, section 3.2).

    alpha_o^2 is the sum of squares over kh*kw*in_channels, with the channels of ALL groups, as the official code divides;
    the paper's formula has those of one group.
    """
    beta = filter_mean(w)
    alpha = ((per_filter(w - beta) ** 2).sum(1) / (w[0].numel() * groups)).sqrt()
    return beta, column(alpha, w)


@dataclass(frozen=True)
class AdaBin(Method):
    """w_b = alpha_o*sign((w - beta_o)/alpha_o) + beta_o with every gradient; a_b = alpha_a*(sign((a - beta_a)/alpha_a) + beta_a).

    The activations' set is {alpha_a*(beta_a - 1), alpha_a*(beta_a + 1)}: its centre is alpha_a*beta_a as in the official code, not
    the paper's beta_a. t_min, t_max: ends of the schedule of the weights' surrogate (IR-Net's).
    """

    name = "adabin"
    title = "AdaBin"
    paper = Citation(
        "AdaBin: Improving Binary Neural Networks with Adaptive Binary Sets",
        "Z. Tu, X. Chen, P. Ren, Y. Wang",
        "ECCV 2022",
        "https://arxiv.org/abs/2208.08084",
    )
    scheduled = True

    t_min: float = 1e-3
    t_max: float = 1e1

    def activation_state(self, channels: int) -> dict[str, Tensor]:
        return {"alpha_a": parameter(torch.ones(())), "beta_a": parameter(torch.zeros(()))}

    def schedule(self, p: float) -> dict[str, float]:
        return decay(p, self.t_min, self.t_max)

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        beta, alpha = centre_and_distance(w, groups)
        return tanh_sign((w - beta) / alpha, scalars["t"], scalars["k"]) * alpha + beta

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        alpha, beta = state["alpha_a"], state["beta_a"]
        return alpha * (tent_sign((x - beta) / alpha) + beta)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        beta, alpha = centre_and_distance(w, groups)
        return Code(bits_of((w - beta) / alpha), alpha.flatten(), beta.flatten())

    def values(self, state: State) -> tuple[float, float]:
        alpha, beta = float(state["alpha_a"].detach()), float(state["beta_a"].detach())
        return alpha * (beta - 1), alpha * (beta + 1)

    def threshold(self, x: Tensor, state: State) -> Threshold:
        alpha, beta = state["alpha_a"], state["beta_a"].to(x.dtype)
        if alpha >= 0:
            return Threshold(beta.reshape(1, 1))
        # (x - beta)/alpha >= 0 is x <= beta, that is, not (x >= the next number above beta).
        above = torch.nextafter(beta, torch.full_like(beta, torch.inf))
        return Threshold(above.reshape(1, 1), torch.ones(1, dtype=torch.bool, device=x.device))


METHOD = AdaBin()
