"""What a network has to keep: parameters, and the bytes of them that inference needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from esbnn_core.accounting.tally import is_batch_norm, kind_of
from esbnn_core.methods import Method
from esbnn_core.nn import BinaryLayer, BinaryUnit

import torch
from torch import nn

__all__ = ["Stored", "stored"]

REAL_BYTES = 4


@dataclass(frozen=True)
class Stored:
    """params_binary, params_real: trained parameters. packed_bytes: see `stored`."""

    kind: str
    params_binary: int
    params_real: int
    packed_bytes: int


def stored(model: nn.Module) -> dict[str, Stored]:
    """By module's name, for modules that keep something; a tensor that several share is the first one's.

    Bytes of inference, a rule of the network's structure and not of its values:

    - binary weights: one bit each, rounded up to whole bytes a layer;
    - a batch norm: a multiply and an add a channel (after the copies), whatever it was made from;
    - a binary layer's scale, bias and method state: a multiply and an add a filter, or nothing where a unit's norm follows directly and
      takes them in; one number more a filter for methods whose weights have a centre (AdaBin); what its sign learned (shifts, AdaBin's
      two values) as it is. State that only training needs (rotations, stored codes) is left out;
    - everything else: all parameters and persistent buffers of real numbers. A real number takes 4 bytes.
    """
    folded = {id(unit.conv) for unit in model.modules() if isinstance(unit, BinaryUnit) and unit.tail[:1] == "n"}
    found: dict[str, Stored] = {}
    seen: set[int] = set()
    inside: str | None = None  # the binary layer whose sub-modules are being visited
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        inside = None
        if isinstance(module, BinaryLayer):
            inside = name + "." if name else ""
            entry = _binary(module, id(module) in folded, seen)
        else:
            entry = _plain(module, seen)
        if entry.params_binary or entry.params_real or entry.packed_bytes:
            found[name] = entry
    return found


def _binary(layer: BinaryLayer, folded: bool, seen: set[int]) -> Stored:
    real = layer.weight_mode == "real"
    fresh = id(layer.weight) not in seen
    total = _new(layer.parameters(), seen)
    if not fresh:  # the whole layer's weight belongs to another; its own scales remain
        return Stored(kind_of(layer), 0, total, REAL_BYTES * total)
    weights = layer.weight.numel()
    numbers = 0 if folded else 2 * layer.out_channels
    if not real and _has_centre(layer.method):
        numbers += layer.out_channels
    if layer.sign is not None:
        numbers += sum(p.numel() for p in layer.sign.parameters())
    size = REAL_BYTES * weights if real else -(-weights // 8)
    return Stored(kind_of(layer), 0 if real else weights, total - (0 if real else weights), size + REAL_BYTES * numbers)


def _plain(module: nn.Module, seen: set[int]) -> Stored:
    numbers = real = _new(module.parameters(recurse=False), seen)
    mean = getattr(module, "running_mean", None)
    if is_batch_norm(module) and mean is not None:
        numbers = 2 * mean.numel() if id(mean) not in seen else 0
        seen.add(id(mean))
    else:
        kept = [b for name, b in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set]
        numbers += _new([b for b in kept if b.is_floating_point()], seen)
    return Stored(kind_of(module), 0, real, REAL_BYTES * numbers)


def _new(tensors: object, seen: set[int]) -> int:
    """Elements of the tensors that were not seen before."""
    count = 0
    for tensor in tensors:  # type: ignore[attr-defined]
        if id(tensor) not in seen:
            seen.add(id(tensor))
            count += tensor.numel()
    return count


@cache
def _has_centre(method: Method) -> bool:
    """Whether a weight's two values are not opposite, asked of a small weight that is not symmetric itself."""
    probe = torch.tensor([[1.0, 2.0], [4.0, 3.0]])[:, :, None, None]
    with torch.random.fork_rng(devices=[]):
        state = method.weight_state(probe)
    return bool(method.code(probe, state).mid.any())
