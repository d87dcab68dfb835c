"""The sign in front of a binary layer, as a module with its method's own tensors."""

from __future__ import annotations

from esbnn_core.errors import UserError
from esbnn_core.methods import Method, Threshold

import torch
from torch import Tensor, nn

__all__ = ["Binarizer", "register_state"]


def register_state(module: nn.Module, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Register a method's tensors on a module, trained ones as parameters, others as buffers; returns their names."""
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return tuple(tensors)


class Binarizer(nn.Module):
    """The sign in front of a binary layer: x [N, C, ...] -> two values, by the method's rule.

    shift: learn a shift b of every channel, sign(x + b) (RSign); by default where the method has it.
    """

    def __init__(self, method: Method, channels: int, shift: bool | None = None) -> None:
        super().__init__()
        self.method = method
        self.channels = channels
        self._names = register_state(self, method.activation_state(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if (method.shifted if shift is None else shift) else None
        if self.bias is not None and type(method).threshold is not Method.threshold:
            raise UserError(f"method {method.name!r} has a threshold of its own; it cannot be combined with a learned shift")

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._names}

    def forward(self, x: Tensor, scalars: dict[str, float]) -> Tensor:
        if self.bias is not None:
            x = x + self.bias.view(-1, *([1] * (x.dim() - 2)))
        return self.method.activation(x, self.state, scalars, self.training)

    def threshold(self, x: Tensor) -> Threshold:
        """Where the bit switches, for x as it comes in (the learned shift included)."""
        if self.bias is None:
            return self.method.threshold(x, self.state)
        # x + b >= 0 is x >= -b, exactly.
        return Threshold(-self.bias.detach().unsqueeze(0))

    def extra_repr(self) -> str:
        return f"{self.method.name}, {self.channels}" + (", shift" if self.bias is not None else "")
