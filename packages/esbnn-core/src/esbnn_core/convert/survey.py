"""How a network uses its layers: which run first and last, which never run, which are given no negative input."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esbnn_core.convert.norms import inner_stages
from esbnn_core.convert.trace import both_modes, in_mode
from esbnn_core.errors import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["Survey", "survey"]

_NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_NON_NEGATIVE_CALLS = {
    torch.relu, F.relu, F.relu6, torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softmax, torch.softmax, "relu", "relu_", "sigmoid",
}  # fmt: skip
# What gives no negative number when it is given none.
_KEEPING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
_KEEPING_CALLS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, torch.flatten, torch.mean,
    "flatten", "mean", "view", "reshape", "contiguous",
}  # fmt: skip
_ARITHMETIC = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul, "add", "add_", "mul", "mul_"}


@dataclass(frozen=True)
class Survey:
    """order: layers in the order of running. ends: those that no layer comes before, or none after. idle: layer -> why it never runs.

    unsigned: layers that are given no negative number.
    """

    order: tuple[str, ...]
    ends: frozenset[str]
    idle: Mapping[str, str]
    unsigned: frozenset[str]


def survey(model: nn.Module, layers: Mapping[str, nn.Module], example: Any = None) -> Survey:
    """Look at the graph that torch.fx traces and, if there is an example, at a run; with neither, at the order of declaration.

    Raises `UserError` if the network does not run on the example.
    """
    if "" in layers:  # the network is a single layer
        return Survey(("",), frozenset(("",)), {}, frozenset())
    try:
        graphs = both_modes(model)
    except UserError:
        graphs = None
    seen = None if graphs is None else _by_graph(graphs, model, layers)
    if example is not None:
        run = _by_run(model, layers, example)
        if seen is None:
            return run
        return Survey(seen.order, seen.ends, seen.idle, run.unsigned)
    if seen is not None:
        return seen
    names = tuple(layers)
    return Survey(names, frozenset((names[0], names[-1])) if names else frozenset(), _by_source(model, layers), frozenset())


def _by_graph(graphs: tuple[fx.Graph, fx.Graph], model: nn.Module, layers: Mapping[str, nn.Module]) -> Survey:
    modules = dict(model.named_modules())
    order: dict[str, None] = {}
    ends: set[str] = set()
    entered: set[str] = set()
    read: set[str] = set()
    unsigned: dict[str, bool] = {}
    for graph in reversed(graphs):  # evaluation gives the order; training may add auxiliary classifiers
        behind: dict[fx.Node, bool] = {}
        positive: set[fx.Node] = set()
        for node in graph.nodes:
            name = str(node.target)
            is_layer = node.op == "call_module" and name in layers
            if node.op == "call_module":
                entered.add(name)
            elif node.op == "get_attr":
                read.add(name)
            before = any(behind[source] for source in node.all_input_nodes)
            if is_layer:
                order.setdefault(name)
                given = node.args[0] if node.args else None
                unsigned[name] = unsigned.get(name, True) and isinstance(given, fx.Node) and given in positive
                if not before:
                    ends.add(name)
            behind[node] = before or is_layer
            if _stays_positive(node, modules, positive):
                positive.add(node)
        ahead: dict[fx.Node, bool] = {}
        for node in reversed(graph.nodes):
            after = any(ahead[user] for user in node.users)
            is_layer = node.op == "call_module" and str(node.target) in layers
            if is_layer and not after:
                ends.add(str(node.target))
            ahead[node] = after or is_layer
    idle = {}
    for name in layers:
        inside = any(name == other or name.startswith(f"{other}.") for other in entered)  # torch's own composite modules are not entered
        if not inside:
            direct = f"{name}.weight" in read
            idle[name] = "its weight is read without calling it" if direct else "never called by the network's forward"
    return Survey(tuple(order), frozenset(ends), idle, frozenset(name for name, yes in unsigned.items() if yes))


def _stays_positive(node: fx.Node, modules: Mapping[str, nn.Module], positive: set[fx.Node]) -> bool:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    call = node.target if node.op in ("call_function", "call_method") else None
    if isinstance(module, _NON_NEGATIVE) or call in _NON_NEGATIVE_CALLS:
        return True
    stages = inner_stages(module)
    if stages:  # a batch norm with an activation inside
        return isinstance(stages[-1], _NON_NEGATIVE)
    if call in _ARITHMETIC:
        return all(a in positive if isinstance(a, fx.Node) else isinstance(a, int | float) and a >= 0 for a in node.args)
    if call is torch.cat:
        return bool(node.all_input_nodes) and all(source in positive for source in node.all_input_nodes)
    if isinstance(module, _KEEPING) or call in _KEEPING_CALLS:
        return bool(node.args) and isinstance(node.args[0], fx.Node) and node.args[0] in positive
    return False


def _by_run(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> Survey:
    order: list[str] = []  # with repetitions: a layer that runs twice may be last although it was first
    unsigned: dict[str, bool] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            order.append(name)
            positive = bool(inputs) and isinstance(inputs[0], Tensor) and bool((inputs[0] >= 0).all())
            unsigned[name] = unsigned.get(name, True) and positive

        handles.append(module.register_forward_pre_hook(note))

    for name, module in layers.items():
        watch(name, module)
    try:
        with torch.no_grad(), in_mode(model, False):
            model(*example) if isinstance(example, tuple | list) else model(example)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{type(model).__name__} does not run on the example: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    idle = {name: "it does not run on the example in evaluation" for name in layers if name not in unsigned}
    return Survey(
        tuple(dict.fromkeys(order)),
        frozenset((order[0], order[-1])) if order else frozenset(),
        idle,
        frozenset(name for name, yes in unsigned.items() if yes),
    )


def _by_source(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers whose weight the forward of the module around them reads by name."""
    idle = {}
    for name in layers:
        parent, _, leaf = name.rpartition(".")
        try:
            source = inspect.getsource(inspect.unwrap(type(model.get_submodule(parent)).forward))
        except (OSError, TypeError):
            continue
        if re.search(rf"self\.{re.escape(leaf)}\.weight\b(?!\.)", source):
            idle[name] = "its weight is read without calling it"
    return idle
