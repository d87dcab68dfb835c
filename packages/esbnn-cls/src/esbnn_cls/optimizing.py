"""Optimizer and learning rate of a recipe: timm's, with parameter groups by rules and rates as pure functions of the step."""

from __future__ import annotations

import re
from typing import Any

from esbnn_cls.recipe import Optimizer, Recipe, Rule
from esbnn_core.errors import UserError
from esbnn_core.training import binary_layers

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # timm re-exports without saying so
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # timm re-exports without saying so
from torch import nn

__all__ = ["LearningRate", "build_optimizer"]


def build_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """timm's optimizer with one group for every rule that took parameters and one for the rest; no other exceptions are made.

    Raises UserError for an unknown optimizer, an argument that it does not take, or a rule that takes no parameter.
    """
    binary = {f"{name}." for name, _ in binary_layers(model)}
    latent = {id(layer.weight) for _, layer in binary_layers(model)}
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds = _kinds(name, parameter, model, binary, latent)
            chosen = next((n for n, rule in enumerate(recipe.rules) if _takes(rule, name, parameter, kinds)), -1)
            groups.setdefault(chosen, []).append(parameter)
    for number, rule in enumerate(recipe.rules):
        if number not in groups:
            raise UserError(f"optimizer.rules[{number}] ({rule}) takes no parameter of this model; remove it or correct its name")
    params: list[dict[str, Any]] = []
    for number, members in sorted(groups.items()):
        own = recipe.rules[number] if number >= 0 else Rule()
        decay = recipe.weight_decay if own.weight_decay is None else own.weight_decay
        params.append({"params": members, "weight_decay": decay, "lr_scale": own.lr_scale})
    try:
        return create_optimizer_v2(
            params, opt=recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum, **recipe.args
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"optimizer.name={recipe.name} with {recipe.args or 'no further arguments'}: {error}") from error


def _kinds(name: str, parameter: nn.Parameter, model: nn.Module, binary: set[str], latent: set[int]) -> set[str]:
    kinds = {"binary"} if any(name.startswith(prefix) for prefix in binary) else set()
    if id(parameter) in latent:
        kinds.add("binary_weight")
    owner = model.get_submodule(name.rpartition(".")[0])
    if "norm" in type(owner).__name__.lower():
        kinds.add("norm")
    if name.endswith("bias"):
        kinds.add("bias")
    return kinds


def _takes(rule: Rule, name: str, parameter: nn.Parameter, kinds: set[str]) -> bool:
    if rule.name is not None and not re.search(rule.name, name):
        return False
    if rule.dims is not None and parameter.dim() != rule.dims:
        return False
    return rule.of is None or rule.of in kinds


class LearningRate:
    """Sets the groups' rates before a step. A pure function of the step: nothing of it needs to be saved.

    Schedules are timm's; `table` is ours, for codes whose rates are a list.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        self._optimizer, self._schedule, self._steps = optimizer, recipe.schedule, steps_per_epoch
        own = recipe.schedule
        self._timm: Any = None
        if own.name != "table":
            epochs = recipe.epochs - (own.warmup_epochs if own.warmup_prefix else 0)
            if epochs < 1:
                raise UserError(f"schedule.warmup_epochs={own.warmup_epochs} leaves none of epochs={recipe.epochs}")
            # timm applies milestone m at time m - 1 (in epochs or steps alike); ours means the beginning of epoch m. Half a unit, not a
            # whole one, so that no rounding of m times the steps of an epoch moves it.
            late = 0.5 if own.per == "epoch" else 0.5 / steps_per_epoch
            self._timm, _ = create_scheduler_v2(
                optimizer,
                sched=own.name,
                num_epochs=epochs,
                decay_epochs=own.decay_epochs,
                decay_milestones=[m + late for m in own.milestones],  # type: ignore[misc]  # fractions are fine
                decay_rate=own.decay_rate,
                min_lr=own.min_lr,
                warmup_lr=own.warmup_lr,
                warmup_epochs=own.warmup_epochs,
                warmup_prefix=own.warmup_prefix,
                step_on_epochs=own.per == "epoch",
                updates_per_epoch=steps_per_epoch,
            )

    def set(self, step: int) -> float:
        """Set every group's rate for optimizer step `step` (from 0); returns the first group's."""
        epoch = step // self._steps + self._schedule.shift
        if self._timm is None:
            rate = self._schedule.table[max(key for key in self._schedule.table if key <= epoch)]
            for group in self._optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
        elif self._schedule.per == "epoch":
            self._timm.step(epoch)
        else:
            self._timm.step_update(step + self._schedule.shift * self._steps)
        return float(self._optimizer.param_groups[0]["lr"])
