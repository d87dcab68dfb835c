"""SiMaN: the code of a weight comes from its magnitude, half of each filter is +1; activations centred by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from esbnn_core.errors import UserError
from esbnn_core.functional import normalised_tent_sign, straight_through
from esbnn_core.methods._base import (
    Citation,
    Code,
    Method,
    Scalars,
    State,
    Threshold,
    column,
    constant,
    filter_mean,
    parameter,
    per_filter,
    sample_mean_threshold,
)

import torch
from torch import Tensor

if TYPE_CHECKING:
    from esbnn_core.training import Progress

EPS = 1e-5


def percentile(x: Tensor, q: float) -> Tensor:
    """The q-th percentile (0 to 100) of a flat tensor with linear interpolation, for any number of elements."""
    # torch.quantile refuses more than 16 million elements; its interpolation also differs from numpy's in the last bit.
    position = q / 100 * (x.numel() - 1)
    low = int(position)
    ordered = x.sort().values
    a, b = ordered[low], ordered[min(low + 1, x.numel() - 1)]
    t = position - low
    return b - (b - a) * (1 - t) if t >= 0.5 else a + (b - a) * t


def rewritten(w: Tensor, percent: float) -> Tensor:
    """w centred by filter, its magnitudes clipped between two percentiles of the whole tensor (paper, section 3.4)."""
    w1 = w - filter_mean(w)
    magnitude = w1.abs()
    flat = magnitude.flatten()
    return magnitude.clamp(percentile(flat, percent), percentile(flat, 100 - percent)) * torch.sign(w1)


def standardised(w: Tensor) -> Tensor:
    """Each filter minus its mean, divided by its standard deviation (unbiased, epsilon inside the root)."""
    u = w - filter_mean(w)
    return u / column((per_filter(u).var(1) + EPS).sqrt(), u)


def half_code(u: Tensor, sort: str) -> Tensor:
    """bool, true for the larger half of |u| in each filter."""
    magnitude = per_filter(u).abs()
    if sort == "quick":
        order = magnitude.argsort(dim=1, descending=True)[:, : magnitude.shape[1] // 2]
        code = torch.zeros_like(magnitude, dtype=torch.bool).scatter_(1, order, torch.ones_like(order, dtype=torch.bool))
    else:
        code = magnitude > magnitude.median(1, keepdim=True).values
    return code.reshape(u.shape)


@dataclass(frozen=True)
class SiMaN(Method):
    """w_b = 2B - 1, B = 1 for the larger half of |u| of a filter, the gradient goes to |u|; `alpha` scales the output.

    sort: `topk` takes what lies strictly above the lower median, `quick` the first half of a descending sort; they differ on ties
    only. percent: start of the percentile's schedule, which falls to 0. Official code rewrites the latent weight in every forward,
    here once per step. Inference reads the stored B.
    """

    name = "siman"
    title = "SiMaN"
    paper = Citation(
        "SiMaN: Sign-to-Magnitude Network Binarization",
        "M. Lin, R. Ji, Z. Xu, B. Zhang, F. Chao, C.-W. Lin, L. Shao",
        "IEEE TPAMI 2022",
        "https://arxiv.org/abs/2102.07981",
    )
    scheduled = True
    projects = True

    percent: float = 15.0
    sort: str = "topk"

    def __post_init__(self) -> None:
        if self.sort not in ("topk", "quick"):
            raise UserError(f"SiMaN's sort is 'topk' or 'quick', not {self.sort!r}")

    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"alpha": parameter(per_filter(weight).abs().mean(1)), "B": half_code(standardised(weight), self.sort)}

    def schedule(self, p: float) -> dict[str, float]:
        return {"percent": self.percent * (1 - p)}

    def project(self, w: Tensor, state: State, scalars: Scalars, progress: Progress) -> None:
        w.copy_(rewritten(w, scalars["percent"]))

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        u = standardised(w)
        code = half_code(u.detach(), self.sort) if training else state["B"]
        return straight_through(code.to(w.dtype) * 2 - 1, u.abs())

    def observe(self, wb: Tensor, state: State) -> None:
        state["B"].copy_(wb > 0)

    def refresh(self, w: Tensor, state: State) -> None:
        state["B"].copy_(half_code(standardised(w), self.sort))

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return normalised_tent_sign(x, eps=EPS)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(state["B"], constant(1.0, w), constant(0.0, w))

    def threshold(self, x: Tensor, state: State) -> Threshold:
        return Threshold(sample_mean_threshold(x), kind="sample_mean")


METHOD = SiMaN()
