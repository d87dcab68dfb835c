"""BinaryNet: plain signs with an identity gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esbnn_core.functional import identity_sign
from esbnn_core.methods._base import Citation, Code, Method, Scalars, State, bits_of, constant

from torch import Tensor

if TYPE_CHECKING:
    from esbnn_core.training import Progress


@dataclass(frozen=True)
class BinaryNet(Method):
    """w_b = sign(w), a_b = sign(a); gradients pass unchanged (the network's Hardtanh clips those of the activations).

    clip_weights: clip latent weights to [-1, 1] after each update, as the paper says; the official loops do it for biases only.
    """

    name = "bnn"
    title = "BinaryNet"
    paper = Citation(
        "Binarized Neural Networks",
        "I. Hubara, M. Courbariaux, D. Soudry, R. El-Yaniv, Y. Bengio",
        "NeurIPS 2016",
        "https://arxiv.org/abs/1602.02830",
    )

    clip_weights: bool = False

    @property
    def projects(self) -> bool:  # type: ignore[override]
        return self.clip_weights

    def project(self, w: Tensor, state: State, scalars: Scalars, progress: Progress) -> None:
        w.clamp_(-1, 1)

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        return identity_sign(w)

    def activation(self, x: Tensor, state: State, scalars: Mapping[str, float], training: bool = True) -> Tensor:
        return identity_sign(x)

    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        return Code(bits_of(w), constant(1.0, w), constant(0.0, w))


METHOD = BinaryNet()
