"""The hooks that a trainer calls: schedules and weight projections before a step, bookkeeping after it.

The same three functions serve any loop (ours, mmengine's, the user's own): `watch` once, `begin_step` before every optimizer step's
first micro-batch, `ema_refresh` after weights were averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from esbnn_core.nn.layers import BinaryLayer
from esbnn_core.nn.unit import BinaryUnit

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Progress", "begin_step", "binary_layers", "ema_refresh", "flip_rate", "watch"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands; a pure value that is rebuilt from the step number on resuming.

    step, steps: optimizer steps done and in all. epoch, epochs: likewise. step_in_epoch: 0 at an epoch's first step.
    per: whether schedules move once an epoch, as in the official codes, or with every step.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    step_in_epoch: int
    per: Literal["epoch", "step"] = "epoch"

    @classmethod
    def at(cls, step: int, steps_per_epoch: int, epochs: int, per: Literal["epoch", "step"] = "epoch") -> Progress:
        """The progress before optimizer step number `step` (from 0)."""
        epoch, inside = divmod(step, steps_per_epoch)
        return cls(step, steps_per_epoch * epochs, epoch, epochs, inside, per)

    @property
    def p(self) -> float:
        """The part done, in [0, 1]: what every schedule is a function of."""
        done, total = (self.epoch, self.epochs) if self.per == "epoch" else (self.step, self.steps)
        return done / total if total else 0.0

    @property
    def first_of_epoch(self) -> bool:
        return self.step_in_epoch == 0


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """The binary layers of a model with their names, in the order of its modules."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryLayer):
            yield name, module


@torch.no_grad()
def begin_step(model: nn.Module, progress: Progress) -> None:
    """Bring every binary layer to this step: set its schedule's scalars and project its latent weights, once a step.

    Call it before the first forward of an optimizer step; a second call in the same step changes nothing. Any module with a method
    `begin_step(progress)` takes part.
    """
    for module in model.modules():
        hook = getattr(module, "begin_step", None)
        if hook is not None:
            hook(progress)


def watch(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Tell the model's binary layers after each optimizer step that their weights moved; returns the hook's handle.

    Needed since fused optimizers change weights without a trace that a layer could see.
    """

    def moved(*_: Any) -> None:
        for module in model.modules():
            if isinstance(module, BinaryLayer | BinaryUnit):
                module.weights_moved()

    return optimizer.register_step_post_hook(moved)


@torch.no_grad()
def ema_refresh(average: nn.Module, source: nn.Module) -> None:
    """Mend what averaging the weights of `source` spoils in `average`, a model of the same structure; call it before using `average`.

    Rotations are taken over (an average of rotations is none), stored codes (SiMaN's B) are made again from the averaged weights,
    cached forms are dropped.
    """
    for mine, theirs in zip(average.modules(), source.modules(), strict=True):
        if isinstance(mine, BinaryLayer) and isinstance(theirs, BinaryLayer):
            for name in mine.method.copied:
                mine.state[name].copy_(theirs.state[name])
            mine.refresh()
        elif isinstance(mine, BinaryUnit):
            mine.weights_moved()


@torch.no_grad()
def flip_rate(model: nn.Module, bits: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """Share of the binary weights whose bit differs from `bits`, and the bits now (both by layer name; first call: 0)."""
    now = {name: layer.code().bits.clone() for name, layer in binary_layers(model)}
    total = sum(b.numel() for b in now.values())
    flips = sum(int((now[name] != bits[name]).sum()) for name in now if name in bits)
    return (flips / total if total else 0.0), now
