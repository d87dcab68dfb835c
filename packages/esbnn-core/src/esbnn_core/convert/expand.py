"""Expanding-and-shrinking of a traced network.

What is understood: convolution -> batch norm (which makes the copies) -> operations that keep channels apart (activations, pools, dropout)
-> the next convolution; sums; a flattened map of one pixel in front of linear layers. Everything else ends a region: blocks are averaged
in front of it, and what it gives is one block.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from esbnn_core.convert.layers import binary_twin, padding_of, replace_module, settle
from esbnn_core.convert.select import Selection
from esbnn_core.errors import ESError, UserError
from esbnn_core.es import ESPlan, Head, Join, Layer, Wiring, resolve
from esbnn_core.functional import adapt_blocks
from esbnn_core.methods import Method
from esbnn_core.nn import BinaryConv2d, ReplicatedBatchNorm2d

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["expand"]

# Operations without parameters of a channel that act on each channel alone.
_PASSING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_PASSING_CALLS = {
    torch.relu, F.relu, F.relu6, F.hardtanh, F.hardswish, F.silu, F.gelu, F.leaky_relu, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, "relu", "relu_", "clamp", "contiguous",
}  # fmt: skip
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ONE_PIXEL = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass
class _Region:
    """What the walk over the graph collects. edge: node -> name of the tensor it holds, for nodes that carry channels."""

    layers: list[Layer] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    edge: dict[fx.Node, str] = field(default_factory=dict)
    convs: dict[str, tuple[fx.Node, fx.Node]] = field(default_factory=dict)  # layer -> (convolution, its batch norm)
    one_pixel: set[fx.Node] = field(default_factory=set)
    flat: set[fx.Node] = field(default_factory=set)
    obstacles: list[str] = field(default_factory=list)
    width: dict[str, int] = field(default_factory=dict)


def expand(model: nn.Module, method: Method, selection: Selection, plan: ESPlan, head: Head, shift: bool | None) -> fx.GraphModule:
    """See `esbnn_core.convert.binarize`."""
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever a foreign forward does with a proxy
        raise UserError(f"{type(model).__name__} cannot be traced by torch.fx, so its chains of layers are not known: {error}") from error
    binary = set(selection.replaced)
    region = _walk(traced, binary)
    expanded = [layer for layer in region.layers if not layer.real]
    if not expanded:
        raise ESError(
            "no chain of binary convolution and batch norm can be expanded"
            + (f"; first obstacle: {region.obstacles[0]}" if region.obstacles else "")
        )
    wiring = resolve(region.layers, region.joins, plan, head)
    _rewrite(traced, region, wiring, method, shift)
    for name in selection.replaced:  # binary layers outside the region: plain ones
        old = traced.get_submodule(name)
        if isinstance(old, nn.Conv2d | nn.Linear) and name not in region.convs:
            replace_module(traced, name, settle(binary_twin(old, method, shift), old))
    traced.graph.lint()
    traced.recompile()
    return traced


def _walk(traced: fx.GraphModule, binary: set[str]) -> _Region:
    region = _Region()
    modules = dict(traced.named_modules())
    norms = {}  # convolution -> the batch norm that alone reads it
    for node in traced.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) is nn.Conv2d and len(node.users) == 1:
            (user,) = node.users
            norm = modules.get(str(user.target)) if user.op == "call_module" else None
            if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats:
                norms[node] = user
    for node in traced.graph.nodes:
        _visit(node, modules, binary, norms, region)
    return region


def _visit(node: fx.Node, modules: dict[str, nn.Module], binary: set[str], norms: dict[fx.Node, fx.Node], region: _Region) -> None:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if type(module) is nn.Conv2d and node in norms and module.groups == 1 and source is not None:
        name = str(node.target)
        _read(region, source, module.in_channels)
        writes = f"{name}.out"
        like = _around(node, modules, binary) if name not in binary else None
        wide = region.edge.get(source)
        if name in binary or like is not None or wide is None or wide.startswith("raw:"):
            region.layers.append(
                Layer(
                    name,
                    region.edge[source],
                    writes,
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size[0],
                    0,
                    name not in binary,
                    like,
                )
            )
            region.convs[name] = (node, norms[node])
            region.edge[norms[node]] = writes
            region.width[writes] = module.out_channels
            return
    if node in region.edge:  # a batch norm that a convolution has claimed
        return
    passing = isinstance(module, _PASSING_MODULES) or (node.op in ("call_function", "call_method") and node.target in _PASSING_CALLS)
    if passing and source in region.edge:
        region.edge[node] = region.edge[source]
        if (isinstance(module, _ONE_PIXEL) and module.output_size in (1, (1, 1))) or source in region.one_pixel:
            region.one_pixel.add(node)
        return
    if node.op in ("call_function", "call_method") and node.target in _SUMS:
        parts = [a for a in node.args if isinstance(a, fx.Node)]
        if len(parts) == 2 and all(p in region.edge for p in parts):
            a, b = (region.edge[p] for p in parts)
            if region.width[a] == region.width[b]:
                region.edge[node] = f"{node.name}.sum"
                region.width[region.edge[node]] = region.width[a]
                region.joins.append(Join((a, b), region.edge[node]))
                return
    flattening = isinstance(module, nn.Flatten) or (node.op == "call_function" and node.target is torch.flatten) or node.target == "flatten"
    if flattening and source in region.one_pixel:
        region.edge[node] = region.edge[source]
        region.flat.add(node)
        return
    if node.op not in ("placeholder", "output", "get_attr") and any(a in region.edge for a in node.all_input_nodes):
        region.obstacles.append(f"{node.name} ({type(module).__name__ if module is not None else node.target})")


def _read(region: _Region, source: fx.Node, channels: int) -> None:
    """Make `source` an edge of one block if it is none yet: the image, or what an operation outside the region gives."""
    if source not in region.edge:
        region.edge[source] = f"raw:{source.name}"
        region.width[region.edge[source]] = channels


def _around(node: fx.Node, modules: dict[str, nn.Module], binary: set[str]) -> str | None:
    """The binary convolution that reads the same tensor as this real 1x1: it is the shortcut around it."""
    module = modules[str(node.target)]
    if not isinstance(module, nn.Conv2d) or tuple(module.kernel_size) != (1, 1):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    siblings = [str(user.target) for user in source.users if user.op == "call_module" and str(user.target) in binary]
    return siblings[0] if siblings else None


def _rewrite(traced: fx.GraphModule, region: _Region, wiring: Wiring, method: Method, shift: bool | None) -> None:
    for name, (_, norm_node) in region.convs.items():
        slot = wiring[name]
        old, norm = traced.get_submodule(name), traced.get_submodule(str(norm_node.target))
        assert isinstance(old, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        i, o, binary = slot.channels_in(old.in_channels), slot.filters(old.out_channels), not _is_real(region, name)
        if binary:
            padding = padding_of(old)
            assert padding is not None
            new: nn.Module = settle(
                BinaryConv2d(
                    i, o, (old.kernel_size[0], old.kernel_size[1]), (old.stride[0], old.stride[1]), padding,
                    (old.dilation[0], old.dilation[1]), slot.groups, old.bias is not None, method, shift=shift,
                ),
                old,
            )  # fmt: skip
        elif (i, o) == (old.in_channels, old.out_channels):
            new = old
        else:
            new = nn.Conv2d(i, o, old.kernel_size, old.stride, old.padding, old.dilation, slot.groups, old.bias is not None)  # type: ignore[arg-type]
        replace_module(traced, name, new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training))
        wide = ReplicatedBatchNorm2d(o, slot.copies, norm.eps, 0.1 if norm.momentum is None else norm.momentum)
        with torch.no_grad():
            if wide.weight.numel() == norm.weight.numel() * slot.copies:  # a layer that is not shrunk: every copy begins as its own
                for mine, theirs in ((wide.weight, norm.weight), (wide.bias, norm.bias)):
                    mine.copy_(theirs.repeat(slot.copies))
                wide.running_mean.copy_(norm.running_mean.repeat(slot.copies))  # type: ignore[union-attr]
                wide.running_var.copy_(norm.running_var.repeat(slot.copies))  # type: ignore[union-attr]
        replace_module(traced, str(norm_node.target), wide.to(device=norm.weight.device, dtype=norm.weight.dtype).train(norm.training))
    _adapt(traced, region, wiring)


def _is_real(region: _Region, name: str) -> bool:
    return next(layer.real for layer in region.layers if layer.name == name)


def _adapt(traced: fx.GraphModule, region: _Region, wiring: Wiring) -> None:
    """Where a tensor's number of blocks is not what its reader wants, tile it or average its blocks."""
    convs = {conv: name for name, (conv, _) in region.convs.items()}
    inside = set(region.edge) | set(convs)
    for node in list(traced.graph.nodes):
        for source in node.all_input_nodes:
            edge = region.edge.get(source)
            if edge is None or edge not in wiring.edges:
                continue
            have = wiring.channels(edge) if not edge.startswith("raw:") else region.width[edge]
            if node in convs:
                want = wiring[convs[node]].channels_in(region.width[edge])
            elif node in region.edge and node.op != "placeholder":
                want = wiring.channels(region.edge[node])
            elif _widen(traced, node, source, region, have):
                continue
            elif node.op == "output" or node not in inside:
                want = region.width[edge]
            else:
                continue
            if want != have:
                with traced.graph.inserting_before(node):
                    adapted = traced.graph.call_function(adapt_blocks, (source, want))
                node.replace_input_with(source, adapted)


def _widen(traced: fx.GraphModule, node: fx.Node, source: fx.Node, region: _Region, have: int) -> bool:
    """Widen a linear layer behind a flattened map to the channels that there are; whether it is one."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if type(module) is not nn.Linear or source not in region.flat:
        return False
    if module.in_features != have:
        wide = nn.Linear(have, module.out_features, module.bias is not None).to(device=module.weight.device, dtype=module.weight.dtype)
        if wide.bias is not None and module.bias is not None:
            wide.bias.data.copy_(module.bias.data)
        replace_module(traced, str(node.target), wide.train(module.training))
    return True
