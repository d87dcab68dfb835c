"""Watches a forward pass: which operation ran in which module, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from esbnn_core.nn import BinaryConv2d, BinaryLayer, ReplicatedBatchNorm2d

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

__all__ = ["Tally", "binary_products", "is_batch_norm", "kind_of"]

_BATCH_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional",
    "_batch_norm_no_update", "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm",
}  # fmt: skip
_CONVOLUTIONS = {
    "convolution", "_convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution", "_slow_conv2d_forward",
}  # fmt: skip
# What torch does not mark as pointwise and still computes numbers. Everything else (copies, views, indexing, fills) moves or makes data.
_COMPUTING = {
    "_prelu_kernel", "hardswish", "hardswish_", "glu", "log_sigmoid_forward", "floor_divide", "logit", "rrelu_with_noise",
    "_softmax", "_safe_softmax", "_log_softmax", "mean", "sum", "amax", "amin", "max", "min", "prod", "logsumexp", "var", "std", "var_mean",
    "std_mean", "linalg_vector_norm", "norm", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_trilinear3d", "grid_sampler_2d", "grid_sampler_3d", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
}  # fmt: skip
# Products that torch's own counter leaves out, in multiply-accumulates.
_MORE_PRODUCTS: dict[str, Callable[..., int]] = {
    "mv": lambda args: args[0].numel(),
    "addmv": lambda args: args[1].numel(),
    "dot": lambda args: args[0].numel(),
    "vdot": lambda args: args[0].numel(),
    "addbmm": lambda args: args[1].numel() * args[2].shape[2],
    "mkldnn_rnn_layer": lambda args: prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel()),
}
_FROZEN = "FrozenBatchNorm2d"  # torchvision's and detectron2's: a batch norm written as a product and a sum


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | ReplicatedBatchNorm2d) or type(module).__name__ == _FROZEN


def binary_products(layer: BinaryLayer) -> int:
    """Binary operations of one multiply-accumulate: 0 if the layer computes with real numbers, k for k-bit activations, usually 1."""
    if layer.sign is None or layer.weight_mode == "real":
        return 0
    return int(getattr(layer.method, "a_bits", 1))


def kind_of(module: nn.Module) -> str:
    """binary_conv, binary_linear, conv, fc, norm or other; a binary layer that computes with real numbers is what it computes."""
    if isinstance(module, BinaryLayer):
        conv = isinstance(module, BinaryConv2d)
        if binary_products(module):
            return "binary_conv" if conv else "binary_linear"
        return "conv" if conv else "fc"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear | nn.Bilinear):
        return "fc"
    if is_batch_norm(module) or isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return "norm"
    return "other"


@dataclass
class _Scope:
    """A module that is running. opaque: it is counted by its shapes when it ends, and not by what runs inside."""

    name: str
    module: nn.Module
    opaque: bool


@dataclass
class Call:
    """What a module's first call took and gave, and how often it was called."""

    in_shape: tuple[int, ...] | None
    out_shape: tuple[int, ...] | None
    calls: int = 1


