"""ReActNet: Bi-Real's arithmetic with a learned shift of every channel in front of the sign (RSign)."""

from __future__ import annotations

from dataclasses import dataclass

from esbnn_core.methods._base import Citation
from esbnn_core.methods.bireal import BiReal


@dataclass(frozen=True)
class ReActNet(BiReal):
    """a_b = sign(a + b_c), b learned (paper, section 4.2); weights and gradients as in Bi-Real Net."""

    name = "reactnet"
    title = "ReActNet"
    paper = Citation(
        "ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions",
        "Z. Liu, Z. Shen, M. Savvides, K.-T. Cheng",
        "ECCV 2020",
        "https://arxiv.org/abs/2003.03488",
    )
    shifted = True


METHOD = ReActNet()
