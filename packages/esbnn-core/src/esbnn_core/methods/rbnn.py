"""RBNN: weights rotated towards their signs, activations centred by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esbnn_core.functional import normalised_tent_sign, sign, tent_sign
from esbnn_core.methods._base import (
    Citation,
    Code,
    Method,
    Scalars,
    State,
    Threshold,
    bits_of,
    constant,
    parameter,
    per_filter,
    sample_mean_threshold,
)
from esbnn_core.methods.irnet import decay, standardised

import torch
from torch import Tensor

if TYPE_CHECKING:
    from esbnn_core.training import Progress


def factors(n: int) -> tuple[int, int]:
    """n = da*db with da the largest divisor not above the square root: the shape in which a filter is rotated."""
    da = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return da, n // da


def _orthogonal(n: int) -> Tensor:
    return torch.nn.init.orthogonal_(torch.empty(n, n))


def rotations(u: Tensor, r1: Tensor, r2: Tensor, alternations: int = 3) -> tuple[Tensor, Tensor]:
    """R1, R2 that bring R1^T u R2 nearer to its signs, by alternating orthogonal Procrustes problems (paper, section 3.2).

    u: [O, da, db]; r1: [da, da]; r2: [db, db].
    """
    for _ in range(alternations):
        b = sign(r1.T @ u @ r2)
        left, _, right = torch.linalg.svd((b @ r2.T @ u.transpose(1, 2)).sum(0))
        r1 = (left @ right).T
        left, _, right = torch.linalg.svd((u.transpose(1, 2) @ r1 @ b).sum(0))
        r2 = left @ right
    return r1, r2


@dataclass(frozen=True)
class RBNN(Method):
    """w_b = sign(v), v = u + |sin(theta)|*(R1^T u R2 - u); activations lose their sample's mean, in inference too.

    Gradients are tents (sqrt(2)*t - t^2|.|)+ with t growing; the rotations change at the first step of every `rotation_update`-th
    epoch. theta (`rotate`) starts at pi/2, where the gradient of w is exactly zero; only weight decay on theta starts the training
    of w. That is the official behaviour. t_min, t_max: ends of t's schedule.
    """

    name = "rbnn"
    title = "RBNN"
    paper = Citation(
        "Rotated Binary Neural Network",
        "M. Lin, R. Ji, Z. Xu, B. Zhang, Y. Wang, Y. Wu, F. Huang, C.-W. Lin",
        "NeurIPS 2020",
        "https://arxiv.org/abs/2009.13055",
    )
    scheduled = True
    projects = True
    copied = ("R1", "R2")

    t_min: float = 1e-2
    t_max: float = 1e1
    rotation_update: int = 1

    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        o = weight.shape[0]
        da, db = factors(weight[0].numel())
        return {
            "alpha": parameter(per_filter(weight).abs().mean(1)),
            "rotate": parameter(torch.full((o, 1, 1, 1), math.pi / 2)),
            "R1": _orthogonal(da),
            "R2": _orthogonal(db),
        }

    def schedule(self, p: float) -> dict[str, float]:
        return decay(p, self.t_min, self.t_max)

    def project(self, w: Tensor, state: State, scalars: Scalars, progress: Progress) -> None:
        if progress.first_of_epoch and progress.epoch % self.rotation_update == 0:
            r1, r2 = rotations(self._matrix(standardised(w), state), state["R1"], state["R2"])
            state["R1"].copy_(r1)
            state["R2"].copy_(r2)

    def _matrix(self, u: Tensor, state: State) -> Tensor:
        return u.reshape(u.shape[0], state["R1"].shape[0], state["R2"].shape[0])

    def _latent(self, w: Tensor, state: State) -> Tensor:
        u = standardised(w)
        rotated = (state["R1"].T @ self._matrix(u.detach(), state) @ state["R2"]).reshape(u.shape)
        return u + state["rotate"].sin().abs() * (rotated - u)

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        t, k = scalars["t"], scalars["k"]
        return tent_sign(self._latent(w, state), k * math.sqrt(2) * t, k * t * t)

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        t = max(scalars["t"], 1.0)
        return normalised_tent_sign(x, math.sqrt(2) * t, t * t)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        v = self._latent(w, state)
        return Code(bits_of(v), constant(1.0, v), constant(0.0, v))

    def threshold(self, x: Tensor, state: State) -> Threshold:
        return Threshold(sample_mean_threshold(x), kind="sample_mean")


METHOD = RBNN()
