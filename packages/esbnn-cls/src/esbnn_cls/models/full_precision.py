"""The full-precision CIFAR ResNet-20, the measure of every binary one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esbnn_core.nn import Shortcut

import torch
from timm.models import build_model_with_cfg
from torch import Tensor, nn


class _Block(nn.Module):
    """conv - BN - ReLU - conv - BN + shortcut (option A) - ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.shortcut = Shortcut("pad", c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FullPrecisionResNet(nn.Module):
    """image [N, 3, H, W] -> logits [N, num_classes]; He et al. 2016, section 4.2."""

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, widths: Sequence[int] = (16, 32, 64), depths: Sequence[int] = (3, 3, 3)
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(widths[0]))
        self.stem.add_module("act", nn.ReLU())
        self.stages = nn.Sequential()
        self.feature_info = []
        c = widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [_Block(c if j == 0 else width, width, 2 if i > 0 and j == 0 else 1) for j in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**i, "module": f"stages.{i}"})
            c = width
        self.num_features = self.head_hidden_size = c
        self.fc = self._classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        y: Tensor = self.stages(self.stem(x))
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits or self.num_classes == 0 else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one (0 classes: none)."""
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes)


def resnet20_cifar_fp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Full-precision ResNet-20 for CIFAR."""
    features = {"out_indices": tuple(range(len(kwargs.get("depths", (3, 3, 3))))), "feature_cls": "hook"}
    return build_model_with_cfg(FullPrecisionResNet, "resnet20_cifar_fp", pretrained, feature_cfg=features, **kwargs)
