"""Give the treatment to somebody else's network: binary layers in place of real ones, also with expanding-and-shrinking.

`binarize(model, "recu")` puts binary layers in place of `nn.Conv2d` and `nn.Linear`; with `plan=ESPlan.uniform(2)` they are expanded where
a chain of layers allows it; `report_of` says what was replaced, what was kept, and why.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Any

from esbnn_core import methods
from esbnn_core.convert.expand import Expansion, expand
from esbnn_core.convert.layers import binary_twin, replace_module
from esbnn_core.convert.select import Choice, Selection, grouped_lines, select_layers
from esbnn_core.errors import UserError
from esbnn_core.es import ESPlan, Head
from esbnn_core.methods import Method

from torch import fx, nn

__all__ = ["Choice", "Conversion", "Expansion", "Selection", "binarize", "report_of", "select_layers"]

_log = logging.getLogger(__name__)
_REPORT = "esbnn_conversion"


@dataclass(frozen=True)
class Conversion:
    """What `binarize` did. expansion: only with a plan."""

    method: str
    selection: Selection
    expansion: Expansion | None = None

    def describe(self) -> str:
        """What was done, a line for each kind of thing."""
        lines = [f"method {self.method}", self.selection.describe()]
        if self.expansion is not None:
            done = self.expansion
            settings = {n: f"expanded with tau={s.tau}, groups={s.groups}, {s.copies} copies" for n, s in done.slots.items()}
            lines += grouped_lines(settings)
            lines += grouped_lines(done.plain, "binary but not expanded: ")
            lines += grouped_lines(dict.fromkeys(done.averaged, "blocks are averaged in front of"), "operations: ")
            lines += grouped_lines(dict.fromkeys(done.tiled, "one block is tiled in front of"), "operations: ")
            lines += grouped_lines(dict.fromkeys(done.anew, "initialised anew, their shape changed"), "parameters: ")
        return "\n".join(lines)


def binarize(
    model: nn.Module,
    method: str | Method = "irnet",
    *,
    include: Choice | None = None,
    exclude: Choice | None = None,
    keep_first_last: bool = True,
    example: Any = None,
    plan: ESPlan | None = None,
    head: Head = "n",
    shift: bool | None = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Replace convolutions and linear layers of `model` by binary ones; returns the changed copy (or `model` if `inplace`).

    method, options: the binarization. include, exclude: names, globs (`layer3.*`), compiled regular expressions, or a function of
    (name, module); see `select_layers` for what is taken by default and what never is. keep_first_last: leave the first and the last
    layers real. example: an input of the model, batch included (a tuple for several), where torch.fx cannot trace the model. shift: learn
    a shift in front of each sign; None: where the method has it. Weights and biases are carried over, under their names.

    plan: settings of tau and groups. The network is then traced, and expanded where convolution, batch norm, activations, pools and sums
    follow one another; 1x1 shortcuts take the setting of the layer that they go around and have no entry in the plan; a new stage (of
    `ESPlan.stages`) begins where maps get smaller. `head`: what a classifier behind it reads (Table 9): `n` as before, `full` tau*groups
    times as much, `one` 1/tau of it. Parameters whose shape changes are made anew. Returns a `torch.fx.GraphModule`.

    `report_of` says what was done. A warning names layers whose signs would all be +1, since only numbers >= 0 reach them.
    Raises `UserError` where nothing is left to replace or a layer asked for by name cannot be, `ESError` for impossible settings and
    networks without anything to expand.
    """
    chosen = methods.get(method, **options)
    expanded = plan is not None and plan != ESPlan.none()
    if expanded and inplace:
        raise UserError("inplace=True cannot be combined with a plan: an expanded network is a new torch.fx.GraphModule")
    model = model if inplace else copy.deepcopy(model)
    selection = select_layers(model, include, exclude, keep_first_last, example)
    _warn_of_constant_signs(selection, chosen, shift)
    if expanded:
        assert plan is not None
        model, expansion = expand(model, chosen, selection.replaced, plan, head, shift)
        return _reported(model, Conversion(chosen.name, selection, expansion))
    twins: dict[nn.Module, nn.Module] = {}
    for name in selection.replaced:
        old = model.get_submodule(name)
        assert isinstance(old, nn.Conv2d | nn.Linear)
        twins[old] = binary_twin(old, chosen, shift)
    if model in twins:  # a single layer
        model = twins[model]
    else:
        for name, module in list(model.named_modules(remove_duplicate=False)):  # a module in two places stays one module
            if module in twins:
                replace_module(model, name, twins[module])
    return _reported(model, Conversion(chosen.name, selection))


def report_of(model: nn.Module) -> Conversion:
    """What the last `binarize` did to make this model. Raises `UserError` for a model that it did not make."""
    found = getattr(model, _REPORT, None)
    if found is None and isinstance(model, fx.GraphModule):
        found = model.meta.get(_REPORT)
    if not isinstance(found, Conversion):
        raise UserError(f"this {type(model).__name__} was not made by binarize")
    return found


def _reported(model: nn.Module, conversion: Conversion) -> nn.Module:
    setattr(model, _REPORT, conversion)
    if isinstance(model, fx.GraphModule):
        model.meta[_REPORT] = conversion  # deepcopy of a graph module keeps this and not the attribute, pickle the reverse
    _log.info("%s", conversion.describe())
    return model


def _warn_of_constant_signs(selection: Selection, method: Method, shift: bool | None) -> None:
    around_zero = type(method).threshold is Method.threshold and not (method.shifted if shift is None else shift)
    if selection.unsigned and around_zero:
        some = ", ".join(selection.unsigned[:3]) + (", ..." if len(selection.unsigned) > 3 else "")
        warnings.warn(
            f"{len(selection.unsigned)} layers see no negative input, so that all their signs are +1 ({some}): use shift=True, a method "
            f"with a threshold of its own (reactnet, rbnn, siman, adabin, dorefa), or Hardtanh in place of ReLU",
            stacklevel=3,
        )
