"""DoReFa-Net with one-bit weights: one scale a layer, activations in {0, 1}."""

from __future__ import annotations

from dataclasses import dataclass

from esbnn_core.errors import UserError
from esbnn_core.functional import sign, straight_through
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, Threshold, bits_of, constant

import torch
from torch import Tensor


@dataclass(frozen=True)
class DoReFa(Method):
    """w_b = E*sign(w), E = mean|w| of the layer, detached, gradient unchanged; a_b = round(clip(a,0,1)*n)/n, n = 2^a_bits - 1.

    One bit of activation means {0, 1} with the threshold 1/2, where 1/2 itself rounds to 0 (half to even). More bits train, but have
    no one-bit form.
    """

    name = "dorefa"
    title = "DoReFa-Net"
    paper = Citation(
        "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients",
        "S. Zhou, Y. Wu, Z. Ni, X. Zhou, H. Wen, Y. Zou",
        "arXiv 2016",
        "https://arxiv.org/abs/1606.06160",
    )
    pad = "lo"

    a_bits: int = 1

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        return straight_through(sign(w) * w.abs().mean(), w)

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        levels = 2**self.a_bits - 1
        clipped = x.clamp(0, 1)
        return straight_through(torch.round(clipped * levels) / levels, clipped)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(bits_of(w), w.abs().mean().expand(w.shape[0]), constant(0.0, w))

    def values(self, state: State) -> tuple[float, float]:
        return 0.0, 1.0

    def threshold(self, x: Tensor, state: State) -> Threshold:
        if self.a_bits != 1:
            raise UserError(f"DoReFa with {self.a_bits}-bit activations has no one-bit form; train with a_bits=1 to pack")
        half = torch.full((1, 1), 0.5, dtype=x.dtype, device=x.device)
        return Threshold(torch.nextafter(half, torch.ones_like(half)))


METHOD = DoReFa()
