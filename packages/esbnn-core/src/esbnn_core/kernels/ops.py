"""The operators `esbnn::pack_sign`, `esbnn::bconv2d`, `esbnn::bconv2d_sums`, `esbnn::blinear` of torch.library.

They work in eager mode, under torch.compile (fullgraph) and torch.export (dynamic batch); they have no gradient. On the CPU they run the
native kernels if there is a library, otherwise, and on other devices, the same numbers come from `esbnn_core.kernels.reference`.
A saved export loads only after `import esbnn_core.kernels.ops`.

x of bconv2d and bconv2d_sums: float [N, C, H, W] of any strides, with threshold float32 [1 or N, 1 or C] and flip bool [1 or C] or none,
bit = (x >= threshold) xor flip (NaN compares false); or packed words int64 [N, H, W, G, ceil(Cg/64)] of pack_sign, threshold none.
x of blinear: float [N, ..., I] or words int64 [N, ..., ceil(I/64)]. weight: from `layout.prepare_weights`. channels is Cg = C/G.

    y_j = p_j*S_st + q_j*S_s + k_j, j = r*O + o for copies r;   p, q float32 [J]; k float32 [J], [J, H', W'], or [J, rows, cols] with
    int32 row_class [H'], col_class [W'] naming the row and column of it;  then (act_first: first the activation) + shortcut [N, J, H', W'],
    then the activation: `none`, `clamp` to [lo, hi], `two_slope` u = y + shift_in; (u > 0 ? pos*u : neg*u) + shift_out, each [J] or none.

Every product and sum is rounded to float32 on its own. Results do not depend on torch's number of threads, which is what the kernels use.
"""

from __future__ import annotations

from typing import Any

from esbnn_core.kernels import calls, reference
from esbnn_core.kernels.calls import output_size
from esbnn_core.kernels.layout import words_of

import torch
from torch import Tensor

__all__ = ["bconv2d", "bconv2d_sums", "blinear", "output_size", "pack_sign"]

_WINDOW = "int channels, int filters, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, int groups, str pad"
_EPILOGUE = "Tensor p, Tensor? q, Tensor? k"
_SIGN = "Tensor x, Tensor weight, Tensor? threshold, Tensor? flip"
_SCHEMAS = {
    "pack_sign": "(Tensor x, Tensor threshold, Tensor? flip, int groups) -> Tensor",
    "bconv2d": f"({_SIGN}, {_EPILOGUE}, Tensor? row_class, Tensor? col_class, Tensor? shortcut, Tensor? pos, Tensor? neg, "
    f"Tensor? shift_in, Tensor? shift_out, {_WINDOW}, int copies, str act, bool act_first, float lo, float hi) -> Tensor",
    "bconv2d_sums": f"({_SIGN}, {_WINDOW}, bool of_groups) -> Tensor",
    "blinear": f"({_SIGN}, {_EPILOGUE}, int features, int filters) -> Tensor",
}


# -- shapes, for tracing --------------------------------------------------------------------------------------------------------------
def _fake_pack_sign(x: Tensor, threshold: Tensor, flip: Tensor | None, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, groups, words_of(c // groups)), dtype=torch.int64)


def _fake_size(x: Tensor, *window: Any) -> tuple[int, int, int]:
    n, h, w = (x.shape[0], x.shape[1], x.shape[2]) if x.dtype == torch.int64 else (x.shape[0], x.shape[2], x.shape[3])
    return (n, *output_size((h, w), *window))  # type: ignore[return-value]


def _fake_bconv2d(x: Tensor, *args: Any) -> Tensor:
    filters, kernel, stride, padding, dilation = args[14:19]
    copies = args[21]
    n, h, w = _fake_size(x, kernel, stride, padding, dilation)
    return x.new_empty((n, filters * copies, h, w), dtype=torch.float32)


def _fake_bconv2d_sums(x: Tensor, *args: Any) -> Tensor:
    filters, kernel, stride, padding, dilation, groups, _, of_groups = args[4:12]
    n, h, w = _fake_size(x, kernel, stride, padding, dilation)
    return x.new_empty((n, groups if of_groups else filters, h, w), dtype=torch.int32)


def _fake_blinear(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], args[-1]), dtype=torch.float32)


_library = torch.library.Library("esbnn", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, getattr(calls, _name), "CPU")
    # Every other device computes the exact float form.
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"esbnn::{_name}", globals()[f"_fake_{_name}"], lib=_library)

pack_sign = torch.ops.esbnn.pack_sign
bconv2d = torch.ops.esbnn.bconv2d
bconv2d_sums = torch.ops.esbnn.bconv2d_sums
blinear = torch.ops.esbnn.blinear
