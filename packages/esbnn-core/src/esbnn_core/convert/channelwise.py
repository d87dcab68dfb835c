"""What keeps channels apart: the operations that a tensor of several blocks can go through as it is."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = [
    "flattens",
    "is_one_pixel",
    "is_sum",
    "is_whole_map_mean",
    "keeps_channels",
    "looks_at_size",
    "module_keeps_channels",
    "module_of",
    "shrinks_map",
]

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.RReLU,
    nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
# Found by name, since they are other packages': whole samples or single positions are dropped.
_MODULES_BY_NAME = {"DropPath", "StochasticDepth", "DropBlock2d"}
_CALLS = {
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, F.relu, F.relu_, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu,
    F.gelu, F.elu, F.celu, F.selu, F.leaky_relu, F.mish, F.softplus, F.tanh, F.sigmoid, F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    "relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "abs", "contiguous", "clone", "detach",
}  # fmt: skip
_CALLS_BY_NAME = {"drop_path", "stochastic_depth"}
_SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
_ARITHMETIC = _SUMS | {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div", "div_"}
_MEANS = {torch.mean, torch.amax, "mean", "amax"}


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _call(node: fx.Node) -> Any:
    return node.target if node.op in ("call_function", "call_method") else None


def module_keeps_channels(module: nn.Module) -> bool:
    """`keeps_channels` of the call of a module."""
    if getattr(module, "return_indices", False):
        return False
    return isinstance(module, _MODULES) or type(module).__name__ in _MODULES_BY_NAME


def keeps_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether each channel of the output is made from the same channel of the first input alone, in the same way for every channel.

    A `PReLU` with a slope for each channel counts; whoever widens the tensor has to widen it too.
    """
    if module is not None:
        return module_keeps_channels(module)
    call = _call(node)
    if call is None:
        return False
    if call in _ARITHMETIC:  # with a number
        return sum(isinstance(a, fx.Node) for a in node.args) == 1 and all(isinstance(a, fx.Node | int | float) for a in node.args)
    if call is F.pad:
        return len(node.args) > 1 and isinstance(node.args[1], tuple | list) and len(node.args[1]) <= 4
    return (call in _CALLS or getattr(call, "__name__", None) in _CALLS_BY_NAME) and not node.kwargs.get("return_indices")


def is_sum(node: fx.Node) -> bool:
    """A sum or difference of two tensors."""
    return _call(node) in _SUMS and len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)


def is_whole_map_mean(node: fx.Node) -> bool:
    """A mean or maximum over both dimensions of the map: [N, C, H, W] -> [N, C] or, with keepdim, [N, C, 1, 1]."""
    if _call(node) not in _MEANS:
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(dims, tuple | list) and sorted(d % 4 if isinstance(d, int) else -1 for d in dims) == [2, 3]


def is_one_pixel(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the map that a pool makes has one pixel."""
    if module is not None:
        return isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and module.output_size in (1, (1, 1), [1, 1])
    if _call(node) in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        size = node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None)
        return isinstance(size, int | tuple | list) and size in (1, (1, 1), [1, 1])
    return False


def flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """[N, C, H, W] -> [N, C*H*W]."""
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) in ((1, -1), (1, 3))
    call = _call(node)
    if call is torch.flatten or call == "flatten":
        first = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        last = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
        return (first, last) in ((1, -1), (1, 3))
    if call in ("view", "reshape") or call is torch.reshape:
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        return len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1
    return False


def looks_at_size(node: fx.Node) -> bool:
    """Whether a node only asks how many samples there are, or how large the map is: the number of channels is no part of the answer."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return _not_channels(node.args[1])
    if (node.op == "call_method" and node.target == "size") or (_call(node) is getattr and node.args[1] == "shape"):
        return all(_call(user) is operator.getitem and _not_channels(user.args[1]) for user in node.users)
    return False


def _not_channels(index: Any) -> bool:
    if isinstance(index, slice):
        return index.stop is None and index.start in (2, -2, -1)
    return index in (0, 2, 3, -1, -2)


def shrinks_map(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a convolution or pool makes the map smaller by its stride: where a network's next stage begins."""
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        stride = module.stride
        return max(stride) > 1 if isinstance(stride, tuple) else bool(stride) and int(stride) > 1
    if _call(node) in (F.max_pool2d, F.avg_pool2d):
        given = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else 1)
        return isinstance(given, int | tuple | list) and given not in (1, (1, 1), [1, 1])
    return False
