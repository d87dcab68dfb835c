"""Binary convolution and linear layers: latent weights, a method, and the sign in front.

In training they evaluate the method's differentiable expression. In evaluation, when no gradient is wanted, they evaluate their
canonical form (see `canonical`), the line that packed inference evaluates too. With gradients enabled, evaluation mode uses the
training expression; the two agree up to rounding.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal

from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.methods import Code, Method
from esbnn_core.nn.cached import CachedForm
from esbnn_core.nn.canonical import Canonical
from esbnn_core.nn.sign import Binarizer, register_state

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

if TYPE_CHECKING:
    from esbnn_core.training import Progress

__all__ = ["BinaryConv2d", "BinaryLayer", "BinaryLinear"]

_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has only the second


class BinaryLayer(CachedForm):
    """What convolution and linear layer share. `weight` is latent (real); `state` are the method's own tensors beside it."""

    weight: nn.Parameter
    alpha: nn.Parameter | None
    bias: nn.Parameter | None
    sign: Binarizer | None
    plain_expression: bool = False
    """Set on a layer, evaluation takes the training expression too and folds nothing into it: for looking at a network by layers."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        method: str | Method,
        pad: Literal["skip", "lo", "hi"] | None,
        shift: bool | None,
        real_input: bool,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise UserError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.method = methods.get(method)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding, self.dilation, self.groups = kernel_size, stride, padding, dilation, groups
        self.pad = pad or self.method.pad
        self.weight_mode: Literal["binary", "real"] = "binary"
        weight = torch.empty(out_channels, in_channels // groups, *kernel_size)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self._names = register_state(self, self.method.weight_state(weight))
        if "alpha" not in self._names:
            self.alpha = None
        self.weight = nn.Parameter(self._stored(weight))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.sign = None if real_input else Binarizer(self.method, in_channels, shift)
        self._scalars: dict[str, float] | None = None
        self._projected = False

    def _stored(self, weight: Tensor) -> Tensor:
        return weight

    @property
    def kernel(self) -> Tensor:
        """The latent weight as [O, I/g, kh, kw]."""
        return self.weight

    @property
    def state(self) -> dict[str, Tensor]:
        """The method's tensors of this layer, by name."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def scalars(self) -> dict[str, float]:
        """The schedule's values at the last `begin_step` (before the first: at progress 0)."""
        return self._scalars if self._scalars is not None else self.method.schedule(0.0)

    # -- training hooks ------------------------------------------------------------------------------------------------------
    def begin_step(self, progress: Progress) -> None:
        """See `esbnn_core.training.begin_step`."""
        self._scalars = self.method.schedule(progress.p)
        if self.method.projects and not self._projected and self.weight_mode == "binary":
            self.method.project(self.kernel.data, self.state, self._scalars, progress)
            self.weights_moved()
        self._projected = True

    def weights_moved(self) -> None:
        super().weights_moved()
        self._projected = False

    def refresh(self) -> None:
        """Recompute stored codes after the weight was set by hand."""
        with torch.no_grad():
            self.method.refresh(self.kernel, self.state)
        self.weights_moved()

    def _check_begun(self) -> None:
        if self.method.projects and not self._projected:
            raise RuntimeError(
                f"method {self.method.name!r} changes latent weights before each optimizer step: call "
                f"esbnn_core.begin_step(model, progress) before the step's first forward, and "
                f"esbnn_core.training.watch(optimizer, model) once"
            )
        if self.method.scheduled and self._scalars is None:
            warnings.warn(
                f"method {self.method.name!r} has a schedule, but esbnn_core.begin_step was never called: it stays at its beginning",
                stacklevel=4,
            )
            self._scalars = self.method.schedule(0.0)

    # -- the weight ----------------------------------------------------------------------------------------------------------
    def binary_weight(self) -> Tensor:
        """The tensor that enters the convolution as weight, differentiable, [O, I/g, kh, kw]."""
        if self.weight_mode == "real":
            return self.kernel
        wb = self.method.weight(self._latent(), self.state, self.scalars, self.groups, self.training)
        if self.training:
            with torch.no_grad():
                self.method.observe(wb, self.state)
        return wb

    @torch.no_grad()
    def code(self) -> Code:
        """The weight in one bit, by the same float rule as the training expression."""
        return self.method.code(self._latent(), self.state, self.groups)

    def _latent(self) -> Tensor:
        return self.kernel if self._projected else self.method.projected(self.kernel)

    @torch.no_grad()
    def canonical(self) -> Canonical:
        """This layer's canonical form. Raises `UserError` where it has none (real weights or input, more than one bit)."""
        if self.weight_mode == "real":
            raise UserError(f"{self._where()} still has real weights (a first training step); it has no one-bit form")
        if self.sign is None:
            raise UserError(f"{self._where()} reads real input; it has no one-bit form")
        if not self.has_form():
            raise UserError(f"{self._where()} has activations of more than one bit; only one-bit activations have a one-bit form")
        code = self.code()
        threshold = self.sign.threshold(self._probe())
        lo, hi = self.method.values(self.sign.state)
        made_from_sample = threshold.kind in ("sample_mean", "computed")
        return Canonical(
            bits=code.bits,
            half=code.half.double(),
            mid=code.mid.double(),
            lo=lo,
            hi=hi,
            kind=threshold.kind,
            threshold=None if made_from_sample else threshold.value,
            flip=threshold.flip,
            resolve=self.sign.threshold,
            pad=self.pad,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            post=None if self.alpha is None else self.alpha.double(),
            bias=None if self.bias is None else self.bias.double(),
            meta={"method": self.method.name, "capacity": self.capacity},
        )

    def threshold_kind(self) -> Literal["const", "table", "sample_mean", "computed"]:
        """Where the activations' threshold comes from; see `Threshold`."""
        if self.sign is None:
            raise UserError(f"{self._where()} reads real input; it has no threshold")
        return self.sign.threshold(self._probe()).kind

    def _probe(self) -> Tensor:
        return torch.zeros(1, self.in_channels, 1, 1, dtype=self.weight.dtype, device=self.weight.device)

    def _where(self) -> str:
        return f"binary layer {self.in_channels} -> {self.out_channels} ({self.method.name})"

    @property
    def capacity(self) -> int:
        """Representation capacity: number of values an output can take, in_channels/groups * kh * kw + 1 (section 3.1)."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1] + 1

    def has_form(self) -> bool:
        """Whether the layer can be evaluated in its canonical form at all."""
        return self.weight_mode == "binary" and self.sign is not None and getattr(self.method, "a_bits", 1) == 1

    def uses_form(self, x: Tensor) -> bool:
        """Whether this call evaluates the canonical form: evaluation mode, no gradient wanted, and not being exported."""
        # An exported program is traced on tensors without data, from which no form can be made.
        if self.training or not self.has_form() or self.plain_expression or _exporting():
            return False
        return not self.wants_gradient(x)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, method={self.method.name}"
        return text + (f", groups={self.groups}" if self.groups > 1 else "") + (f", pad={self.pad}" if any(self.padding) else "")


class BinaryConv2d(BinaryLayer):
    """A 2-d convolution with one-bit weights and activations: x [N, I, H, W] -> [N, O, H', W'].

    method: name or `Method`. pad: what padding contributes, `skip` (nothing: fewer taps), `lo` or `hi` (a bit); None takes the
    method's. shift: a learned shift in front of the sign. real_input: leave the input as it is (a first layer).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        method: str | Method = "irnet",
        pad: Literal["skip", "lo", "hi"] | None = None,
        shift: bool | None = None,
        real_input: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), groups, bias, method, pad, shift,
            real_input,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.uses_form(x):
            return self.evaluator(x)(x)
        if self.training:
            self._check_begun()
        if self.sign is not None:
            x = self.sign(x, self.scalars)
        y = self._convolve(x, self.binary_weight())
        if self.alpha is not None:
            y = y * self.alpha.view(-1, 1, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.padding
        if self.pad != "skip" and any(padding) and self.sign is not None:
            value = self.method.values(self.sign.state)[self.pad == "hi"]
            if value != 0:
                x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=value)
                padding = (0, 0)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)


class BinaryLinear(BinaryLayer):
    """A linear layer with one-bit weights and activations: x [N, ..., I] -> [N, ..., O]; the latent weight is [O, I]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        method: str | Method = "irnet",
        shift: bool | None = None,
    ) -> None:
        super().__init__(in_features, out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1, bias, method, None, shift, False)

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    @property
    def kernel(self) -> Tensor:
        return self.weight[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        # Channels to the second place, as in a convolution, so that statistics of a sample and per-channel shifts mean the same.
        maps = x.movedim(-1, 1).flatten(2).unsqueeze(3) if x.dim() > 2 else x[:, :, None, None]
        if self.uses_form(x):
            y = self.evaluator(x)(maps)
        else:
            if self.training:
                self._check_begun()
            if self.sign is not None:
                maps = self.sign(maps, self.scalars)
            y = F.linear(maps.squeeze(3).movedim(1, -1), self.binary_weight().flatten(1))
            if self.alpha is not None:
                y = y * self.alpha
            y = y if self.bias is None else y + self.bias
            return y.reshape(*x.shape[:-1], self.out_channels)
        return y.flatten(2).movedim(1, -1).reshape(*x.shape[:-1], self.out_channels)
