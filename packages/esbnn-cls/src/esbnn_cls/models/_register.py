"""Registration with timm: one entry point a name of the catalog, all made by one function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from esbnn_cls.models.binary_resnet import BinaryResNet
from esbnn_cls.models.full_precision import resnet20_cifar_fp
from esbnn_cls.models.nin import nin_cifar_xnor
from esbnn_cls.models.skeletons import SKELETONS, Skeleton
from esbnn_cls_catalog import ES_NAMES, RESNET_NAMES
from esbnn_core.errors import UserError
from esbnn_core.es import ESPlan, Head

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _cfg(cifar: bool, **changes: Any) -> dict[str, Any]:
    """timm's configuration: preprocessing as in the authors' trainers (ImageNet's constants on CIFAR too)."""
    size = 32 if cifar else 224
    return {
        "num_classes": 10 if cifar else 1000,
        "input_size": (3, size, size),
        "pool_size": (8, 8) if cifar else (7, 7),
        "crop_pct": 1.0 if cifar else 0.875,
        "interpolation": "bilinear",
        "fixed_input_size": False,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "stem.conv",
        "classifier": "fc",
        **changes,
    }


def default_plan(name: str) -> ESPlan:
    """The plan of an `es_` model when none is given: Table 8's for ResNet-18 on ImageNet, else tau 2 everywhere."""
    return ESPlan.named("table8") if name.startswith("es_resnet18_") and "_cifar" not in name else ESPlan.uniform(2)


def build(
    name: str,
    skeleton: Skeleton,
    pretrained: bool = False,
    tau: int | Sequence[int] | None = None,
    groups: int | Sequence[int] | None = None,
    plan: str | ESPlan | None = None,
    head: Head = "full",
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    method_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered ResNet.

    tau, groups: numbers, or lists (one a stage, or one a binary layer); plan: a name or an `ESPlan` instead of them; head: see
    `BinaryResNet`. widths, depths: other sizes. method_options: of the binarization method.
    """
    expanded = name.startswith("es_")
    if not expanded and (tau is not None or groups is not None or plan is not None or head != "full"):
        raise UserError(f"{name!r} is the plain network; tau, groups, plan and head belong to {'es_' + name!r}")
    if plan is not None and (tau is not None or groups is not None):
        raise UserError("give either plan, or tau and groups")
    if isinstance(plan, str):
        plan = ESPlan.named(plan)
    elif plan is None and (tau is not None or groups is not None):
        plan = ESPlan.of(1 if tau is None else _plain(tau), 1 if groups is None else _plain(groups))
    elif plan is None:
        plan = default_plan(name) if expanded else ESPlan.none()
    if method_options:
        skeleton = replace(skeleton, method_options=tuple(sorted(method_options.items())))
    if widths is not None or depths is not None:
        skeleton = replace(skeleton, widths=tuple(widths or skeleton.widths), depths=tuple(depths or skeleton.depths))
        if len(skeleton.widths) != len(skeleton.depths):
            raise UserError(f"widths {skeleton.widths} and depths {skeleton.depths} must have one entry a stage each")
    return build_model_with_cfg(
        BinaryResNet,
        name,
        pretrained,
        skeleton=skeleton,
        plan=plan,
        head=head,
        feature_cfg={"out_indices": tuple(range(len(skeleton.widths))), "feature_cls": "getter"},
        **kwargs,
    )


def _plain(value: int | Sequence[int]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _entry(name: str, skeleton: Skeleton) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, skeleton, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{skeleton.method} ResNet" + (", expanded and shrunk" if name.startswith("es_") else "")
    return create


_NAMES = {**{n: SKELETONS[n] for n in RESNET_NAMES}, **{n: SKELETONS[n.removeprefix("es_")] for n in ES_NAMES}}
default_cfgs = generate_default_cfgs(
    {**{n: _cfg("_cifar" in n) for n in _NAMES}, "nin_cifar_xnor": _cfg(True), "resnet20_cifar_fp": _cfg(True, classifier="fc")}
)
for _name, _skeleton in _NAMES.items():
    _function = register_model(_entry(_name, _skeleton))
    setattr(sys.modules[__name__], _name, _function)
for _function in (nin_cifar_xnor, resnet20_cifar_fp):
    _function.__module__ = __name__
    register_model(_function)
