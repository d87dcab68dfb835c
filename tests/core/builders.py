"""Binary layers with parameters off their initial values, inputs, and the two ways of evaluating."""

from __future__ import annotations

from typing import Any

from esbnn_core import methods
from esbnn_core.nn import BinaryConv2d

import torch
from torch import Tensor, nn


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic that is not a latent weight moved off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and not key.endswith(("conv.weight", "R1", "R2")) and key != "weight":
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return module


def conv(method: str | methods.Method, *, seed: int = 0, **changes: Any) -> BinaryConv2d:
    torch.manual_seed(seed)
    arguments = {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": 1, "method": method, "bias": True, **changes}
    return shaken(BinaryConv2d(**arguments), seed)  # type: ignore[return-value]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape or (2, 6, 7, 7), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6))


def infer(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def express(module: nn.Module, x: Tensor) -> Tensor:
    """Evaluation by the training expression, which is taken where a gradient is wanted."""
    with torch.enable_grad():
        y = module(x.detach().requires_grad_())
    assert y.requires_grad
    return y.detach()
