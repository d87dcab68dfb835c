"""Calls of the native library from tensors.

Small layers take a few microseconds, so what is the same from call to call (sizes, strides, counts, kinds) is checked and laid out once:
a plan holds the bytes of the call's struct, found by everything that they depend on, and a call only puts addresses into a copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.kernels import abi, reference
from esbnn_core.kernels.layout import pack_words, prepare_weights, words_of
from esbnn_core.kernels.library import active, check, native

import torch
from torch import Tensor

__all__ = ["bconv2d", "bconv2d_sums", "blinear", "expand_weights", "output_size", "pack_sign"]

_KEPT_PLANS = 4096
_VECTORS = ("p", "q", "k", "pos", "neg", "shift_in", "shift_out")
_WORDS = ctypes.sizeof(abi.ConvArgs) // 8
_Struct = ctypes.c_int64 * _WORDS


def _word(*fields: str) -> int:
    """Index of a field among the struct's 8-byte words."""
    offset = 0
    struct: Any = abi.ConvArgs()
    for name in fields:
        offset += getattr(type(struct), name).offset
        struct = getattr(struct, name)
    return offset // 8


_X, _LIMIT, _FLIPS = _word("floats", "x"), _word("floats", "thresholds"), _word("floats", "flips")
_PACKED, _WEIGHTS, _THREADS = _word("words"), _word("weights"), _word("threads")
_OUT, _SUMS, _GROUP_SUMS = (_word(name, "data") for name in ("out", "sums", "group_sums"))
_SHORTCUT = _word("epilogue", "shortcut", "data")
_AT = {name: _word("epilogue", name) for name in (*_VECTORS, "row_class", "col_class")}


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """(H', W') of a convolution over maps of (H, W)."""
    return [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]


@dataclass(frozen=True)
class _Plan:
    struct: bytes
    out: tuple[int, ...]


_plans: dict[Any, _Plan] = {}


def _keep(key: Any, plan: _Plan) -> _Plan:
    if len(_plans) >= _KEPT_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


