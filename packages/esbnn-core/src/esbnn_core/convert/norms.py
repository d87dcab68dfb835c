"""Batch norms that can make copies: torch's own, and timm's, which has dropout and activation inside."""

from __future__ import annotations

from fractions import Fraction

from esbnn_core.convert.channelwise import module_keeps_channels
from esbnn_core.nn import ReplicatedBatchNorm2d

import torch
from torch import Tensor, nn

__all__ = ["inner_stages", "is_batch_norm", "widened"]

_WITH_ACTIVATION = "BatchNormAct2d"  # timm's; by name, since the core does not know timm


class _NormAct(ReplicatedBatchNorm2d):
    """A batch norm that makes copies, then dropout and activation, under the names that timm's has."""

    def __init__(self, num_channels: int, copies: int, eps: float, momentum: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(num_channels, copies, eps, momentum)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def inner_stages(module: nn.Module | None) -> tuple[nn.Module, ...]:
    """What a batch norm module does after its norm."""
    if isinstance(module, nn.BatchNorm2d) and type(module).__name__ == _WITH_ACTIVATION:
        return tuple(stage for stage in (module.drop, module.act) if isinstance(stage, nn.Module))
    return ()


def is_batch_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm that a `ReplicatedBatchNorm2d` can stand in for: affine, with running statistics."""
    if not isinstance(module, nn.BatchNorm2d) or not (module.affine and module.track_running_stats) or module.momentum is None:
        return False
    if type(module) is nn.BatchNorm2d:
        return True
    stages = inner_stages(module)
    return len(stages) == 2 and all(module_keeps_channels(s) and not (isinstance(s, nn.PReLU) and s.num_parameters > 1) for s in stages)


@torch.no_grad()
def widened(old: nn.Module, filters: int, copies: int, times: Fraction | None) -> tuple[nn.Module, list[str]]:
    """A batch norm of `copies` copies of `filters` channels in `old`'s place, or a PReLU of filters*copies slopes.

    times: how often `old`'s parameters and statistics are repeated; None, or less than 1: they begin anew, and their names are returned.
    """
    if isinstance(old, nn.PReLU):
        new: nn.Module = nn.PReLU(filters * copies)
    else:
        assert isinstance(old, nn.BatchNorm2d)
        assert old.momentum is not None
        stages = inner_stages(old)
        new = (
            _NormAct(filters, copies, old.eps, old.momentum, stages[0], stages[1])
            if stages
            else ReplicatedBatchNorm2d(filters, copies, old.eps, old.momentum)
        )
    first = next(old.parameters(recurse=False))
    new.to(device=first.device, dtype=first.dtype)
    anew = []
    for key, theirs in (*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)):
        mine = getattr(new, key)
        if times is not None and times >= 1:
            mine.copy_(theirs.repeat(int(times)) if theirs.dim() else theirs)
        elif isinstance(theirs, nn.Parameter):
            anew.append(key)
    for module in (new, *new.children()):
        module.training = old.training
    for key, parameter in old.named_parameters(recurse=False):
        new.get_parameter(key).requires_grad_(parameter.requires_grad)
    return new, anew
