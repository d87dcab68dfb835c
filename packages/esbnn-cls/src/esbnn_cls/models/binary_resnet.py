"""Binary ResNets of every method, plain and expanded: one network class over `Skeleton` descriptions."""

from __future__ import annotations

import math
from typing import Any

from esbnn_cls.models.skeletons import Skeleton
from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.es import ESPlan, Head, Join, Layer, Wiring, resolve
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear, BinaryUnit, ReplicatedBatchNorm2d, Shortcut, make_activation

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ["BinaryResNet", "ResidualBlock", "Stem", "make_block"]


class Stem(nn.Module):
    """The first convolution: computed once, replicated for its reader. image [N, in_chans, H, W] -> [N, c*m, H', W']."""

    def __init__(self, skeleton: Skeleton, in_chans: int, copies: int) -> None:
        super().__init__()
        c = skeleton.widths[0]
        kernel, stride = (7, 2) if skeleton.stem == "imagenet" else (3, 1)
        act = skeleton.stem_act or skeleton.act
        if skeleton.binary_ends:
            self.conv: nn.Module = BinaryConv2d(in_chans, c, kernel, stride, kernel // 2, method=skeleton.method, real_input=True)
        else:
            self.conv = nn.Conv2d(in_chans, c, kernel, stride, kernel // 2, bias=False)
        self.norm = ReplicatedBatchNorm2d(c, copies)
        self.act_first = skeleton.stem_tail == "an"
        width = c if self.act_first else c * copies
        self.act = make_activation(act if "a" in skeleton.stem_tail else "none", width)
        self.pool = nn.MaxPool2d(3, 2, 1) if skeleton.stem == "imagenet" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(self.act(x)) if self.act_first else self.act(self.norm(x))
        pooled: Tensor = self.pool(x)
        return pooled


class ResidualBlock(nn.Module):
    """Two binary 3x3 units. If both have a `+` each has its shortcut; else the second adds one around the block."""

    unit1: BinaryUnit
    unit2: BinaryUnit

    def __init__(self, skeleton: Skeleton, wiring: Wiring, name: str, c_in: int, c_out: int, stride: int, last: bool = False) -> None:
        super().__init__()
        self.around_block = "+" not in skeleton.tails[0]
        tails = (skeleton.tails[0], skeleton.last_tail if last and skeleton.last_tail is not None else skeleton.tails[1])
        method = methods.get(skeleton.method, **dict(skeleton.method_options))
        for i, (unit, tail) in enumerate(zip(("unit1", "unit2"), tails, strict=True)):
            slot = wiring[f"{name}.{unit}"]
            ci = c_in if i == 0 else c_out
            conv = BinaryConv2d(
                slot.channels_in(ci), slot.filters(c_out), 3, stride if i == 0 else 1, 1, groups=slot.groups, method=method,
                shift=skeleton.shift,
            )  # fmt: skip
            shortcut = None
            if "+" in tail:
                around = wiring[f"{name}.unit1"] if self.around_block else slot
                c_from, s = (c_in, stride) if self.around_block or i == 0 else (c_out, 1)
                shortcut = Shortcut(
                    skeleton.shortcut, c_from, c_out, s, around.m_in, slot.m_out, wiring.slots.get(f"{name}.{unit}.shortcut"), method
                )  # fmt: skip
            act = make_activation(skeleton.act, slot.channels_out(c_out)) if "a" in tail else None
            setattr(self, unit, BinaryUnit(conv, tail, copies=slot.copies, act=act, shortcut=shortcut))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.unit2(self.unit1(x), x) if self.around_block else self.unit2(self.unit1(x))
        return y


def declare_block(
    skeleton: Skeleton, name: str, reads: str, c_in: int, c_out: int, stride: int, stage: int
) -> tuple[list[Layer], list[Join], str]:
    """A block's layers and joins for `esbnn_core.es.resolve`, and the edge that it writes."""
    changes = stride != 1 or c_in != c_out
    with_weights = changes and skeleton.shortcut in ("conv", "avg_conv", "avg_ceil_conv", "binary")
    around_block = "+" not in skeleton.tails[0]
    layers, joins = [], []
    edge = reads
    for i, unit in enumerate(("unit1", "unit2")):
        path = f"{name}.{unit}"
        layers.append(Layer(path, edge, f"{path}.y", c_in if i == 0 else c_out, c_out, 3, stage))
        if "+" not in skeleton.tails[i]:
            edge = f"{path}.y"
            continue
        tap = reads if around_block else edge
        if with_weights and (around_block or i == 0):
            like = f"{name}.unit1"
            layers.append(Layer(f"{path}.shortcut", tap, f"{path}.s", c_in, c_out, 1, stage, skeleton.shortcut != "binary", like))
            tap = f"{path}.s"
        joins.append(Join((f"{path}.y", tap), path))
        edge = path
    return layers, joins, edge


def make_block(skeleton: Skeleton, c_in: int, c_out: int, stride: int = 1) -> ResidualBlock:
    """One plain block of a skeleton on its own: [N, c_in, H, W] -> [N, c_out, H/stride, W/stride]."""
    layers, joins, _ = declare_block(skeleton, "block", "x", c_in, c_out, stride, 0)
    return ResidualBlock(skeleton, resolve(layers, joins), "block", c_in, c_out, stride)


class BinaryResNet(nn.Module):
    """A classifier: image [N, in_chans, H, W] -> logits [N, num_classes].

    skeleton: see `esbnn_cls.models.skeletons`. plan: settings of tau and groups for the binary layers. head: what the classifier
    reads (Table 9): `full`, `n` or `one`.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        num_classes: int = 10,
        in_chans: int = 3,
        plan: ESPlan | None = None,
        head: Head = "full",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.skeleton, self.num_classes, self.drop_rate = skeleton, num_classes, drop_rate
        self.wiring, blocks, last_edge = _wire(skeleton, in_chans, plan, head)
        self.stem = Stem(skeleton, in_chans, self.wiring["stem.conv"].copies)
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        reduction = 4 if skeleton.stem == "imagenet" else 1
        for i, stage in enumerate(blocks):
            reduction *= 2 if i > 0 else 1
            built = [ResidualBlock(skeleton, self.wiring, *b, last=b is blocks[-1][-1]) for b in stage]
            self.stages.append(nn.Sequential(*built))
            edge = last_edge if i == len(blocks) - 1 else f"{blocks[i + 1][0][0]}.unit1"
            channels = self.wiring.channels(last_edge) if i == len(blocks) - 1 else self.wiring[edge].channels_in(skeleton.widths[i])
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.num_features = self.head_hidden_size = self.wiring.channels(last_edge)
        self.head_norm: nn.Module = nn.BatchNorm1d(self.num_features) if skeleton.head_norm else nn.Identity()
        self.head_act: nn.Module = nn.Hardtanh() if skeleton.binary_ends else nn.Identity()
        self.fc = self._classifier(num_classes)
        self.out_norm: nn.Module = nn.BatchNorm1d(num_classes) if skeleton.binary_ends else nn.Identity()
        self.init_weights()

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        if self.skeleton.binary_ends:
            return BinaryLinear(self.num_features, num_classes, bias=True, method=self.skeleton.method)
        return nn.Linear(self.num_features, num_classes)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """The authors' initialisation: see `Skeleton.init`; stored codes are made again from the new weights."""
        rule = self.skeleton.init
        for module in self.modules():
            if isinstance(module, ReplicatedBatchNorm2d):
                nn.init.constant_(module.weight, self.skeleton.bn_init)
            if not isinstance(module, nn.Conv2d | nn.Linear | BinaryLayer) or rule == "default":
                continue
            weight = module.weight
            if rule == "positive" and isinstance(module, BinaryLayer):
                # Bi-Real's own start: every sign +1, every magnitude within the clip.
                nn.init.uniform_(weight, 0, 1e-3)
            elif rule == "fan_out" and not isinstance(module, nn.Linear):
                nn.init.normal_(weight, 0, math.sqrt(2 / (weight[0][0].numel() * weight.shape[0])))
            elif rule == "kaiming" and (self.skeleton.stem == "cifar" or not isinstance(module, nn.Linear)):
                nn.init.kaiming_normal_(weight)
            if isinstance(module, BinaryLayer):
                module.refresh()

    # -- timm's habits -------------------------------------------------------------------------------------------------------
    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> [N, num_features, H', W']."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the stages named by `indices` (timm's interface), and the last features unless `intermediates_only`."""
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        found = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the stages named by `indices` do not need (timm's interface)."""
        take, last = feature_take_indices(len(self.stages), indices)
        if last + 1 < len(self.stages):  # the norm in front of the classifier belongs to the last stage
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.head_norm, prune_head = nn.Identity(), True
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0)
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[N, num_features, H', W'] -> logits, or the classifier's input if `pre_logits`."""
        x = x.mean((2, 3))
        x = self.head_act(self.head_norm(x))
        if self.drop_rate:
            x = nn.functional.dropout(x, self.drop_rate, self.training)
        if pre_logits or self.num_classes == 0:
            return x
        logits: Tensor = self.out_norm(self.fc(x))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one (0 classes: none)."""
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes)
        if self.skeleton.binary_ends:
            self.out_norm = nn.BatchNorm1d(num_classes) if num_classes else nn.Identity()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


def _wire(skeleton: Skeleton, in_chans: int, plan: ESPlan | None, head: Head) -> tuple[Wiring, list[list[tuple[str, int, int, int]]], str]:
    """Declare the network once: its wiring, (name, c_in, c_out, stride) of the blocks of each stage, the last edge."""
    c = skeleton.widths[0]
    layers, joins = [Layer("stem.conv", "image", "stem", in_chans, c, 3, real=True)], []
    blocks: list[list[tuple[str, int, int, int]]] = []
    edge = "stem"
    for i, (width, depth) in enumerate(zip(skeleton.widths, skeleton.depths, strict=True)):
        blocks.append([])
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            name = f"stages.{i}.{j}"
            more, sums, edge = declare_block(skeleton, name, edge, c, width, stride, i)
            layers += more
            joins += sums
            blocks[-1].append((name, c, width, stride))
            c = width
    return resolve(layers, joins, plan, head), blocks, edge
