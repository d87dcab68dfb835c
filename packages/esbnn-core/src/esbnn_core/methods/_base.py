"""What a binarization method is: pure arithmetic on weights and activations, knowing nothing of blocks, networks or expansion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from esbnn_core.functional import sign

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from esbnn_core.training import Progress

__all__ = ["Citation", "Code", "Method", "Scalars", "State", "Threshold"]

Scalars: TypeAlias = Mapping[str, float]
"""Values of a schedule at one moment of training, by name."""
State: TypeAlias = Mapping[str, Tensor]
"""A layer's own tensors beside its weight, by name (scale `alpha`, rotations, stored codes, ...)."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a method comes from."""

    title: str
    authors: str
    venue: str
    url: str


@dataclass(frozen=True, slots=True)
class Code:
    """A weight in one bit: value = mid + half * (+1 or -1).

    bits: bool, the weight's shape, true for +1. half, mid: [O], in the weight's dtype.
    """

    bits: Tensor
    half: Tensor
    mid: Tensor


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where an activation's bit switches: bit = (x >= value) xor flip. What the two bits stand for is `Method.values`.

    value: [1 or N, 1 or C]. flip: bool, [1 or C] or none. kind says where the value comes from: `const` is known before the run,
    `sample_mean` and `computed` are made from each sample.
    """

    value: Tensor
    flip: Tensor | None = None
    kind: Literal["const", "table", "sample_mean", "computed"] = "const"


@dataclass(frozen=True)
class Method:
    """One binarization method; a subclass a file. Fields of a subclass are its options (with the official values as defaults).

    A method's scalars are pure functions of training progress. In-place changes of latent weights happen in `project` only; the
    forward functions never write.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[Citation]
    scheduled: ClassVar[bool] = False
    """Whether `schedule` says anything: training without `begin_step` then warns."""
    projects: ClassVar[bool] = False
    """Whether `project` changes latent weights: training without `begin_step` is then an error."""
    shifted: ClassVar[bool] = False
    """Whether the binarizer learns a shift of every channel in front of the sign (RSign)."""
    pad: ClassVar[Literal["skip", "lo", "hi"]] = "skip"
    """What padding contributes: nothing (fewer taps), or one of the two values."""
    copied: ClassVar[tuple[str, ...]] = ()
    """State that an average of weights takes over as it is: averaged rotations are no rotations."""

    # -- state ---------------------------------------------------------------------------------------------------------------
    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Tensors that a layer with this weight [O, I/g, kh, kw] needs; an `nn.Parameter` is trained, a plain tensor is a buffer.

        A key `alpha` [O] is a learned scale of the convolution's output.
        """
        return {}

    def activation_state(self, channels: int) -> dict[str, Tensor]:
        """The same for the binarizer of the activations in front of the layer."""
        return {}

    # -- training ------------------------------------------------------------------------------------------------------------
    def schedule(self, p: float) -> dict[str, float]:
        """Scalars at progress p in [0, 1]."""
        return {}

    def project(self, w: Tensor, state: State, scalars: Scalars, progress: Progress) -> None:
        """Change the latent weight or its state in place, once per optimizer step before the first forward."""

    def projected(self, w: Tensor) -> Tensor:
        """The weight that inference must read where `project` is due: what it would make of w, as a function, where that moves bits."""
        return w

    def weight(self, w: Tensor, state: State, scalars: Scalars, groups: int = 1, training: bool = True) -> Tensor:
        """The tensor that enters the convolution as weight, differentiable; w [O, I/g, kh, kw]."""
        raise NotImplementedError(f"{type(self).__name__}.weight")

    def activation(self, x: Tensor, state: State, scalars: Scalars, training: bool = True) -> Tensor:
        """The tensor that enters the convolution as input, differentiable; x [N, C, ...]."""
        raise NotImplementedError(f"{type(self).__name__}.activation")

    def observe(self, wb: Tensor, state: State) -> None:
        """Store what a forward in training mode leaves behind for inference (SiMaN's code); wb is what `weight` returned."""

    def refresh(self, w: Tensor, state: State) -> None:
        """Make stored codes again from the weight, after it was averaged or set by hand."""

    # -- inference -----------------------------------------------------------------------------------------------------------
    def code(self, w: Tensor, state: State, groups: int = 1) -> Code:
        """The weight's bits and two values a filter, by the same float rule as `weight`."""
        raise NotImplementedError(f"{type(self).__name__}.code")

    def values(self, state: State) -> tuple[float, float]:
        """What an activation's clear and set bit stand for; `state` is the binarizer's."""
        return -1.0, 1.0

    def threshold(self, x: Tensor, state: State) -> Threshold:
        """Where the activations' bit switches. Only methods with a threshold of its own per sample look at x."""
        return Threshold(torch.zeros(1, 1, dtype=x.dtype, device=x.device))

    # -- description ---------------------------------------------------------------------------------------------------------
    def options(self) -> dict[str, Any]:
        """The options and their values, for configs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def per_filter(t: Tensor) -> Tensor:
    """[O, ...] -> [O, n]."""
    return t.flatten(1)


def filter_mean(w: Tensor) -> Tensor:
    """Mean over everything but the output channel, kept broadcastable: [O, 1, 1, 1]."""
    return w.mean(dim=tuple(range(1, w.dim())), keepdim=True)


def column(t: Tensor, like: Tensor) -> Tensor:
    """[O] -> [O, 1, ...] to multiply a weight."""
    return t.reshape(-1, *([1] * (like.dim() - 1)))


def sample_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each sample over channels and positions, kept broadcastable."""
    dims = tuple(range(1, x.dim()))
    var, mean = torch.var_mean(x, dim=dims, correction=1, keepdim=True)
    return mean, var


def sample_mean_threshold(x: Tensor) -> Tensor:
    """[N, 1]: the smallest number of x's dtype that is not below the sample's mean in float64.

    With it `x >= threshold` is exactly `x >= mean`, in torch and in a native kernel alike.
    """
    mean = x.flatten(1).double().mean(1)
    value = mean.to(x.dtype)
    below = value.double() < mean
    value = torch.where(below, torch.nextafter(value, torch.full_like(value, torch.inf)), value)
    return value.unsqueeze(1)


def bits_of(z: Tensor) -> Tensor:
    """z >= 0 as bool, the one rule that `sign` follows too."""
    return sign(z) > 0


def constant(value: float, w: Tensor) -> Tensor:
    """[O] filled with one number."""
    return torch.full((w.shape[0],), value, dtype=w.dtype, device=w.device)


def parameter(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t.detach().clone())
