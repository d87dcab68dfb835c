"""Pieces that methods and modules share: the sign, straight-through values, block arithmetic. Pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "adapt_blocks",
    "clip_sign",
    "identity_sign",
    "normalised_tent_sign",
    "replicate",
    "sign",
    "straight_through",
    "tanh_sign",
    "tent_sign",
]


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1, in x's dtype; no gradient. Both zeros count as +1: a bit cannot hold torch.sign's third value."""
    # copysign is several times faster than where(x >= 0, 1, -1) on a CPU; adding 0.0 turns -0.0 into +0.0.
    return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x.detach() + 0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` in the forward pass, exactly; the gradient goes to `carrier` (same shape) unchanged."""
    out: Tensor = _StraightThrough.apply(value.detach(), carrier)
    return out


def identity_sign(x: Tensor) -> Tensor:
    """sign(x) whose gradient is 1 everywhere (BinaryNet)."""
    return straight_through(sign(x), x)


class _ClipSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, closed: bool) -> Tensor:
        ctx.save_for_backward(x.abs() <= 1 if closed else x.abs() < 1)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return grad * mask, None


def clip_sign(x: Tensor, closed: bool = False) -> Tensor:
    """sign(x) whose gradient is 1 where |x| < 1 (|x| <= 1 if `closed`), else 0."""
    out: Tensor = _ClipSign.apply(x, closed)
    return out


class _TentSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peak: float, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tent = (peak, slope)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        peak, slope = ctx.tent
        return x.abs().mul_(-slope).add_(peak).clamp_(min=0).mul_(grad), None, None


def tent_sign(x: Tensor, peak: float = 2.0, slope: float = 2.0) -> Tensor:
    """sign(x) whose gradient is (peak - slope*|x|)+.

    The default is the derivative of the piecewise quadratic surrogate (Bi-Real Net, section 3.3); RBNN's is sqrt(2)*t, t^2.
    """
    out: Tensor = _TentSign.apply(x, peak, slope)
    return out


class _NormalisedTentSign(torch.autograd.Function):
    """One function for normalisation and sign, so that the normalised tensor is never stored and the backward takes few passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peak: float, slope: float, centre: bool, eps: float) -> Tensor:
        # Two plain passes: torch.var_mean over several dimensions takes several times as long on a CPU.
        mean = x.mean(tuple(range(1, x.dim())), keepdim=True)
        centred = x - mean
        var = torch.linalg.vector_norm(centred.flatten(1), dim=1).square_().div_(x.shape[1:].numel() - 1).view_as(mean)
        # A sample of equal values has no deviation to divide by; it passes no gradient instead of an undefined one.
        ctx.save_for_backward(x, mean, (var + eps).rsqrt_().nan_to_num_(nan=0.0, posinf=0.0))
        ctx.rule = (peak, slope, centre)
        return sign(centred) if centre else sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        x, mean, rstd = ctx.saved_tensors
        peak, slope, centre = ctx.rule
        dims = tuple(range(1, x.dim()))
        n = x.shape[1:].numel()
        z = (x - mean).mul_(rstd) if centre else x * rstd
        g = z.abs().mul_(-slope).add_(peak).clamp_(min=0).mul_(grad)
        pull = (g * z).sum(dims, keepdim=True) / (n - 1)
        if centre:
            g.sub_(g.mean(dims, keepdim=True)).sub_(z.mul_(pull))
        else:
            # z = x*rstd; the variance still depends on the distance to the mean.
            g.sub_(z.sub_(mean * rstd).mul_(pull))
        return g.mul_(rstd), None, None, None, None


def normalised_tent_sign(x: Tensor, peak: float = 2.0, slope: float = 2.0, centre: bool = True, eps: float = 0.0) -> Tensor:
    """`tent_sign` of each sample divided by its standard deviation, after subtracting its mean if `centre`.

    x: [N, ...]; statistics over everything but N, variance unbiased with `eps` added. The gradient goes through the normalisation.
    """
    out: Tensor = _NormalisedTentSign.apply(x, peak, slope, centre, eps)
    return out


class _TanhSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, t: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tk = (t, k)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        t, k = ctx.tk
        return torch.ops.aten.tanh_backward(grad, (x * t).tanh_()).mul_(k * t), None, None


def tanh_sign(x: Tensor, t: float, k: float) -> Tensor:
    """sign(x) whose gradient is k*t*(1 - tanh(t*x)^2) (IR-Net's error decay estimator, section 3.3)."""
    out: Tensor = _TanhSign.apply(x, t, k)
    return out


def replicate(x: Tensor, copies: int) -> Tensor:
    """Tile channels: x [N, c, ...] -> [N, copies*c, ...]; copy r of channel j is channel r*c + j."""
    return x if copies == 1 else x.repeat(1, copies, *([1] * (x.dim() - 2)))


def adapt_blocks(x: Tensor, channels: int) -> Tensor:
    """Give a block-major tensor another number of blocks: [N, C, ...] -> [N, channels, ...].

    Tiles where C divides `channels`; where `channels` divides C the blocks are averaged. The wiring has checked that one of them holds.
    """
    have = x.shape[1]
    if have == channels:
        return x
    if channels % have == 0:
        return replicate(x, channels // have)
    averaged: Tensor = x.unflatten(1, (have // channels, channels)).mean(1)
    return averaged
