"""XNOR-Net++: one learned scale of the output instead of two analytic ones."""

from __future__ import annotations

from dataclasses import dataclass

from esbnn_core.errors import UserError
from esbnn_core.functional import clip_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, column, constant, parameter, per_filter

import torch
from torch import Tensor


@dataclass(frozen=True)
class XNORNetPlusPlus(Method):
    """y = Gamma * (sign(a) conv sign(w)), Gamma learned (paper, section 3.2); gradients pass where |.| < 1.

    scale: `channel` learns one number a filter (the layer's `alpha`); `none` leaves Gamma to a `ScaleMap` stage of the unit, which
    has the paper's spatial forms. analytic: multiply by mean_o|w| too, with its gradient. centre: subtract from the weights their
    mean over input channels first. The last two are options of the author's own library.
    """

    name = "xnorpp"
    title = "XNOR-Net++"
    paper = Citation(
        "XNOR-Net++: Improved Binary Neural Networks",
        "A. Bulat, G. Tzimiropoulos",
        "BMVC 2019",
        "https://arxiv.org/abs/1909.13863",
    )

    scale: str = "channel"
    analytic: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        if self.scale not in ("channel", "none"):
            raise UserError(f"XNOR-Net++'s scale is 'channel' or 'none', not {self.scale!r}")

    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"alpha": parameter(torch.ones(weight.shape[0]))} if self.scale == "channel" else {}

    def _latent(self, w: Tensor) -> Tensor:
        return w - w.mean(1, keepdim=True) if self.centre else w

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        z = self._latent(w)
        return clip_sign(z) * column(per_filter(z).abs().mean(1), z) if self.analytic else clip_sign(z)

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        return clip_sign(x)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        z = self._latent(w)
        return Code(bits_of(z), per_filter(z).abs().mean(1) if self.analytic else constant(1.0, z), constant(0.0, z))


METHOD = XNORNetPlusPlus()
