"""Modules: binary layers, the unit that every block is made of, replicated batch norm, shortcuts, activations."""

from esbnn_core.nn.activations import Maxout, RPReLU, ScaleMap, make_activation
from esbnn_core.nn.canonical import Canonical, Evaluator
from esbnn_core.nn.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from esbnn_core.nn.norm import ReplicatedBatchNorm2d
from esbnn_core.nn.shortcut import Shortcut, ShortcutKind
from esbnn_core.nn.sign import Binarizer
from esbnn_core.nn.unit import TAILS, BinaryUnit

__all__ = [
    "TAILS",
    "Binarizer",
    "BinaryConv2d",
    "BinaryLayer",
    "BinaryLinear",
    "BinaryUnit",
    "Canonical",
    "Evaluator",
    "Maxout",
    "RPReLU",
    "ReplicatedBatchNorm2d",
    "ScaleMap",
    "Shortcut",
    "ShortcutKind",
    "make_activation",
]
