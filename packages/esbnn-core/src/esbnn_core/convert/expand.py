"""Expanding-and-shrinking of a traced network: find the region, resolve the plan for it, put its layers in place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from esbnn_core.convert.layers import Blocks, binary_twin, expanded_conv, replace_module
from esbnn_core.convert.norms import widened
from esbnn_core.convert.region import Region, Site, find_region
from esbnn_core.convert.trace import label, trace
from esbnn_core.errors import ESError
from esbnn_core.es import ESPlan, Head, Slot, Wiring, resolve
from esbnn_core.methods import Method

import torch
from torch import Tensor, fx, nn

__all__ = ["Expansion", "expand"]


@dataclass
class Expansion:
    """What a plan did. slots: setting and copies of every layer that has one. plain: binary layers without a setting, and why.

    anew: parameters of another shape than before, initialised anew. averaged, tiled: operations in front of which blocks are averaged to
    one, or one block is tiled: where the expanded part of the network ends and begins.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)
    tiled: list[str] = field(default_factory=list)


def expand(
    model: nn.Module, method: Method, chosen: Sequence[str], plan: ESPlan, head: Head, shift: bool | None
) -> tuple[fx.GraphModule, Expansion]:
    """Trace `model`, whose layers are used up, and make the chosen ones binary, expanded where a chain of layers allows it.

    Raises `UserError` if it cannot be traced; `ESError` if no layer can be expanded, naming what stands in the way of the first, or if
    the plan does not fit.
    """
    traced = trace(model)
    region = find_region(traced, chosen)
    plain = {name: region.plain.get(name, "only convolutions are expanded") for name in chosen if name not in region.sites}
    if all(site.kind != "binary" for site in region.sites.values()):
        name, reason = next(iter(plain.items()))
        raise ESError(f"no binary layer of {type(model).__name__} can be expanded; the first: {name!r}, {reason}")
    wiring = resolve(region.layers, region.joins, plan, head)
    done = Expansion({name: wiring[name] for name, site in region.sites.items() if site.kind != "source"}, plain)
    for name, site in region.sites.items():
        _place(traced, name, site, wiring[name], method, shift, done)
    for node in region.wide:
        m = wiring.edge(region.edge[node])[1]
        if m != 1:  # a parameter for every channel of every block
            _replace_norm(traced, str(node.target), int(region.block(node) * m), 1, m, done)
    _adapt(traced, region, wiring, done)
    for name in plain:
        old = traced.get_submodule(name)
        assert isinstance(old, nn.Conv2d | nn.Linear)
        replace_module(traced, name, binary_twin(old, method, shift))
    traced.graph.lint()
    traced.recompile()
    return traced, done


def _place(traced: fx.GraphModule, name: str, site: Site, slot: Slot, method: Method, shift: bool | None, done: Expansion) -> None:
    """A layer of the region and its norm in the widths of its slot."""
    if site.conv is not None:
        old = traced.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        new = binary_twin(old, method, shift, slot) if site.kind == "binary" else expanded_conv(old, slot)
        replace_module(traced, name, new)
        done.anew += [f"{name}.{key}" for key, p in old.named_parameters(recurse=False) if getattr(new, key).shape != p.shape]
    if slot.copies > 1 or slot.tau > 1:
        times = Fraction(slot.copies) if slot.tau == 1 else None  # filters that are new have no norm to take over
        _replace_norm(traced, str(site.norm.target), slot.filters(site.c_out), slot.copies, times, done)


def _replace_norm(traced: fx.GraphModule, name: str, filters: int, copies: int, times: Fraction | None, done: Expansion) -> None:
    new, anew = widened(traced.get_submodule(name), filters, copies, times)
    replace_module(traced, name, new)
    done.anew += [f"{name}.{key}" for key in anew]


def _adapt(traced: fx.GraphModule, region: Region, wiring: Wiring, done: Expansion) -> None:
    """Where a tensor's number of blocks is not what its reader wants, tile it or average its blocks."""
    layers = {site.conv: name for name, site in region.sites.items() if site.conv is not None}
    starts = {site.norm for site in region.sites.values() if site.kind == "source"}
    number = itertools.count()
    for node in list(traced.graph.nodes):
        for source in node.all_input_nodes:
            if source not in region.edge or node in region.neutral:
                continue
            block = region.block(source)
            have = Fraction(1) if source in region.raw else wiring.edge(region.edge[source])[1]
            if node in layers:
                want = Fraction(wiring[layers[node]].m_in)
            elif node in region.edge and node not in region.raw and node not in starts:
                want = wiring.edge(region.edge[node])[1]
            elif node in region.heads:
                _refit(traced, str(node.target), block, have, done)
                continue
            else:
                want = Fraction(1)
            if want != have:
                name = f"_blocks_{next(number)}"
                traced.add_module(name, Blocks(int(block * want)))
                with traced.graph.inserting_before(node):
                    node.replace_input_with(source, traced.graph.call_module(name, (source,)))
                if source in region.raw:
                    done.tiled.append(label(node))
                elif want == 1 and node not in layers and node not in region.edge:
                    done.averaged.append(label(node))


def _refit(traced: fx.GraphModule, name: str, features: int, m: Fraction, done: Expansion) -> None:
    """Give the classifier the m blocks that there are. Its weights are spread over them: it answers equal blocks as before."""
    old = traced.get_submodule(name)
    assert isinstance(old, nn.Linear)
    if m == 1:
        return
    new = nn.Linear(int(features * m), old.out_features, old.bias is not None).to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        if m >= 1:
            new.weight.copy_(old.weight.repeat(1, int(m)) / int(m))
        else:
            done.anew.append(f"{name}.weight")
        if isinstance(old.bias, Tensor):
            new.bias.copy_(old.bias)
    for key, parameter in old.named_parameters():
        new.get_parameter(key).requires_grad_(parameter.requires_grad)
    replace_module(traced, name, new.train(old.training))
