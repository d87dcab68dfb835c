"""XNOR-Net: latent weights centred over input channels and clipped, one analytic scale a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esbnn_core.functional import clip_sign, sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, column, constant, per_filter

import torch
from torch import Tensor

if TYPE_CHECKING:
    from esbnn_core.training import Progress


def centred_and_clipped(w: Tensor) -> Tensor:
    """w minus its mean over input channels (for each filter and kernel position), clipped to [-1, 1]."""
    return (w - w.mean(1, keepdim=True)).clamp_(-1, 1)


def scale(w: Tensor) -> Tensor:
    """[O]: mean |w| of each filter."""
    return per_filter(w).abs().mean(1)


def magnitude_map(x: Tensor) -> Tensor:
    """[N, 1, H, W]: mean |x| over channels, the paper's map A before its box filter (section 3.2); no network here uses it."""
    return x.abs().mean(1, keepdim=True)


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.factor = factor
        return column(scale(w), w) * sign(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (w,) = ctx.saved_tensors
        s = sign(w)
        n = w[0].numel()
        through_scale = s * column(per_filter(s * grad).mean(1), w)
        through_sign = column(scale(w), w) * (w.abs() <= 1) * grad
        return (through_sign + through_scale) * ((1 - 1 / w.shape[1]) * n * ctx.factor), None


@dataclass(frozen=True)
class XNORNet(Method):
    """w <- clip(w - mean over inputs); w_b = mean_o|w| * sign(w), a_b = sign(a), gradients as the widespread PyTorch code has them.

    gradient_factor: that code's ImageNet version multiplies weight gradients once more by 1e9 (without effect under Adam).
    The paper's map K of mean |a| is not used there, nor here.
    """

    name = "xnor"
    title = "XNOR-Net"
    paper = Citation(
        "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi",
        "ECCV 2016",
        "https://arxiv.org/abs/1603.05279",
    )
    projects = True

    gradient_factor: float = 1.0

    def project(self, w: Tensor, state: State, scalars: Scalars, progress: Progress) -> None:
        w.copy_(centred_and_clipped(w))

    def projected(self, w: Tensor) -> Tensor:
        return centred_and_clipped(w)

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        out: Tensor = _Weight.apply(w, self.gradient_factor)
        return out

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return clip_sign(x)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(bits_of(w), scale(w), constant(0.0, w))


METHOD = XNORNet()
