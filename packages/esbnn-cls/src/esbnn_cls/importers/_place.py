"""Putting official tensors into a module of ours, saying what went where, refusing what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from esbnn_cls.importers._names import IGNORED, candidates
from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryLayer

import torch
from torch import Tensor, nn

__all__ = ["ImportReport", "place"]


@dataclass
class ImportReport:
    """What an import did. matched: official key -> ours. ignored: key -> reason. absent: our keys the file need not have.

    at_threshold: latent weights exactly where their sign switches; torch.sign gives 0 there, one bit counts them as +1.
    """

    source: str
    matched: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    at_threshold: int = 0

    def describe(self) -> str:
        """For people: what matched in one line, and a line for every other fact."""
        lines = [f"{len(self.matched)} tensors of the {self.source} checkpoint matched"]
        reasons = sorted(set(self.ignored.values()))
        for reason in reasons:
            keys = [key for key, why in self.ignored.items() if why == reason]
            lines.append(f"{len(keys)} left out, such as {keys[0]}: {reason}")
        if self.absent:
            lines.append(f"{len(self.absent)} batch counters are not in the file and stay 0")
        if self.at_threshold:
            lines.append(
                f"{self.at_threshold} latent weights are exactly at their threshold: torch.sign gives 0 there, one bit counts them as +1"
            )
        return "\n".join(lines)


def place(module: nn.Module, tensors: Mapping[str, Tensor], source: str, one_convolution: bool = False) -> ImportReport:
    """Load official `tensors` into `module` (a network, a block, a unit or a layer of this package).

    Raises `UserError` that names every tensor without a place, every place without a tensor, and shapes that do not agree;
    the module is unchanged then.
    """
    target = module.state_dict()
    report = ImportReport(source)
    placed: dict[str, Tensor] = {}
    wrong: list[str] = []
    for key, value in tensors.items():
        key = key.removeprefix("module.")
        names = [name for name in candidates(key, one_convolution) if name in target and name not in placed]
        fitting = [name for name in names if _fits(value, target[name])]
        if fitting:
            placed[fitting[0]] = _cast(value, target[fitting[0]])
            report.matched[key] = fitting[0]
        elif names:
            wrong.append(f"{key} {tuple(value.shape)} does not fit {names[0]} {tuple(target[names[0]].shape)}")
        elif reason := next((why for pattern, why in IGNORED if re.fullmatch(pattern, key)), None):
            report.ignored[key] = reason
        else:
            wrong.append(f"{key} has no place")
    missing = [name for name in target if name not in placed]
    report.absent = [name for name in missing if name.endswith("num_batches_tracked")]
    lacking = [name for name in missing if name not in report.absent]
    if wrong or lacking:
        raise UserError(_explain(source, type(module).__name__, wrong, lacking))
    module.load_state_dict({**{name: target[name] for name in report.absent}, **placed})
    report.at_threshold = _at_threshold(module)
    return report


def _fits(value: Tensor, place: Tensor) -> bool:
    if value.shape == place.shape:
        return True
    # Broadcast ones (alpha [O,1,1]), flattened kernels ([O*I*k*k, 1]) and codes ([O,1,n]) hold the same numbers in the same order.
    squeezed = [n for n in value.shape if n != 1]
    return value.numel() == place.numel() and (squeezed == [n for n in place.shape if n != 1] or len(squeezed) <= 2)


def _cast(value: Tensor, place: Tensor) -> Tensor:
    value = value.detach().reshape(place.shape)
    return value > 0.5 if place.dtype == torch.bool else value.to(place.dtype)


def _explain(source: str, target: str, wrong: list[str], lacking: list[str]) -> str:
    parts = []
    if wrong:
        parts.append("; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""))
    if lacking:
        parts.append(f"nothing for {', '.join(lacking[:4])}" + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""))
    return f"this is not a {source} checkpoint of {target}: " + "; ".join(parts)


@torch.no_grad()
def _at_threshold(module: nn.Module) -> int:
    count = 0
    for layer in module.modules():
        if isinstance(layer, BinaryLayer) and layer.method.name not in ("siman",):
            count += int((layer.weight == 0).sum())
    return count