class Tally(TorchDispatchMode):
    """Counts while it is entered and `model` runs. counts: (module's name, kind) -> Counter of columns, in order of first work.

    What it sets on the model's modules is for the caller to remove (`borrowed` does).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.counts: dict[tuple[str, str], Counter[str]] = {}
        self.called: dict[str, Call] = {}
        self._scopes: list[_Scope] = []
        # Storages of tensors that depend on the input; arithmetic on weights alone can be done once, and counts as nothing.
        self._from_input: set[int] = set()
        for name, module in self.model.named_modules():
            if isinstance(module, BinaryLayer):
                module.plain_expression = True  # norms have to run as modules of their own
            module.register_forward_pre_hook(self._begin(name), prepend=True)
            module.register_forward_hook(self._end(name), with_kwargs=True, always_call=True)

    def mark_input(self, value: Any) -> None:
        """Say that the tensors in `value` are the model's input."""
        self._from_input.update(s for t in _tensors(value) if (s := _storage(t)) is not None)

    # -- modules -------------------------------------------------------------------------------------------------------------
    def _begin(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            opaque = isinstance(module, BinaryLayer | ReplicatedBatchNorm2d) or type(module).__name__ == _FROZEN
            self._scopes.append(_Scope(name, module, opaque or self._opaque))

        return hook

    def _end(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._scopes.pop()
            x = next(_tensors((args, kwargs)), None)
            y = next(_tensors(output), None)
            if name in self.called:
                self.called[name].calls += 1
            else:
                self.called[name] = Call(None if x is None else tuple(x.shape), None if y is None else tuple(y.shape))
            if self._opaque or x is None or y is None:
                return
            if isinstance(module, BinaryLayer):
                self._binary_layer(name, module, x, y)
            elif isinstance(module, ReplicatedBatchNorm2d) or type(module).__name__ == _FROZEN:
                self._add(name, "norm", "bn_flops", y.numel())

        return hook

    @property
    def _opaque(self) -> bool:
        return bool(self._scopes) and self._scopes[-1].opaque

    def _binary_layer(self, name: str, layer: BinaryLayer, x: Tensor, y: Tensor) -> None:
        kind = kind_of(layer)
        products = y.numel() * layer.weight.numel() // layer.out_channels
        bits = binary_products(layer)
        column = "bops" if bits else "conv_flops" if isinstance(layer, BinaryConv2d) else "fc_flops"
        self._add(name, kind, column, products * max(bits, 1))
        signs = 0 if layer.sign is None else x.numel()
        scales = y.numel() * ((layer.alpha is not None) + (layer.bias is not None))
        self._add(name, kind, "elementwise", signs + scales)

    # -- operations ----------------------------------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        name = packet.__name__
        if packet not in flop_registry and name not in _MORE_PRODUCTS and func is not torch.ops.prim.device.default:
            # Under inference_mode composite operations arrive whole.
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        live = self._trace(args, kwargs, out)
        if not self._opaque:
            self._operation(func, name, args, kwargs, out, live)
        return out

    def _trace(self, args: Any, kwargs: Any, out: Any) -> bool:
        """Whether an operation depends on the input; if so, what it made does too."""
        live = any(s in self._from_input for t in _tensors((args, kwargs)) if (s := _storage(t)) is not None)
        made = {s for t in _tensors(out) if (s := _storage(t)) is not None}
        if live:
            self._from_input |= made
        else:
            self._from_input -= made  # an address can be used again
        return live

    def _operation(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, live: bool) -> None:
        scope = self._scopes[-1] if self._scopes else _Scope("", self.model, False)
        if name in _MORE_PRODUCTS:
            self._add(scope.name, _product_kind(scope, name), "fc_flops", _MORE_PRODUCTS[name](args))
        elif func._overloadpacket in flop_registry:
            products = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) // 2  # torch counts 2 for each
            conv = name in _CONVOLUTIONS
            self._add(scope.name, _product_kind(scope, name), "conv_flops" if conv else "fc_flops", products)
        elif live and name in _BATCH_NORMS:
            instance = isinstance(scope.module, _NormBase) and not isinstance(scope.module, _BatchNorm)
            self._add(scope.name, kind_of(scope.module), "elementwise" if instance else "bn_flops", out[0].numel())
        elif live and (torch.Tag.pointwise in func.tags or name in _COMPUTING):
            y = next(_tensors(out), None)
            if y is not None and any(t.is_floating_point() for t in _tensors((args, kwargs))):
                self._add(scope.name, kind_of(scope.module), "elementwise", y.numel())

    def _add(self, name: str, kind: str, column: str, number: int) -> None:
        self.counts.setdefault((name, kind), Counter())[column] += number


def _product_kind(scope: _Scope, operation: str) -> str:
    """conv; fc for a product of two matrices, which is what a linear layer becomes; matmul for batches of them and attention."""
    if operation in _CONVOLUTIONS:
        return "conv"
    return "fc" if kind_of(scope.module) == "fc" or operation in ("mm", "addmm", "_scaled_mm", "mkldnn_rnn_layer") else "matmul"


def _tensors(value: Any) -> Any:
    return (leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one
        return None
