"""Bi-Real Net: a better surrogate for the sign of activations, one detached scale a filter."""

from __future__ import annotations

from dataclasses import dataclass

from esbnn_core.functional import sign, straight_through, tent_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, column, constant, per_filter

from torch import Tensor


def scale(w: Tensor) -> Tensor:
    """[O]: mean |w| of each filter."""
    return per_filter(w).abs().mean(1)


@dataclass(frozen=True)
class BiReal(Method):
    """w_b = mean_o|w| * sign(w), gradient that of clip(w, -1, 1), not multiplied by the scale; a_b = sign(a), gradient (2 - 2|a|)+."""

    name = "bireal"
    title = "Bi-Real Net"
    paper = Citation(
        "Bi-Real Net: Enhancing the Performance of 1-bit CNNs with Improved Representational Capability and Advanced Training Algorithm",
        "Z. Liu, B. Wu, W. Luo, X. Yang, W. Liu, K.-T. Cheng",
        "ECCV 2018",
        "https://arxiv.org/abs/1808.00278",
    )

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        return straight_through(column(scale(w), w) * sign(w), w.clamp(-1, 1))

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return tent_sign(x)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(bits_of(w), scale(w), constant(0.0, w))


METHOD = BiReal()
