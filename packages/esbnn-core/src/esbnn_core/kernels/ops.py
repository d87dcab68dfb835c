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

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.kernels import abi, reference
from esbnn_core.kernels.layout import words_of
from esbnn_core.kernels.library import check, native

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


def output_size(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """(H', W') of a convolution over maps of (H, W)."""
    return [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]


# -- checks that C cannot make --------------------------------------------------------------------------------------------------------
def _wanted(what: str, t: Tensor | None, *dtypes: torch.dtype) -> Tensor | None:
    if t is None:
        return None
    if t.dtype not in dtypes or t.device.type != "cpu":
        raise UserError(f"{what} is {t.dtype} on {t.device}, wanted {' or '.join(str(d) for d in dtypes)} on the CPU")
    return t.contiguous()


def _input(x: Tensor, threshold: Tensor | None, dims: int) -> tuple[Tensor, Tensor | None, bool]:
    """(x, threshold, packed) in a form that the kernels read."""
    if x.dtype == torch.int64:
        return x.contiguous(), None, True
    if not x.dtype.is_floating_point or (dims and x.dim() != dims):
        raise UserError(f"x is {x.dtype} {list(x.shape)}, wanted floats{' [N, C, H, W]' if dims == 4 else ''} or words of pack_sign (int64)")
    if threshold is None:
        raise UserError("x is not packed, so it needs a threshold [1 or N, 1 or C]")
    if threshold.dim() != 2:
        raise UserError(f"a threshold is [1 or N, 1 or C], this one {list(threshold.shape)}")
    # Halves are exact in float32, and so is the comparison.
    return x.float(), _wanted("threshold", threshold.float(), torch.float32), False


def _native_for(x: Tensor) -> ctypes.CDLL | None:
    """The library, unless these values cannot be compared in float32."""
    return None if x.dtype == torch.float64 else native()


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _count(t: Tensor | None) -> int:
    return 0 if t is None else t.numel()


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first one to the last one that a tensor of these sizes touches."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


# -- calls ----------------------------------------------------------------------------------------------------------------------------
def _pack_sign(x: Tensor, threshold: Tensor, flip: Tensor | None, groups: int) -> Tensor:
    library = _native_for(x)
    if library is None:
        return reference.pack_sign(x, threshold, flip, groups)
    x, limit, _ = _input(x, threshold, 4)
    assert limit is not None
    turned = _wanted("flip", flip, torch.bool, torch.uint8)
    n, c, h, w = x.shape
    if groups < 1 or c % groups:
        raise UserError(f"groups={groups} must divide the {c} channels")
    words = torch.empty((n, h, w, groups, words_of(c // groups)), dtype=torch.int64)
    args = abi.PackArgs(
        ctypes.sizeof(abi.PackArgs), n, h, w, groups, c // groups,
        abi.Floats(x.data_ptr(), _reach(x.shape, x.stride()), *x.stride(), limit.data_ptr(), *limit.shape, _address(turned), _count(turned)),
        words.data_ptr(), words.numel(), torch.get_num_threads(),
    )  # fmt: skip
    check(library, library.esbnn_pack_sign(ctypes.byref(args)))
    return words


@functools.lru_cache(maxsize=1024)
def _template(
    n: int, h: int, w: int, channels: int, filters: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], groups: int, pad: str, x_count: int, x_stride: tuple[int, ...] | None, threshold: tuple[int, int], flips: int,
    weight_bytes: int, copies: int,
) -> tuple[bytes, int, int]:  # fmt: skip
    """A call's numbers as the bytes of its struct, made once for a layer and map size; and (H', W')."""
    if pad not in abi.PADS:
        raise UserError(f"unknown padding {pad!r}; known: {', '.join(abi.PADS)}")
    args = abi.ConvArgs(struct_bytes=ctypes.sizeof(abi.ConvArgs), weights_bytes=weight_bytes)
    args.shape = abi.ConvShape(n, h, w, groups, channels, filters, *kernel, *stride, *padding, *dilation, abi.PADS[pad], 0)
    if x_stride is None:
        args.word_count = x_count
    else:
        args.floats = abi.Floats(None, x_count, *x_stride, None, *threshold, None, flips)
    args.epilogue.copies = copies
    out_h, out_w = output_size((h, w), kernel, stride, padding, dilation)
    return bytes(args), out_h, out_w


def _call(
    library: ctypes.CDLL, maps: tuple[int, int, int], x: Tensor, x_stride: tuple[int, ...] | None, weight: Tensor, limit: Tensor | None,
    flip: Tensor | None, channels: int, filters: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, pad: str, copies: int, fill: Callable[[abi.ConvArgs, int, int], Tensor],
) -> Tensor:  # fmt: skip
    """Run a convolution on maps (N, H, W); `fill` sets the outputs and the epilogue, and keeps what it points to alive itself."""
    turned = _wanted("flip", flip, torch.bool, torch.uint8)
    if weight.dtype != torch.uint8 or weight.dim() != 1:
        raise UserError(f"weight is {weight.dtype} {list(weight.shape)}, wanted what prepare_weights gives: uint8 [bytes]")
    weight = weight.contiguous()
    n, h, w = maps
    count = x.numel() if x_stride is None else _reach((n, channels * groups, h, w), x_stride)
    shape = (1, 1) if limit is None else (limit.shape[0], limit.shape[1])
    template, out_h, out_w = _template(
        n, h, w, channels, filters, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, pad, count, x_stride, shape,  # type: ignore[arg-type]
        _count(turned), weight.numel(), copies,
    )  # fmt: skip
    args = abi.ConvArgs.from_buffer_copy(template)
    if x_stride is None:
        args.words = x.data_ptr()
    else:
        args.floats.x, args.floats.flips = x.data_ptr(), _address(turned)
        args.floats.thresholds = _address(limit)
    args.weights, args.threads = weight.data_ptr(), torch.get_num_threads()
    out = fill(args, out_h, out_w)
    check(library, library.esbnn_conv2d(ctypes.byref(args)))
    return out


def _maps(x: Tensor, packed: bool, channels: int, groups: int) -> tuple[tuple[int, int, int], tuple[int, ...] | None]:
    if packed:
        if x.dim() != 5 or tuple(x.shape[3:]) != (groups, words_of(channels)):
            raise UserError(f"words are {list(x.shape)}, wanted [N, H, W, {groups}, {words_of(channels)}]")
        return (x.shape[0], x.shape[1], x.shape[2]), None
    if x.shape[1] != channels * groups:
        raise UserError(f"x has {x.shape[1]} channels, wanted {groups} groups of {channels}")
    return (x.shape[0], x.shape[2], x.shape[3]), tuple(x.stride())


def _bconv2d_sums(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, channels: int, filters: int, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, pad: str, of_groups: bool,
) -> Tensor:  # fmt: skip
    library = _native_for(x)
    window = (channels, filters, kernel, stride, padding, dilation, groups, pad)
    if library is None:
        return reference.bconv2d_sums(x, weight, threshold, flip, *window, of_groups)
    x, limit, packed = _input(x, threshold, 4)
    maps, x_stride = _maps(x, packed, channels, groups)

    def fill(args: abi.ConvArgs, out_h: int, out_w: int) -> Tensor:
        out = torch.empty((maps[0], groups if of_groups else filters, out_h, out_w), dtype=torch.int32)
        result = abi.Map(out.data_ptr(), out.numel(), *out.stride())
        if of_groups:
            args.group_sums = result
        else:
            args.sums = result
        return out

    return _call(library, maps, x, x_stride, weight, limit, flip, *window, 1, fill)


def _bconv2d(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, p: Tensor, q: Tensor | None, k: Tensor | None,
    row_class: Tensor | None, col_class: Tensor | None, shortcut: Tensor | None, pos: Tensor | None, neg: Tensor | None,
    shift_in: Tensor | None, shift_out: Tensor | None, channels: int, filters: int, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, pad: str, copies: int, act: str, act_first: bool, lo: float, hi: float,
) -> Tensor:  # fmt: skip
    library = _native_for(x)
    window = (channels, filters, kernel, stride, padding, dilation, groups, pad)
    if act not in abi.ACTS:
        raise UserError(f"unknown activation {act!r} of a kernel; known: {', '.join(abi.ACTS)}")
    if library is None:
        lines = (p, q, k, row_class, col_class, shortcut, pos, neg, shift_in, shift_out)
        return reference.bconv2d(x, weight, threshold, flip, *lines, *window, copies, act, act_first, lo, hi)
    x, limit, packed = _input(x, threshold, 4)
    maps, x_stride = _maps(x, packed, channels, groups)
    vectors = {"p": p, "q": q, "k": k, "pos": pos, "neg": neg, "shift_in": shift_in, "shift_out": shift_out}
    kept = {name: _wanted(name, t, torch.float32) for name, t in vectors.items() if t is not None}
    kept |= {name: _wanted(name, t, torch.int32) for name, t in (("row_class", row_class), ("col_class", col_class)) if t is not None}
    if shortcut is not None and (shortcut.dtype != torch.float32 or shortcut.device.type != "cpu"):
        raise UserError(f"the shortcut is {shortcut.dtype} on {shortcut.device}, wanted float32 on the CPU")

    def fill(args: abi.ConvArgs, out_h: int, out_w: int) -> Tensor:
        out = torch.empty((maps[0], filters * copies, out_h, out_w), dtype=torch.float32)
        args.out = abi.Map(out.data_ptr(), out.numel(), *out.stride())
        epilogue = args.epilogue
        for name, t in kept.items():
            setattr(epilogue, name, _address(t))
            setattr(epilogue, f"{name}_count", _count(t))
        if k is not None:
            if row_class is not None and k.dim() == 3:
                epilogue.k_kind, epilogue.k_rows, epilogue.k_cols = abi.K_CLASSES, k.shape[1], k.shape[2]
            else:
                epilogue.k_kind = abi.K_CHANNEL if k.dim() == 1 else abi.K_MAP
        if shortcut is not None:
            if shortcut.shape != out.shape:
                raise UserError(f"the shortcut is {list(shortcut.shape)}, the output {list(out.shape)}")
            epilogue.shortcut = abi.Map(shortcut.data_ptr(), _reach(shortcut.shape, shortcut.stride()), *shortcut.stride())
        epilogue.act, epilogue.act_before_add = abi.ACTS[act], int(act_first)
        epilogue.clamp_lo, epilogue.clamp_hi = lo, hi
        return out

    return _call(library, maps, x, x_stride, weight, limit, flip, *window, copies, fill)


def _blinear(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, p: Tensor, q: Tensor | None, k: Tensor | None, features: int,
    filters: int,
) -> Tensor:  # fmt: skip
    if x.dim() < 2:
        raise UserError(f"x is {list(x.shape)}, wanted [N, ..., {features}]")
    library = _native_for(x)
    if library is None:
        return reference.blinear(x, weight, threshold, flip, p, q, k, features, filters)
    lead = x.shape[:-1]
    x, limit, packed = _input(x.contiguous(), threshold, 0)
    if x.shape[-1] != (words_of(features) if packed else features):
        raise UserError(f"x is {list(x.shape)}, wanted {features} features" + (f", {words_of(features)} words" if packed else ""))
    rows = x.numel() // max(x.shape[-1], 1)
    per_sample = limit is not None and limit.shape[0] > 1
    # One tall map where every row has the same thresholds: rows fill the kernels' lanes.
    n = x.shape[0] if per_sample else 1
    width = rows // max(n, 1)
    maps, x_stride = (n, 1, width), None if packed else (width * features, 1, width * features, features)
    kept = {name: _wanted(name, t, torch.float32) for name, t in (("p", p), ("q", q), ("k", k)) if t is not None}

    def fill(args: abi.ConvArgs, out_h: int, out_w: int) -> Tensor:
        out = torch.empty((*lead, filters), dtype=torch.float32)
        args.out = abi.Map(out.data_ptr(), out.numel(), width * filters, 1, width * filters, filters)
        for name, t in kept.items():
            setattr(args.epilogue, name, _address(t))
            setattr(args.epilogue, f"{name}_count", _count(t))
        args.epilogue.k_kind = abi.K_NONE if k is None else abi.K_CHANNEL
        return out

    one = (1, 1)
    return _call(library, maps, x, x_stride, weight, limit, flip, features, filters, one, one, (0, 0), one, 1, "skip", 1, fill)


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
    _library.impl(_name, globals()[f"_{_name}"], "CPU")
    # Every other device computes the exact float form.
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"esbnn::{_name}", globals()[f"_fake_{_name}"], lib=_library)

pack_sign = torch.ops.esbnn.pack_sign
bconv2d = torch.ops.esbnn.bconv2d
bconv2d_sums = torch.ops.esbnn.bconv2d_sums
blinear = torch.ops.esbnn.blinear
