"""Batch norm directly after the copies, without making the copies first.

Copies of a channel share its batch statistics, so these are computed once on c channels; what differs is each copy's scale and shift.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ReplicatedBatchNorm2d"]


class _ReplicatedNorm(torch.autograd.Function):
    """Training mode: x [N, c, ...], gamma, beta [R, c] -> y [N, R, c, ...], the batch's mean and unbiased variance [c].

    Saves the normalised x, c channels, and nothing else of that size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = gamma.new_zeros(x.shape[1]), gamma.new_zeros(x.shape[1])
        normal, _, rstd = torch.native_batch_norm(x, None, None, mean, var, True, 1.0, eps)  # momentum 1: the batch's own statistics
        ctx.save_for_backward(normal, gamma, rstd)
        ctx.mark_non_differentiable(mean, var)
        maps = (1, *gamma.shape, *([1] * (x.dim() - 2)))
        # In x's dtype, also where autocast made x narrower than the parameters.
        return torch.addcmul(beta.to(x.dtype).view(maps), normal.unsqueeze(1), gamma.to(x.dtype).view(maps)), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normal, gamma, rstd = ctx.saved_tensors
        one = (1, -1, *([1] * (normal.dim() - 2)))
        dims = (0, *range(2, normal.dim()))
        m = normal.numel() // normal.shape[1]
        # A loop over copies: each pass reads what it needs, and no temporary has all copies' channels.
        d_gamma, d_beta = torch.empty_like(gamma), torch.empty_like(gamma)
        g = grad[:, 0] * gamma[0].view(one)
        for r in range(gamma.shape[0]):
            d_beta[r] = grad[:, r].sum(dims, dtype=gamma.dtype)
            d_gamma[r] = (grad[:, r] * normal).sum(dims, dtype=gamma.dtype)
            if r > 0:
                g.addcmul_(grad[:, r], gamma[r].view(one))
        # Centre first, then project: the other order loses two digits in sums that the norm makes nearly zero.
        g.sub_((g.sum(dims) / m).view(one))
        pull = (g * normal).sum(dims) / m
        g.addcmul_(normal, pull.view(one), value=-1).mul_(rstd.view(one))
        return g.to(normal.dtype), d_gamma, d_beta, None


class ReplicatedBatchNorm2d(nn.Module):
    """Batch norm of `copies` tiled copies of x: [N, c, H, W] -> [N, copies*c, H, W]; copy r of channel j is channel r*c + j.

    Equal to `BatchNorm2d(copies*c)` of the tiled tensor, in outputs, gradients and running statistics, with c channels computed and
    saved. Parameters and running statistics are copies*c wide, the official layout: the running ones of two copies may differ after
    loading, and evaluation uses each its own. With copies=1 it is `BatchNorm2d`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_channels: int, copies: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_channels, self.copies, self.eps, self.momentum = num_channels, copies, eps, momentum
        wide = num_channels * copies
        self.weight = nn.Parameter(torch.ones(wide))
        self.bias = nn.Parameter(torch.zeros(wide))
        self.register_buffer("running_mean", torch.zeros(wide))
        self.register_buffer("running_var", torch.ones(wide))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.num_channels:
            raise ValueError(f"expected {self.num_channels} channels, got a tensor of shape {tuple(x.shape)}")
        if self.training:
            self.num_batches_tracked.add_(1)
        if self.copies == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )  # fmt: skip
        if not self.training:
            mul, add = (t.to(x.dtype) for t in self.affine())
            maps = (1, self.copies, self.num_channels, *([1] * (x.dim() - 2)))
            return torch.addcmul(add.view(maps), x.unsqueeze(1), mul.view(maps)).flatten(1, 2)
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"batch norm needs more than one value a channel in training, got a tensor of shape {tuple(x.shape)}")
        shape = (self.copies, self.num_channels)
        y, mean, var = _ReplicatedNorm.apply(x, self.weight.view(shape), self.bias.view(shape), self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.repeat(self.copies), self.momentum)
            self.running_var.lerp_(var.repeat(self.copies), self.momentum)
        out: Tensor = y.flatten(1, 2)
        return out

    def affine(self) -> tuple[Tensor, Tensor]:
        """Evaluation as one multiply and add a channel: (mul, add), both [copies*c]."""
        mul = self.weight * (self.running_var + self.eps).rsqrt()
        return mul, self.bias - self.running_mean * mul

    def extra_repr(self) -> str:
        return f"{self.num_channels}, copies={self.copies}, eps={self.eps}, momentum={self.momentum}"
