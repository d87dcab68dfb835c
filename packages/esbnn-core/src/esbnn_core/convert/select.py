"""Which layers of a network can be made binary, and why the others are left."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from esbnn_core.convert.layers import padding_of
from esbnn_core.errors import UserError

import torch
from torch import Tensor, nn

__all__ = ["Selection", "select_layers"]


@dataclass(frozen=True)
class Selection:
    """replaced: names of layers, in the order of running as far as it is known. kept: name -> reason, for the other layers."""

    replaced: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """A line for what is replaced, one for every reason to keep."""
        lines = [f"{len(self.replaced)} layers become binary: {', '.join(self.replaced[:4])}{' ...' if len(self.replaced) > 4 else ''}"]
        for reason in sorted(set(self.kept.values())):
            names = [name for name, why in self.kept.items() if why == reason]
            lines.append(f"{len(names)} stay as they are ({reason}): {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
        return "\n".join(lines)


def select_layers(
    model: nn.Module,
    include: str | Sequence[str] | Callable[[str, nn.Module], bool] | None = None,
    exclude: str | Sequence[str] | Callable[[str, nn.Module], bool] | None = None,
    keep_first_last: bool = True,
    example: Tensor | None = None,
) -> Selection:
    """Choose the layers that `binarize` replaces.

    Candidates are `nn.Conv2d` and `nn.Linear` themselves. Always kept: subclasses (their forward is their own, or their weight is read
    without calling them, as in `nn.MultiheadAttention`), padding that is not zeros, padding `same` of even kernels. Kept unless
    included by name: the first and the last layer (`keep_first_last`), and depthwise convolutions, whose sums of k*k signs can take
    k*k + 1 values only.
    """
    layers: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    wanted, unwanted = _matcher(include, layers), _matcher(exclude, layers)
    order, unsigned = _order(model, layers, example)
    ends = {order[0], order[-1]} if order else set()
    kept: dict[str, str] = {}
    for name, layer in layers.items():
        by_name = include is not None and wanted(name, layer)
        reason = _impossible(layer)
        if reason is not None and by_name and not callable(include):
            raise UserError(f"layer {name!r} cannot be made binary: {reason}")
        if reason is None and include is not None and not by_name:
            reason = "not included"
        if reason is None and exclude is not None and unwanted(name, layer):
            reason = "excluded"
        if reason is None and not by_name and keep_first_last and name in ends:
            reason = "first or last layer"
        if reason is None and not by_name and isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            reason = "depthwise"
        if reason is not None:
            kept[name] = reason
    replaced = tuple(name for name in (*order, *(n for n in layers if n not in order)) if name not in kept)
    if not replaced:
        raise UserError(
            f"nothing to binarize in {type(model).__name__}: "
            + (Selection((), kept).describe().replace("\n", "; ") if layers else "no layers")
        )
    constant = [name for name in replaced if name in unsigned]
    if constant:
        warnings.warn(
            f"{len(constant)} layers see no negative input, so their signs are constant where the threshold is 0 ({', '.join(constant[:3])}...): "
            f"use shift=True, a method with a threshold of its own, or an activation with both signs such as Hardtanh instead of ReLU",
            stacklevel=3,
        )
    return Selection(replaced, kept)


def _impossible(layer: nn.Module) -> str | None:
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"{type(layer).__name__} is a subclass with behaviour of its own"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" and padding_of(layer) != (0, 0):
            return f"padding_mode={layer.padding_mode!r}"
        if padding_of(layer) is None:
            return "padding 'same' of an even kernel"
    return None


def _matcher(choice: Any, layers: dict[str, nn.Module]) -> Callable[[str, nn.Module], bool]:
    if choice is None or callable(choice):
        return choice or (lambda name, module: True)
    patterns = [choice] if isinstance(choice, str) else list(choice)
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=1, cutoff=0.3)
            raise UserError(f"no layer's name matches {pattern!r}" + (f"; the nearest is {close[0]!r}" if close else ""))
    return lambda name, module: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _order(model: nn.Module, layers: dict[str, nn.Module], example: Tensor | None) -> tuple[list[str], set[str]]:
    """Names in the order of running, and those that saw no negative input; without an example, traced or declared order."""
    if example is None:
        return _traced_order(model, layers), set()
    order: list[str] = []
    unsigned: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name not in order:
                order.append(name)
                if inputs and isinstance(inputs[0], Tensor) and bool((inputs[0] >= 0).all()):
                    unsigned.add(name)

        return note

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return order, unsigned


def _traced_order(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception:  # whatever a foreign forward does with a proxy
        return list(layers)
    order = [str(node.target) for node in graph.nodes if node.op == "call_module" and node.target in layers]
    return order or list(layers)
