"""A network as a graph that is right in training and in evaluation.

Tracing runs `forward` once and writes down what happened, so whatever depends on `self.training` would be frozen in the mode of that run:
dropped paths would stay on in evaluation. Here both modes are traced; where only a flag differs it becomes a question asked at run time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryLayer, BinaryUnit, ReplicatedBatchNorm2d

from torch import fx, nn

__all__ = ["both_modes", "in_mode", "label", "trace"]

_LEAVES = (BinaryLayer, BinaryUnit, ReplicatedBatchNorm2d, nn.BatchNorm2d)
_MODE = "_asked_training_mode"


class _Mode(nn.Module):
    """Answers whether the network is in training mode."""

    def forward(self) -> bool:
        return self.training


class _Tracer(fx.Tracer):
    """Enters modules until it finds torch's own, ours, batch norms, or small ones that differ in training (DropPath and its like)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name):
            return True
        return _asks_for_mode(m) and not any(isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d) for part in m.modules())


def _asks_for_mode(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode; afterwards each is again in its own, frozen norms included."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def both_modes(model: nn.Module) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of training and of evaluation. Raises `UserError` with torch's reason where the network cannot be traced."""
    graphs = []
    for training in (True, False):
        with in_mode(model, training):
            try:
                graphs.append(_Tracer().trace(model))
            except Exception as error:  # whatever a foreign forward does with a proxy
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"{type(model).__name__} cannot be traced by torch.fx, so its chains of layers are not known: {reason}"
                ) from error
    return graphs[0], graphs[1]


def trace(model: nn.Module) -> fx.GraphModule:
    """The network as a graph module that shares `model`'s layers and follows `train()` and `eval()` as `model` does.

    Raises `UserError` where it cannot be traced, or where training and evaluation are different graphs.
    """
    graph, evaluation = both_modes(model)
    pairs = list(zip(graph.nodes, evaluation.nodes, strict=False))
    twin = {theirs: mine for mine, theirs in pairs}
    asked: list[fx.Node] = []

    def mode() -> fx.Node:
        if not asked:
            model.add_module(_MODE, _Mode())
            with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
                asked.append(graph.call_module(_MODE))
        return asked[0]

    def refuse(node: fx.Node) -> UserError:
        return UserError(
            f"{type(model).__name__} computes differently in training and in evaluation at {label(node)}; it cannot be expanded"
        )

    for mine, theirs in pairs:
        if (mine.op, mine.target) != (theirs.op, theirs.target):
            raise refuse(mine)
        try:
            mine.args = _merge(mine.args, theirs.args, twin, mode)
            mine.kwargs = _merge(mine.kwargs, theirs.kwargs, twin, mode)
        except _Different:
            raise refuse(mine) from None
    if len(evaluation.nodes) != len(pairs):
        raise refuse(pairs[-1][0])
    for node in graph.nodes:
        if isinstance(node.type, str):  # an annotation that was never evaluated; pickling the module would look it up
            node.type = None
    return fx.GraphModule(model, graph)


class _Different(Exception):
    pass


def _merge(train: Any, evaluate: Any, twin: dict[fx.Node, fx.Node], mode: Callable[[], fx.Node]) -> Any:
    """Arguments of one node in the two graphs as one; a flag that is True in training and False in evaluation asks for the mode."""
    if isinstance(train, fx.Node):
        if twin.get(evaluate) is not train:
            raise _Different
        return train
    if train is True and evaluate is False:
        return mode()
    if type(train) is not type(evaluate):
        raise _Different
    if isinstance(train, tuple | list) and len(train) == len(evaluate):
        merged = [_merge(a, b, twin, mode) for a, b in zip(train, evaluate, strict=True)]
        # torch.fx keeps its own list types; named tuples do not take a list.
        return type(train)(merged) if type(train) in (tuple, list) else tuple(merged) if isinstance(train, tuple) else merged
    if isinstance(train, dict) and train.keys() == evaluate.keys():
        return {key: _merge(train[key], evaluate[key], twin, mode) for key in train}
    if isinstance(train, slice):
        parts = [_merge(getattr(train, k), getattr(evaluate, k), twin, mode) for k in ("start", "stop", "step")]
        return slice(*parts)
    if train != evaluate:
        raise _Different
    return train


def label(node: fx.Node) -> str:
    """How a person finds an operation: the layer's name, or the operation and the module whose forward calls it."""
    if node.op == "call_module":
        return repr(str(node.target))
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = list(node.meta.get("nn_module_stack", {}))
    return f"{what} in {where[-1]!r}" if where and where[-1] else str(what)
