"""Give the treatment to somebody else's network: binary layers in place of real ones, also with expanding-and-shrinking.

model = binarize(model, "recu")                                        # in place of nn.Conv2d and nn.Linear
model = binarize(model, "recu", plan=ESPlan.uniform(2))                # expanded, where a chain of layers allows it
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from esbnn_core import methods
from esbnn_core.convert.layers import binary_twin, replace_module, settle
from esbnn_core.convert.select import Selection, select_layers
from esbnn_core.es import ESPlan, Head
from esbnn_core.methods import Method

from torch import Tensor, nn

__all__ = ["Selection", "binarize", "select_layers"]

_log = logging.getLogger(__name__)
Choice: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool]


def binarize(
    model: nn.Module,
    method: str | Method = "irnet",
    *,
    include: Choice | None = None,
    exclude: Choice | None = None,
    keep_first_last: bool = True,
    example: Tensor | None = None,
    plan: ESPlan | None = None,
    head: Head = "n",
    shift: bool | None = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Replace convolutions and linear layers of `model` by binary ones; returns the changed copy (or `model` if `inplace`).

    method, options: the binarization. include, exclude: globs over module names (`layer3.*`), or a function of (name, module); see
    `select_layers` for what is taken by default and what never is. keep_first_last: leave the first and the last layer real.
    example: an input of the model, batch included; with it first and last are those that run first and last, and layers that see no
    negative input (a ReLU in front: their sign is constant) are named in a warning. shift: learn a shift in front of each sign.
    Weights and biases are carried over, under their names.

    plan: settings of tau and groups. The network is then traced with torch.fx, and expanded where convolution, batch norm, activations,
    pools and sums follow one another; `head` says what a classifier behind it reads: `n` as before, `full` a widened one. Expanded layers
    have weights of another shape, made anew. Returns a `torch.fx.GraphModule`.

    Raises `UserError` where nothing is left to replace or a layer asked for by name cannot be, `ESError` for impossible settings.
    """
    chosen = methods.get(method, **options)
    model = model if inplace else copy.deepcopy(model)
    selection = select_layers(model, include, exclude, keep_first_last, example)
    _log.info("%s", selection.describe())
    if plan is not None and plan != ESPlan.none():
        from esbnn_core.convert.expand import expand

        return expand(model, chosen, selection, plan, head, shift)
    twins: dict[int, nn.Module] = {}
    for name in selection.replaced:
        old = model.get_submodule(name)
        if id(old) not in twins:  # a module used under two names stays one module
            twins[id(old)] = settle(binary_twin(old, chosen, shift), old)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in twins:
            replace_module(model, name, twins[id(module)])
    return model
