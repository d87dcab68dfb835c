"""ReSTE: a rectified straight-through estimator that trades estimating error against gradient stability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from esbnn_core.functional import sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, constant

import torch
from torch import Tensor

LINEAR_BELOW = 0.1


class _PowerSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, o: float, clip: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = (o, clip)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        o, clip = ctx.rule
        size = x.abs()
        slope = size.clamp(min=LINEAR_BELOW).pow_((1 - o) / o).div_(o)
        slope.masked_fill_(size <= LINEAR_BELOW, LINEAR_BELOW ** (1 / o) / LINEAR_BELOW).masked_fill_(size > clip, 0.0)
        return slope.mul_(grad), None, None


def power_sign(x: Tensor, o: float, clip: float) -> Tensor:
    """sign(x) with the gradient of sign(x)*|x|^(1/o): constant below 0.1, zero above `clip` (paper, equations 10 to 12)."""
    out: Tensor = _PowerSign.apply(x, o, clip)
    return out


@dataclass(frozen=True)
class ReSTE(Method):
    """w_b = m*sign(w), m = mean|w| of the layer with its gradient; a_b = sign(a). The exponent o grows from 1 to o_end.

    clip: gradients are zero beyond it.
    """

    name = "reste"
    title = "ReSTE"
    paper = Citation(
        "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks Training",
        "X.-M. Wu, D. Zheng, Z. Liu, W.-S. Zheng",
        "ICCV 2023",
        "https://arxiv.org/abs/2308.06689",
    )
    scheduled = True

    o_end: float = 3.0
    clip: float = 1.5

    def schedule(self, p: float) -> dict[str, float]:
        return {"o": 1 + (1 - math.cos(p * math.pi / 2)) * (self.o_end - 1)}

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        return power_sign(w, scalars["o"], self.clip) * w.abs().mean()

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return power_sign(x, scalars["o"], self.clip)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(bits_of(w), w.abs().mean().expand(w.shape[0]), constant(0.0, w))


METHOD = ReSTE()
