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
    """Training mode: x [N, c, ...], gamma, beta [R, c] -> y [N, R, c, ...]. Saves x once, on c channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma, mean, rstd)
        scale = gamma * rstd
        maps = (1, *gamma.shape, *([1] * (x.dim() - 2)))
        return torch.addcmul((beta - mean * scale).view(maps), x.unsqueeze(1), scale.view(maps))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gamma, mean, rstd = ctx.saved_tensors
        one = (1, -1, *([1] * (x.dim() - 2)))
        dims = (0, *range(2, x.dim()))
        m = x.numel() // x.shape[1]
        normal = (x - mean.view(one)).mul_(rstd.view(one))
        # A loop over copies: each pass reads what it needs, and no temporary has all copies' channels.
        d_gamma, d_beta = torch.empty_like(gamma), torch.empty_like(gamma)
        g = torch.zeros_like(x)
        for r in range(gamma.shape[0]):
            d_beta[r] = grad[:, r].sum(dims)
            d_gamma[r] = (grad[:, r] * normal).sum(dims)
            g.addcmul_(grad[:, r], gamma[r].view(one))
        # Centre first, then project: the other order loses two digits in sums that the norm makes nearly zero.
        g.sub_((g.sum(dims) / m).view(one))
        pull = (g * normal).sum(dims) / m
        g.sub_(normal.mul_(pull.view(one))).mul_(rstd.view(one))
        return g, d_gamma, d_beta, None, None


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
            mul, add = self.affine()
            maps = (1, self.copies, self.num_channels, *([1] * (x.dim() - 2)))
            return torch.addcmul(add.view(maps), x.unsqueeze(1), mul.view(maps)).flatten(1, 2)
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"batch norm needs more than one value a channel in training, got a tensor of shape {tuple(x.shape)}")
        with torch.no_grad():
            var, mean = torch.var_mean(x, (0, *range(2, x.dim())), correction=0)
            self.running_mean.lerp_(mean.repeat(self.copies), self.momentum)
            self.running_var.lerp_((var * (n / (n - 1))).repeat(self.copies), self.momentum)
            rstd = (var + self.eps).rsqrt()
        shape = (self.copies, self.num_channels)
        y: Tensor = _ReplicatedNorm.apply(x, self.weight.view(shape), self.bias.view(shape), mean, rstd)
        return y.flatten(1, 2)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Evaluation as one multiply and add a channel: (mul, add), both [copies*c]."""
        mul = self.weight * (self.running_var + self.eps).rsqrt()
        return mul, self.bias - self.running_mean * mul

    def extra_repr(self) -> str:
        return f"{self.num_channels}, copies={self.copies}, eps={self.eps}, momentum={self.momentum}"
