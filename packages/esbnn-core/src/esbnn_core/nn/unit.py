"""The one binary block: pre -> sign -> binary convolution -> copies -> an ordered tail of norm, activation, sum, product.

Every architecture is written with it; families differ by what they put into the slots and by where the shortcut taps. So whatever is
done to a block (evaluating its canonical form, packing it, counting it) is written once.
"""

from __future__ import annotations

import dataclasses

from esbnn_core.errors import UserError
from esbnn_core.functional import replicate
from esbnn_core.nn.cached import CachedForm
from esbnn_core.nn.canonical import Canonical
from esbnn_core.nn.layers import BinaryLayer, BinaryLinear
from esbnn_core.nn.norm import ReplicatedBatchNorm2d

import torch
from torch import Tensor, nn

__all__ = ["TAILS", "BinaryUnit"]

TAILS = ("", "n", "a", "x", "na", "an", "n+", "a+", "n+a", "an+", "+", "+na", "xn+", "xn+a", "xa+")
"""The orders of stages in use: n norm, a activation, + sum with the shortcut, x product with a constant map."""


class BinaryUnit(CachedForm):
    """x [N, I, H, W] -> [N, O*copies, H', W'].

    conv: the binary layer, its sign included. tail: one of `TAILS`. copies: of each filter's output (tau times the multiple of what
    the unit writes). pre: a batch norm in front of the sign. act: the activation's module, for tails with `a`. shortcut: what is
    added at `+`, applied to the unit's input, or to `residual` if the call gives one; None adds it as it is. mul: the map of `x`.

    The copies are made by the norm where only operations without parameters of a channel come before it; otherwise where they
    begin to differ. They are never materialised before.
    """

    def __init__(
        self,
        conv: BinaryLayer,
        tail: str = "n+a",
        *,
        copies: int = 1,
        pre: nn.BatchNorm2d | None = None,
        act: nn.Module | None = None,
        shortcut: nn.Module | None = None,
        mul: nn.Module | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(conv, BinaryLinear):
            raise UserError("a binary unit works on maps [N, C, H, W]; use a 1x1 BinaryConv2d instead of a BinaryLinear")
        if tail not in TAILS:
            raise UserError(f"unknown tail {tail!r} of a binary unit; known: {', '.join(repr(t) for t in TAILS)}")
        for stage, module, what in (("a", act, "an activation"), ("x", mul, "a map")):
            if (stage in tail) != (module is not None):
                raise UserError(f"tail {tail!r} {'needs' if module is None else 'has no place for'} {what}")
        if shortcut is not None and "+" not in tail:
            raise UserError(f"tail {tail!r} has no place for a shortcut")
        self.tail, self.copies = tail, copies
        self.pre, self.conv = pre, conv
        self._copy_at = self._first_difference(tail, act)
        if "n" in tail:
            here = tail.index("n") == self._copy_at
            channels = conv.out_channels if here else conv.out_channels * copies
            self.norm = ReplicatedBatchNorm2d(channels, copies if here else 1, eps, momentum)
        self.act, self.mul, self.shortcut = act, mul, shortcut

    @staticmethod
    def _first_difference(tail: str, act: nn.Module | None) -> int:
        """Index of the stage that makes the copies differ; len(tail) if none does."""
        bare = act is None or not any(True for _ in act.parameters())
        for i, stage in enumerate(tail):
            if stage in "n+x" or not bare:
                return i
        return len(tail)

    @property
    def out_channels(self) -> int:
        return self.conv.out_channels * self.copies

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._uses_form(x):
            y = self.evaluator(x)(x)
            done = 1 if self.tail[:1] == "n" else 0
            copied = done == 1
        else:
            y = self.conv(x if self.pre is None else self.pre(x))
            done, copied = 0, self.copies == 1
        for i, stage in enumerate(self.tail[done:], done):
            if i == self._copy_at and not copied:
                copied = True
                if stage != "n":
                    y = replicate(y, self.copies)
            if stage == "n":
                y = self.norm(y)
            elif stage == "a":
                y = self.act(y)  # type: ignore[misc]
            elif stage == "x":
                y = self.mul(y)  # type: ignore[misc]
            else:
                tap = x if residual is None else residual
                y = y + (tap if self.shortcut is None else self.shortcut(tap))
        return y if copied else replicate(y, self.copies)

    # -- canonical form ------------------------------------------------------------------------------------------------------
    def _uses_form(self, x: Tensor) -> bool:
        norms = [norm for norm in (self.pre, self._first_norm()) if norm is not None]
        if self.training or any(norm.training for norm in norms) or not self.conv.uses_form(x) or self.wants_gradient(x):
            return False
        # A norm in front stays a step of its own where it cannot become thresholds.
        return self.pre is None or (self.pre.running_mean is not None and self.conv.threshold_kind() == "const")

    def _first_norm(self) -> ReplicatedBatchNorm2d | None:
        """The norm that the form contains."""
        return self.norm if self.tail[:1] == "n" else None

    def _generation(self) -> int:
        return self._moves + self.conv._moves

    def _depends_on(self) -> list[Tensor]:
        parts = [self.conv, self.pre, self._first_norm()]
        return [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]

    @torch.no_grad()
    def canonical(self) -> Canonical:
        """The layer's canonical form with what belongs to it here: the norm in front in the threshold, copies and first norm folded.

        If the tail does not begin with a norm, copies stay 1 and the later stage makes them.
        """
        form = self.conv.canonical()
        if self.pre is not None:
            form = _fold_pre(form, self.pre)
        norm = self._first_norm()
        if norm is None:
            return form
        rstd = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
        mul = norm.weight.double() * rstd
        return dataclasses.replace(form, copies=self.copies, mul=mul, add=norm.bias.double() - norm.running_mean.double() * mul)

    def extra_repr(self) -> str:
        return f"tail={self.tail!r}, copies={self.copies}"


def _fold_pre(form: Canonical, pre: nn.BatchNorm2d) -> Canonical:
    """A batch norm in front of a sign as thresholds and flips: x >= mean + (threshold - bias)*std/weight, reversed where weight < 0."""
    if form.kind != "const" or form.threshold is None:
        raise UserError(f"a norm in front of the sign cannot be folded into a threshold of the kind {form.kind!r}, made from each sample")
    if pre.running_mean is None or pre.running_var is None:
        raise UserError("a norm in front of the sign must track running statistics to be folded")
    dtype, threshold = form.threshold.dtype, form.threshold[0].double()
    mean, std = pre.running_mean.double(), torch.sqrt(pre.running_var.double() + pre.eps)
    gamma = pre.weight.double() if pre.affine else torch.ones_like(mean)
    beta = pre.bias.double() if pre.affine else torch.zeros_like(mean)
    value = (mean + (threshold - beta) * std / gamma).to(dtype)
    infinity = torch.full_like(value, torch.inf)
    # x <= T is not (x >= the next number above T); a constant norm (gamma = 0) gives the constant bit beta >= threshold.
    value = torch.where(gamma < 0, torch.nextafter(value, infinity), value)
    value = torch.where(gamma == 0, torch.where(beta >= threshold, -infinity, infinity), value)
    flip = gamma < 0 if form.flip is None else (gamma < 0) ^ form.flip
    return dataclasses.replace(form, threshold=value.unsqueeze(0), flip=flip if bool(flip.any()) else None)
