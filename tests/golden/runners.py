"""How a module case runs through the project: kind and method -> a public module, its official tensors put in by the importer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from esbnn_cls.importers import load_official
from esbnn_cls.models import SKELETONS, make_block
from esbnn_core import methods
from esbnn_core.methods.xnor import magnitude_map
from esbnn_core.nn import Binarizer, BinaryConv2d, BinaryLinear, BinaryUnit, Maxout, RPReLU, ScaleMap, make_activation
from esbnn_core.training import Progress, begin_step

import torch
from harness import Case, NotBuilt
from torch import Tensor, nn

KNOWN = set(methods.names())
METHOD_OPTIONS = {
    "siman": {"sort": "sort"},
    "rbnn": {"rotation_update": "rotation_update"},
    "dorefa": {"a_bits": "a_bits"},
    "reste": {"o_end": "o_end", "t": "clip"},
    "xnorpp": {"compute_alpha": "analytic", "center_weights": "centre"},
}


@dataclass
class Ready:
    """A case ready to run: the module that holds its tensors, official key -> ours, and the function from input to outputs."""

    module: nn.Module
    names: dict[str, str]
    run: Callable[[Tensor], dict[str, Tensor]]


def method_of(case: Case, **changes: Any) -> methods.Method:
    name = case.meta["method"]
    if name not in KNOWN:
        raise NotBuilt(f"method {name}")
    options = {ours: case.meta[theirs] for theirs, ours in METHOD_OPTIONS.get(name, {}).items() if theirs in case.meta}
    return methods.get(name, **{**options, **changes})


def begin(module: nn.Module, meta: dict[str, Any]) -> None:
    """One `begin_step` at the case's progress; RBNN rotates only where the case says that an epoch begins."""
    epochs = 1_000_000
    at = round(meta.get("progress", 0.0) * epochs)
    begin_step(module, Progress(at, epochs, at, epochs, 0 if meta.get("epoch", -1) >= 0 else 1))


def prepare(case: Case, dtype: torch.dtype) -> Ready:
    """Build the module of a case in `dtype`, with its state."""
    kind = case.meta.get("kind")
    makers = {
        "weight": _conv,
        "activation": _activation,
        "conv": _conv,
        "linear": _linear,
        "block": _block,
        "es_block": _es_block,
        "nonlinearity": _nonlinearity,
    }
    if kind not in makers or case.meta.get("method") not in KNOWN:
        raise NotBuilt(f"{case.meta.get('method')} {kind}")
    module, run = makers[kind](case)
    source = "recu2stage" if case.meta.get("arch") == "r18i_2stage" else case.meta["method"]
    state = {k: v for k, v in case.state(torch.float32).items() if k in case.groups.get("param", {}) or k in case.groups.get("buffer", {})}
    names = load_official(module, state, source).matched
    module.to(dtype)
    module.train(case.meta["mode"] == "train")
    return Ready(module, names, run)