# -- checks that C cannot make --------------------------------------------------------------------------------------------------------
def _ready(what: str, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor without gaps, if it is of this type and here."""
    if t.dtype is not dtype or not t.is_cpu:
        raise UserError(f"{what} is {t.dtype} on {t.device}, wanted {dtype} on the CPU")
    return t if t.is_contiguous() else t.contiguous()


def _flips(flip: Tensor | None) -> Tensor | None:
    return None if flip is None else _ready("flip", flip, torch.bool if flip.dtype is torch.bool else torch.uint8)


def _weights(weight: Tensor) -> Tensor:
    if weight.dtype is not torch.uint8 or weight.dim() != 1:
        raise UserError(f"weight is {weight.dtype} {list(weight.shape)}, wanted what prepare_weights gives: uint8 [bytes]")
    return _ready("weight", weight, torch.uint8)


def _input(x: Tensor, threshold: Tensor | None, dims: int) -> tuple[Tensor, Tensor | None]:
    """(x, threshold) as the kernels read them; no threshold for packed words."""
    if x.dtype is torch.int64:
        return (x if x.is_contiguous() else x.contiguous()), None
    if not x.dtype.is_floating_point or (dims and x.dim() != dims):
        raise UserError(f"x is {x.dtype} {list(x.shape)}, wanted floats{' [N, C, H, W]' if dims else ''} or words of pack_sign (int64)")
    if threshold is None:
        raise UserError("x is not packed, so it needs a threshold [1 or N, 1 or C]")
    if threshold.dim() != 2:
        raise UserError(f"a threshold is [1 or N, 1 or C], this one {list(threshold.shape)}")
    # Halves are exact in float32, and so is their comparison.
    return x.float(), _ready("threshold", threshold.float())


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first one to the last one that a tensor of these sizes touches."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _library_for(x: Tensor) -> ctypes.CDLL | None:
    """The library, unless these values cannot be compared in float32."""
    return None if x.dtype is torch.float64 else native()


# -- weights --------------------------------------------------------------------------------------------------------------------------
def expand_weights(
    bits: Tensor, size: Sequence[int], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, pad: str = "skip", path: str | None = None,
) -> Tensor:  # fmt: skip
    """`layout.prepare_weights` and, where `path` (none: the active one) has one for these sizes, its expansion: faster on that path, about
    five times the bytes, still good for every other path and every size of map. size: (N, H, W) of maps to be fast for.
    """
    weight = prepare_weights(bits, groups)
    library = native()
    if library is None:
        return weight
    o, channels, kh, kw = bits.shape
    shape = abi.ConvShape(*size, groups, channels, o, kh, kw, *stride, *padding, *dilation, abi.PADS[pad], 0)
    name, wanted = (path or active()).encode(), ctypes.c_int64()
    check(library, library.esbnn_weights_bytes(ctypes.byref(shape), name, ctypes.byref(wanted)))
    if wanted.value == weight.numel():
        return weight
    words = pack_words(bits.cpu().movedim(1, -1)).contiguous()
    expanded = torch.empty(wanted.value, dtype=torch.uint8)
    check(
        library,
        library.esbnn_prepare_weights(ctypes.byref(shape), name, words.data_ptr(), words.numel(), expanded.data_ptr(), expanded.numel()),
    )
    return expanded


# -- packing --------------------------------------------------------------------------------------------------------------------------
def pack_sign(x: Tensor, threshold: Tensor, flip: Tensor | None, groups: int) -> Tensor:
    library = _library_for(x)
    if library is None:
        return reference.pack_sign(x, threshold, flip, groups)
    x, limit = _input(x, threshold, 4)
    if limit is None:
        raise UserError("x is packed already")
    turned = _flips(flip)
    n, c, h, w = x.shape
    if groups < 1 or c % groups:
        raise UserError(f"groups={groups} must divide the {c} channels")
    words = torch.empty((n, h, w, groups, words_of(c // groups)), dtype=torch.int64)
    stride = x.stride()
    flips = (None, 0) if turned is None else (turned.data_ptr(), turned.numel())
    args = abi.PackArgs(
        ctypes.sizeof(abi.PackArgs), n, h, w, groups, c // groups,
        abi.Floats(x.data_ptr(), _reach(x.shape, stride), *stride, limit.data_ptr(), *limit.shape, *flips),
        words.data_ptr(), words.numel(), torch.get_num_threads(),
    )  # fmt: skip
    check(library, library.esbnn_pack_sign(ctypes.byref(args)))
    return words


# -- convolution ----------------------------------------------------------------------------------------------------------------------
def _start(
    maps: tuple[int, int, int], x_shape: Sequence[int], x_stride: Sequence[int] | None, limit: Sequence[int] | None, flips: int, weights: int,
    channels: int, filters: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    pad: str,
) -> tuple[abi.ConvArgs, int, int]:  # fmt: skip
    """The struct with everything about input, weights and window; and (H', W'). x_stride none: packed."""
    if pad not in abi.PADS:
        raise UserError(f"unknown padding {pad!r}; known: {', '.join(abi.PADS)}")
    args = abi.ConvArgs(struct_bytes=ctypes.sizeof(abi.ConvArgs), weights_bytes=weights)
    args.shape = abi.ConvShape(*maps, groups, channels, filters, *kernel, *stride, *padding, *dilation, abi.PADS[pad], 0)
    if x_stride is None:
        args.word_count = maps[0] * maps[1] * maps[2] * groups * words_of(channels)
    else:
        count = _reach((maps[0], channels * groups, maps[1], maps[2]), x_stride)
        args.floats = abi.Floats(None, count, *x_stride, None, *(limit or (1, 1)), None, flips)
    out_h, out_w = output_size(maps[1:], kernel, stride, padding, dilation)
    return args, out_h, out_w


def _maps(shape: Sequence[int], packed: bool, channels: int, groups: int) -> tuple[int, int, int]:
    """(N, H, W) of the input, whose channels are checked."""
    if not packed:
        if shape[1] != channels * groups:
            raise UserError(f"x has {shape[1]} channels, wanted {groups} groups of {channels}")
        return shape[0], shape[2], shape[3]
    if len(shape) != 5 or tuple(shape[3:]) != (groups, words_of(channels)):
        raise UserError(f"words are {list(shape)}, wanted [N, H, W, {groups}, {words_of(channels)}]")
    return shape[0], shape[1], shape[2]


def _contiguous_map(shape: Sequence[int]) -> abi.Map:
    _, c, h, w = shape
    return abi.Map(None, shape[0] * c * h * w, c * h * w, h * w, w, 1)


def _run(
    library: ctypes.CDLL, plan: _Plan, x: Tensor, limit: Tensor | None, flip: Tensor | None, weight: Tensor, more: dict[int, int]
) -> None:
    args = _Struct.from_buffer_copy(plan.struct)
    if limit is None:
        args[_PACKED] = x.data_ptr()
    else:
        args[_X], args[_LIMIT] = x.data_ptr(), limit.data_ptr()
        if flip is not None:
            args[_FLIPS] = flip.data_ptr()
    args[_WEIGHTS] = weight.data_ptr()
    args[_THREADS] = torch.get_num_threads()
    for word, address in more.items():
        args[word] = address
    check(library, library.esbnn_conv2d(args))


def bconv2d_sums(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, channels: int, filters: int, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, pad: str, of_groups: bool,
) -> Tensor:  # fmt: skip
    library = _library_for(x)
    window: Any = (channels, filters, kernel, stride, padding, dilation, groups, pad)
    if library is None:
        everything: Any = (*window, of_groups)
        return reference.bconv2d_sums(x, weight, threshold, flip, *everything)
    x, limit = _input(x, threshold, 4)
    weight, turned = _weights(weight), _flips(flip)
    about = (
        x.shape, None if limit is None else x.stride(), None if limit is None else limit.shape, 0 if turned is None else turned.numel(),
        weight.shape[0],
    )  # fmt: skip
    key = (*about, channels, filters, *kernel, *stride, *padding, *dilation, groups, pad, of_groups)
    plan = _plans.get(key)
    if plan is None:
        maps = _maps(x.shape, limit is None, channels, groups)
        args, out_h, out_w = _start(maps, *about, *window)
        shape = (maps[0], groups if of_groups else filters, out_h, out_w)
        setattr(args, "group_sums" if of_groups else "sums", _contiguous_map(shape))
        # A kernel that reaches over the map is refused by the library, whose text says more than torch's about negative sizes.
        plan = _keep(key, _Plan(bytes(args), tuple(max(0, size) for size in shape)))
    out = torch.empty(plan.out, dtype=torch.int32)
    _run(library, plan, x, limit, turned, weight, {_GROUP_SUMS if of_groups else _SUMS: out.data_ptr()})
    return out


def bconv2d(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, p: Tensor, q: Tensor | None, k: Tensor | None,
    row_class: Tensor | None, col_class: Tensor | None, shortcut: Tensor | None, pos: Tensor | None, neg: Tensor | None,
    shift_in: Tensor | None, shift_out: Tensor | None, channels: int, filters: int, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, pad: str, copies: int, act: str, act_first: bool, lo: float, hi: float,
) -> Tensor:  # fmt: skip
    library = _library_for(x)
    window: Any = (channels, filters, kernel, stride, padding, dilation, groups, pad)
    if library is None:
        lines = (p, q, k, row_class, col_class, shortcut, pos, neg, shift_in, shift_out)
        tail: Any = (*window, copies, act, act_first, lo, hi)
        return reference.bconv2d(x, weight, threshold, flip, *lines, *tail)
    x, limit = _input(x, threshold, 4)
    weight, turned = _weights(weight), _flips(flip)
    about = (
        x.shape, None if limit is None else x.stride(), None if limit is None else limit.shape, 0 if turned is None else turned.numel(),
        weight.shape[0],
    )  # fmt: skip
    kept: list[tuple[int, Tensor]] = []
    sizes: list[Any] = []
    for name, t in zip(_VECTORS, (p, q, k, pos, neg, shift_in, shift_out), strict=True):
        if t is None:
            sizes.append(None)
        else:
            t = _ready(name, t)
            kept.append((_AT[name], t))
            sizes.append(t.shape)
    if row_class is not None and col_class is not None:
        kept += [
            (_AT["row_class"], _ready("row_class", row_class, torch.int32)),
            (_AT["col_class"], _ready("col_class", col_class, torch.int32)),
        ]
        sizes += [row_class.shape, col_class.shape]
    if shortcut is not None:
        if shortcut.dtype is not torch.float32 or not shortcut.is_cpu:
            raise UserError(f"the shortcut is {shortcut.dtype} on {shortcut.device}, wanted float32 on the CPU")
        kept.append((_SHORTCUT, shortcut))
        sizes += [shortcut.shape, shortcut.stride()]
    key = (*about, *sizes, channels, filters, *kernel, *stride, *padding, *dilation, groups, pad, copies, act, act_first, lo, hi)
    plan = _plans.get(key)
    if plan is None:
        maps = _maps(x.shape, limit is None, channels, groups)
        args, out_h, out_w = _start(maps, *about, *window)
        shape = (maps[0], filters * copies, out_h, out_w)
        args.out = _contiguous_map(shape)
        _fill_epilogue(
            args.epilogue, dict(zip(_VECTORS, sizes, strict=False)), row_class, col_class, shortcut, shape, copies, act, act_first
        )
        args.epilogue.clamp_lo, args.epilogue.clamp_hi = lo, hi
        plan = _keep(key, _Plan(bytes(args), tuple(max(0, size) for size in shape)))
    out = torch.empty(plan.out, dtype=torch.float32)
    addresses = {word: t.data_ptr() for word, t in kept}
    addresses[_OUT] = out.data_ptr()
    _run(library, plan, x, limit, turned, weight, addresses)
    return out


def _fill_epilogue(
    epilogue: abi.Epilogue, sizes: dict[str, torch.Size | None], row_class: Tensor | None, col_class: Tensor | None, shortcut: Tensor | None,
    out: tuple[int, ...], copies: int, act: str, act_first: bool,
) -> None:  # fmt: skip
    """Counts, kinds and strides of an epilogue."""
    if act not in abi.ACTS:
        raise UserError(f"unknown activation {act!r} of a kernel; known: {', '.join(abi.ACTS)}")
    epilogue.copies, epilogue.act, epilogue.act_before_add = copies, abi.ACTS[act], int(act_first)
    for name, size in sizes.items():
        setattr(epilogue, f"{name}_count", 0 if size is None else size.numel())
    k = sizes["k"]
    if k is not None:
        if row_class is not None and col_class is not None:
            if len(k) != 3:
                raise UserError(f"k is {list(k)}, wanted [J, rows, columns] where row_class and col_class are given")
            epilogue.k_kind, epilogue.k_rows, epilogue.k_cols = abi.K_CLASSES, k[1], k[2]
            epilogue.row_class_count, epilogue.col_class_count = row_class.numel(), col_class.numel()
        else:
            epilogue.k_kind = abi.K_CHANNEL if len(k) == 1 else abi.K_MAP
    if shortcut is not None:
        if shortcut.shape != out:
            raise UserError(f"the shortcut is {list(shortcut.shape)}, the output {list(out)}")
        epilogue.shortcut = abi.Map(None, _reach(shortcut.shape, shortcut.stride()), *shortcut.stride())


# -- linear ---------------------------------------------------------------------------------------------------------------------------
def blinear(
    x: Tensor, weight: Tensor, threshold: Tensor | None, flip: Tensor | None, p: Tensor, q: Tensor | None, k: Tensor | None, features: int,
    filters: int,
) -> Tensor:  # fmt: skip
    if x.dim() < 2:
        raise UserError(f"x is {list(x.shape)}, wanted [N, ..., {features}]")
    library = _library_for(x)
    if library is None:
        return reference.blinear(x, weight, threshold, flip, p, q, k, features, filters)
    x, limit = _input(x.contiguous(), threshold, 0)
    weight, turned = _weights(weight), _flips(flip)
    kept = [(_AT[name], _ready(name, t)) for name, t in (("p", p), ("q", q), ("k", k)) if t is not None]
    sizes = [None if t is None else t.shape for t in (p, q, k)]
    about = (None if limit is None else limit.shape, 0 if turned is None else turned.numel(), weight.shape[0])
    key = (x.shape, *about, *sizes, features, filters)
    plan = _plans.get(key)
    if plan is None:
        packed = limit is None
        if x.shape[-1] != (words_of(features) if packed else features):
            raise UserError(f"x is {list(x.shape)}, wanted {features} features" + (f", {words_of(features)} words" if packed else ""))
        rows = x.shape[:-1].numel()
        # One wide map where every row has the same thresholds: rows fill the kernels' lanes.
        n = x.shape[0] if limit is not None and limit.shape[0] > 1 else 1
        width = rows // max(n, 1)
        stride = None if packed else (width * features, 1, width * features, features)
        one = (1, 1)
        args, _, _ = _start((n, 1, width), x.shape, stride, *about, features, filters, one, one, (0, 0), one, 1, "skip")
        args.out = abi.Map(None, rows * filters, width * filters, 1, width * filters, filters)
        _fill_epilogue(args.epilogue, dict(zip("pqk", sizes, strict=True)), None, None, None, (), 1, "none", False)
        plan = _keep(key, _Plan(bytes(args), (*x.shape[:-1], filters)))
    out = torch.empty(plan.out, dtype=torch.float32)
    addresses = {word: t.data_ptr() for word, t in kept}
    addresses[_OUT] = out.data_ptr()
    _run(library, plan, x, limit, turned, weight, addresses)
    return out
