"""Which layers of a network can be made binary, and why the others are left."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from esbnn_core.convert.layers import padding_of
from esbnn_core.convert.survey import survey
from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryLayer

from torch import nn

__all__ = ["Choice", "Selection", "grouped_lines", "select_layers"]

Choice: TypeAlias = str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | Callable[[str, nn.Module], bool]
"""Names, globs (`layer3.*`), compiled regular expressions (the whole name must match), a sequence of these, or a function."""


@dataclass(frozen=True)
class Selection:
    """replaced: names of layers, in the order of running as far as it is known. kept: name -> reason, for the other layers.

    unsigned: those of `replaced` that are given no negative number (a ReLU in front), so that signs around 0 are all +1.
    """

    replaced: tuple[str, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    unsigned: tuple[str, ...] = ()

    def describe(self) -> str:
        """A line for what is replaced, one for every reason to keep."""
        return "\n".join(grouped_lines(dict.fromkeys(self.replaced, "become binary")) + grouped_lines(self.kept, "stay as they are: "))


def grouped_lines(reasons: Mapping[str, str], prefix: str = "") -> list[str]:
    """A line a reason: how many layers, and the names of the first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[reason].append(name)
    return [
        f"{len(names)} {prefix}{reason} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" for reason, names in groups.items()
    ]


def select_layers(
    model: nn.Module,
    include: Choice | None = None,
    exclude: Choice | None = None,
    keep_first_last: bool = True,
    example: Any = None,
) -> Selection:
    """Choose the layers that `binarize` replaces; changes nothing.

    Candidates are `nn.Conv2d` and `nn.Linear` themselves. Never taken: subclasses (their forward is their own), layers that the
    network does not call (as `nn.MultiheadAttention` and torchvision's Swin read weights: a replacement would do nothing), layers with
    hooks or with a weight that another module has too (they would be lost), padding that is not zeros, padding `same` of even kernels.
    Left unless included by its exact name: the first and the last layers (`keep_first_last`), those that no layer comes before or
    after, and depthwise convolutions, whose sums of k*k signs take k*k + 1 values only.

    example: an input of the model, batch included (a tuple for several); needed where torch.fx cannot trace the model.
    Raises `UserError` for a name or pattern that matches nothing, for a layer asked for by its exact name that cannot be taken, and
    where nothing is left.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | BinaryLayer)}
    names = _all_names(model, layers)
    everyone = [name for aliases in names.values() for name in aliases]
    wanted = None if include is None else _Chooser(include, everyone)
    unwanted = None if exclude is None else _Chooser(exclude, everyone)
    use = survey(model, layers, example)
    tied = _tied(model)
    kept: dict[str, str] = {}
    for name, layer in layers.items():
        if isinstance(layer, BinaryLayer):
            continue
        exact = wanted is not None and wanted.exactly(names[name])
        never = _impossible(layer, model.get_submodule(name.rpartition(".")[0])) or use.idle.get(name) or _shares(name, layer, tied)
        if wanted is not None and not wanted(names[name], layer):
            kept[name] = "not included"
        elif unwanted is not None and unwanted(names[name], layer):
            kept[name] = "excluded"
        elif never is not None:
            if exact:
                raise UserError(f"layer {name!r} cannot be made binary: {never}")
            kept[name] = never
        elif not exact and keep_first_last and name in use.ends:
            kept[name] = "first or last layer"
        elif not exact and isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            kept[name] = "depthwise"
    replaced = tuple(n for n in dict.fromkeys((*use.order, *layers)) if n not in kept and not isinstance(layers[n], BinaryLayer))
    if not replaced:
        raise UserError(
            f"nothing to binarize in {type(model).__name__}: " + ("; ".join(grouped_lines(kept)) or "it has no nn.Conv2d or nn.Linear")
        )
    return Selection(replaced, kept, tuple(name for name in replaced if name in use.unsigned))


class _Chooser:
    """Tells whether a layer, under any of its names, is meant."""

    def __init__(self, choice: Choice, everyone: Sequence[str]) -> None:
        self._function = choice if callable(choice) else None
        self._patterns: list[str | re.Pattern[str]] = []
        if not callable(choice):
            self._patterns = [choice] if isinstance(choice, str | re.Pattern) else list(choice)
        for pattern in self._patterns:
            if not isinstance(pattern, str | re.Pattern):
                raise UserError(f"layers are chosen by names, globs, compiled regular expressions or a function, not by {pattern!r}")
            if not any(_matches(pattern, name) for name in everyone):
                text = pattern if isinstance(pattern, str) else pattern.pattern
                close = difflib.get_close_matches(text, everyone, n=1, cutoff=0.3)
                raise UserError(f"no layer's name matches {text!r}" + (f"; the nearest is {close[0]!r}" if close else ""))

    def __call__(self, names: Iterable[str], layer: nn.Module) -> bool:
        if self._function is not None:
            return any(self._function(name, layer) for name in names)
        return any(_matches(pattern, name) for name in names for pattern in self._patterns)

    def exactly(self, names: Iterable[str]) -> bool:
        """Whether the layer was written out, and not only caught by a pattern."""
        return any(name in self._patterns for name in names)


def _matches(pattern: str | re.Pattern[str], name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    return pattern == name or fnmatch.fnmatchcase(name, pattern)


def _all_names(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Every name of each layer, by its first: one module may stand in several places."""
    first = {module: name for name, module in layers.items()}
    names: dict[str, list[str]] = {name: [] for name in layers}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in first:
            names[first[module]].append(name)
    return names


def _impossible(layer: nn.Module, parent: nn.Module) -> str | None:
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"{type(layer).__name__} is a subclass with behaviour of its own"
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads its weight without calling it, in evaluation"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks, which a replacement would lose"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" and padding_of(layer) != (0, 0):
            return f"padding_mode={layer.padding_mode!r}"
        if padding_of(layer) is None:
            return "padding 'same' of an even kernel"
    return None


def _tied(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that own each parameter, by the parameter's identity."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in {id(p) for p in module.parameters(recurse=False)}:
            owners[parameter].append(name)
    return owners


def _shares(name: str, layer: nn.Module, tied: Mapping[int, list[str]]) -> str | None:
    others = [other for other in tied.get(id(layer.weight), []) if other != name]
    return f"its weight is also that of {others[0]!r}" if others else None
