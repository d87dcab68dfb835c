"""The ResNets of the methods' authors, as data: what stands in the slots of one network class.

Source: the official repositories of each method; a method without an official network of a kind uses IR-Net's skeleton, and
`borrowed` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from esbnn_cls_catalog import METHODS
from esbnn_core.nn import ShortcutKind


@dataclass(frozen=True)
class Skeleton:
    """One ResNet.

    method, method_options: the binarization. widths, depths: of the stages; a block has two binary convolutions. tails: stages of
    its two units; a shortcut around each where both have a `+`, else one around the block. act: activation of the units.
    shortcut: where widths change. stem: `cifar` (3x3) or `imagenet` (7x7/2 and max pool). stem_tail: `na`, `an` or `n`.
    last_tail: of the network's last unit where it differs. head_norm: batch norm between pooling and classifier.
    binary_ends: binary weights in the first convolution, a binary classifier between activation and norm (BinaryNet).
    shift: a learned shift before each sign. init: of the binary weights. bn_init: initial scale of 2-d batch norms.
    log_softmax: the official network ends in one (ours returns logits). borrowed: not the method's own network.
    """

    method: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    tails: tuple[str, str] = ("n+a", "n+a")
    act: str = "hardtanh"
    shortcut: ShortcutKind = "conv"
    stem: Literal["cifar", "imagenet"] = "cifar"
    stem_tail: Literal["na", "an", "n"] = "na"
    stem_act: str | None = None
    last_tail: str | None = None
    head_norm: bool = True
    binary_ends: bool = False
    shift: bool | None = None
    init: Literal["kaiming", "default", "fan_out", "positive"] = "kaiming"
    bn_init: float = 1.0
    log_softmax: bool = False
    borrowed: bool = False
    method_options: tuple[tuple[str, Any], ...] = ()


DOUBLE = ("n+a", "n+a")
SINGLE = ("na", "n+a")
DOUBLE_RELU_FIRST = ("an+", "an+")
SINGLE_RELU_FIRST = ("an", "an+")

_R20: dict[str, Any] = {"widths": (16, 32, 64), "depths": (3, 3, 3)}
_R18C: dict[str, Any] = {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)}

_CIFAR20 = {
    "irnet": Skeleton("irnet", **_R20, shortcut="pad"),
    "recu": Skeleton("recu", **_R20, shortcut="avg_pad"),
    "rbnn": Skeleton("rbnn", **_R20, tails=SINGLE, shortcut="pad", bn_init=1e-8),
    "siman": Skeleton("siman", **_R20, act="prelu", stem_act="relu", shortcut="pad"),
    "adabin": Skeleton("adabin", **_R20, act="maxout", shortcut="pad"),
    "reste": Skeleton("reste", **_R20, tails=SINGLE_RELU_FIRST, act="relu", stem_tail="an", shortcut="pad"),
    "bnn": Skeleton(
        "bnn", (80, 160, 320), (3, 3, 3), tails=("na", "+na"), shortcut="binary", last_tail="+", binary_ends=True, init="default",
        log_softmax=True,
    ),
}  # fmt: skip
_CIFAR18 = {
    "irnet": Skeleton("irnet", **_R18C, tails=SINGLE, stem_tail="n", init="default", log_softmax=True),
    "recu": Skeleton("recu", **_R18C, tails=SINGLE, stem_tail="n", shortcut="avg_pad"),
    "rbnn": Skeleton("rbnn", **_R18C, tails=SINGLE, stem_tail="n", shortcut="binary", init="default"),
    "siman": Skeleton("siman", **_R18C, tails=SINGLE, stem_tail="n", shortcut="binary", init="default"),
    "adabin": Skeleton("adabin", **_R18C, act="maxout"),
    "reste": Skeleton("reste", **_R18C, tails=SINGLE_RELU_FIRST, act="relu", stem_tail="an"),
    "bnn": Skeleton(
        "bnn", **_R18C, tails=("na", "+na"), shortcut="binary", last_tail="+", binary_ends=True, init="default", log_softmax=True,
        borrowed=True,
    ),
}  # fmt: skip
_IMAGENET: dict[str, Any] = {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "stem": "imagenet"}
_IMAGENET18 = {
    "irnet": Skeleton("irnet", **_IMAGENET, init="fan_out", log_softmax=True),
    "recu": Skeleton("recu", **_IMAGENET, bn_init=1e-8),
    "rbnn": Skeleton("rbnn", **_IMAGENET, bn_init=1e-8),
    "siman": Skeleton("siman", **_IMAGENET, act="prelu", stem_act="relu", bn_init=1e-8),
    "adabin": Skeleton("adabin", **_IMAGENET, act="maxout", shortcut="avg_ceil_conv"),
    "reste": Skeleton("reste", **_IMAGENET, tails=DOUBLE_RELU_FIRST, act="relu", stem_tail="an"),
    "bireal": Skeleton(
        "bireal", **_IMAGENET, tails=("n+", "n+"), stem_tail="n", shortcut="avg_conv", head_norm=False, init="positive"
    ),
    "reactnet": Skeleton("reactnet", **_IMAGENET, act="rprelu", stem_tail="n", shortcut="avg_conv", head_norm=False),
}  # fmt: skip
_RECU_TWO_STAGE = Skeleton(
    "recu", **_IMAGENET, act="rprelu", stem_tail="n", shortcut="avg_conv", head_norm=False, shift=True
)  # fmt: skip


def _complete(known: dict[str, Skeleton]) -> dict[str, Skeleton]:
    """Every method's skeleton: its own, or IR-Net's with the method changed."""
    base = replace(known["irnet"], log_softmax=False, borrowed=True)
    acts = {"reactnet": "rprelu"}
    return {m: known[m] if m in known else replace(base, method=m, act=acts.get(m, base.act)) for m in METHODS}


def _wider(skeleton: Skeleton) -> Skeleton:
    return replace(skeleton, depths=(3, 4, 6, 3))


def _all() -> dict[str, Skeleton]:
    found = {f"resnet20_cifar_{m}": s for m, s in _complete(_CIFAR20).items()}
    found |= {f"resnet18_cifar_{m}": s for m, s in _complete(_CIFAR18).items()}
    imagenet = _complete(_IMAGENET18)
    found |= {f"resnet18_{m}": s for m, s in imagenet.items()}
    found |= {f"resnet34_{m}": _wider(s) for m, s in imagenet.items()}
    found["resnet20bireal_cifar_rbnn"] = replace(_CIFAR20["rbnn"], tails=DOUBLE)
    found["resnet20bireal_cifar_reste"] = replace(_CIFAR20["reste"], tails=DOUBLE_RELU_FIRST)
    found["resnet18_recu2stage"] = _RECU_TWO_STAGE
    return found


SKELETONS: dict[str, Skeleton] = _all()
"""Skeleton of every plain ResNet by its registered name; `es_` names share it."""
