"""The classifiers; importing this package registers them with timm."""

from esbnn_cls.models import _register as _register
from esbnn_cls.models.binary_resnet import BinaryResNet, ResidualBlock, Stem, make_block
from esbnn_cls.models.skeletons import SKELETONS, Skeleton

__all__ = ["SKELETONS", "BinaryResNet", "ResidualBlock", "Skeleton", "Stem", "make_block"]
