"""Network in Network for CIFAR with XNOR-Net units: batch norm in front of the sign, a real bias, ReLU behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esbnn_core.nn import BinaryConv2d, BinaryUnit

import torch
from timm.models import build_model_with_cfg
from torch import Tensor, nn

if TYPE_CHECKING:
    from esbnn_core.training import Progress

EPS = 1e-4
NORM_FLOOR = 0.01


def _unit(c_in: int, c_out: int, kernel: int) -> BinaryUnit:
    conv = BinaryConv2d(c_in, c_out, kernel, padding=kernel // 2, bias=True, method="xnor")
    return BinaryUnit(conv, "a", pre=nn.BatchNorm2d(c_in, EPS), act=nn.ReLU())


class NIN(nn.Module):
    """image [N, 3, 32, 32] -> logits [N, num_classes], the layers of jiecaoyu/XNOR-Net-PyTorch in their order.

    That trainer's dropout on the bits of two layers is left out. Scales of the norms in front of signs are kept at 0.01 or above by
    `begin_step`, so no comparison is ever reversed.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 192
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, 192, 5, padding=2),
            nn.BatchNorm2d(192, EPS, affine=False),
            nn.ReLU(),
            _unit(192, 160, 1),
            _unit(160, 96, 1),
            nn.MaxPool2d(3, 2, 1),
            _unit(96, 192, 5),
            _unit(192, 192, 1),
            _unit(192, 192, 1),
            nn.AvgPool2d(3, 2, 1),
            _unit(192, 192, 3),
            _unit(192, 192, 1),
            nn.BatchNorm2d(192, EPS, affine=False),
        )
        self.fc = self._classifier(num_classes)
        self.feature_info = [{"num_chs": 192, "reduction": 4, "module": "layers"}]

    @staticmethod
    def _classifier(num_classes: int) -> nn.Module:
        return nn.Conv2d(192, num_classes, 1) if num_classes else nn.Identity()

    def begin_step(self, progress: Progress) -> None:
        """Keep the norms' scales positive; see `esbnn_core.training.begin_step`."""
        for module in self.layers:
            if isinstance(module, BinaryUnit) and module.pre is not None:
                module.pre.weight.data.clamp_(min=NORM_FLOOR)

    def forward_features(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[N, 192, H', W'] -> logits, or the pooled features if `pre_logits`."""
        return (x if pre_logits or self.num_classes == 0 else torch.relu(self.fc(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifying 1x1 convolution by a fresh one (0 classes: none)."""
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes)


def nin_cifar_xnor(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """XNOR-Net's NIN for CIFAR."""
    return build_model_with_cfg(NIN, "nin_cifar_xnor", pretrained, feature_cfg={"out_indices": (0,), "feature_cls": "hook"}, **kwargs)