def _geometry(case: Case) -> dict[str, Any]:
    m = case.meta
    kernel = m.get("kernel_size", m.get("kernel", 3))
    return {
        "in_channels": m.get("in_channels", m.get("in")),
        "out_channels": m.get("out_channels", m.get("out")),
        "kernel_size": kernel,
        "stride": m.get("stride", 1),
        "padding": m.get("padding", kernel // 2),
        "groups": m.get("groups", 1),
        "bias": bool(m.get("bias", False)),
    }


def _conv(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    geometry, m = _geometry(case), case.meta
    if m["method"] == "xnorpp" and m.get("gamma_case", 1) > 1:
        form = {2: "full", 3: "outer", 4: "rank_one"}[m["gamma_case"]]
        size = case.groups["out"]["y"].shape[2:]
        conv = BinaryConv2d(**geometry, method=method_of(case, scale="none"))
        unit = BinaryUnit(conv, "x", mul=ScaleMap(geometry["out_channels"], size, form))
        return unit, lambda x: {"y": unit(x)}
    if m["method"] == "xnor" and "bn.weight" in case.groups["param"]:
        conv = BinaryConv2d(**geometry, method=method_of(case))
        block = BinaryUnit(conv, "a", pre=nn.BatchNorm2d(geometry["in_channels"], eps=1e-4), act=nn.ReLU())
        return block, lambda x: {"y": block(x), "wb": conv.binary_weight()}
    # BinaryNet leaves images as they are; cases of the weight path alone, and ReActNet's convolution class, take real input.
    real = (m["method"] == "bnn" and geometry["in_channels"] == 3) or m["method"] == "reactnet"
    real = real or (m["kind"] == "weight" and "y" in case.groups["out"])
    layer = BinaryConv2d(**geometry, method=method_of(case), real_input=real, shift=False)

    def run(x: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if "y" in case.groups["out"]:
            out["y"] = layer(x)
        if "wb" in case.groups["out"]:
            out["wb"] = layer.binary_weight()
        return out

    return layer, run


def _activation(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    params = case.groups.get("param", {})
    channels = case.groups["in"]["x"].shape[1]
    if "move1.bias" in params:
        act = RPReLU(channels)
        return act, lambda x: {"y": act(x)}
    if not any(k.rsplit(".", 1)[-1] in ("weight", "weights") for k in params):
        sign = Binarizer(method_of(case), channels, shift="move0.bias" in params)
        scalars = sign.method.schedule(case.meta.get("progress", 0.0))

        def bare(x: Tensor) -> dict[str, Tensor]:
            y = sign(x, scalars)
            return {k: {"y": y, "ab": y, "mean": magnitude_map(x).detach()}[k] for k in case.groups["out"]}

        return sign, bare
    layer = BinaryConv2d(**_geometry(case), method=method_of(case))

    def run(x: Tensor) -> dict[str, Tensor]:
        layer.binary_weight()
        assert layer.sign is not None
        return {"ab": layer.sign(x, layer.scalars)}

    return layer, run


def _linear(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    o, i = case.groups["param"]["weight"].shape
    layer = BinaryLinear(i, o, bias=bool(case.meta.get("bias")), method=method_of(case))
    return layer, lambda x: {"y": layer(x)}


def _block(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    m = case.meta
    if m["method"] == "reactnet" and "binary_conv.weight" not in case.groups["param"]:
        raise NotBuilt("ReActNet's MobileNet block")
    arch = {"r20": "resnet20_cifar", "r20bireal": "resnet20bireal_cifar", "r18c": "resnet18_cifar", "r18i": "resnet18"}
    name = "resnet18_recu2stage" if m.get("arch") == "r18i_2stage" else f"{arch[m.get('arch', 'r18i')]}_{m['method']}"
    if name not in SKELETONS:
        raise NotBuilt(name)
    c_in, c_out = m.get("in_channels", m.get("in")), m.get("planes", m.get("out"))
    block = make_block(SKELETONS[name], c_in, c_out, m["stride"])
    one = not any(k.startswith("conv2.") for k in case.groups["param"])
    module: nn.Module = block.unit1 if one else block
    if "step1" in case.name:
        for layer in module.modules():
            if isinstance(layer, BinaryConv2d):
                layer.weight_mode = "real"
    return module, lambda x: {"y": module(x)}


def _es_block(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    m = case.meta
    c_in, c_out, kernel, stride, padding, groups = m["conv"]
    act = m["nonlinearity"].split()[0].lower()
    tail = "n" + ("+" if m["shortcut"] != "none" else "") + ("a" if act != "none" else "")
    conv = BinaryConv2d(c_in, c_out, kernel, stride, padding, groups=groups, method=method_of(case), shift=False)
    unit = BinaryUnit(conv, tail, copies=m["replication"], act=make_activation(act, m["bn"]) if act != "none" else None)
    return unit, lambda x: {"conv": conv(x), "y": unit(x)}


def _nonlinearity(case: Case) -> tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]:
    act = Maxout(case.groups["in"]["x"].shape[1])
    return act, lambda x: {"y": act(x)}
