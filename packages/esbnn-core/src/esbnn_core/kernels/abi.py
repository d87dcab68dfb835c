"""The structs of csrc/include/esbnn.h for ctypes, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p

__all__ = ["ABI_VERSION", "ConvArgs", "ConvShape", "Epilogue", "Floats", "Map", "PackArgs", "declare"]

ABI_VERSION = 1
ACTS = {"none": 0, "clamp": 1, "two_slope": 2}
PADS = {"skip": 0, "lo": 1, "hi": 2}
K_NONE, K_CHANNEL, K_CLASSES, K_MAP = range(4)
ERROR_UNKNOWN_PATH, ERROR_UNSUPPORTED_PATH = 2, 3


def _i64(*names: str) -> list[tuple[str, type]]:
    return [(name, c_int64) for name in names]


class ConvShape(Structure):
    _fields_ = [
        *_i64("n", "h", "w", "groups", "channels", "filters", "kernel_h", "kernel_w", "stride_h", "stride_w"),
        *_i64("padding_h", "padding_w", "dilation_h", "dilation_w"),
        ("pad", c_int32),
        ("reserved", c_int32),
    ]


class Floats(Structure):
    _fields_ = [
        ("x", c_void_p),
        *_i64("x_count", "stride_n", "stride_c", "stride_h", "stride_w"),
        ("thresholds", c_void_p),
        *_i64("threshold_n", "threshold_c"),
        ("flips", c_void_p),
        *_i64("flip_c"),
    ]


class Map(Structure):
    _fields_ = [("data", c_void_p), *_i64("count", "stride_n", "stride_c", "stride_h", "stride_w")]


class Epilogue(Structure):
    _fields_ = [
        *_i64("copies"),
        *[field for name in ("p", "q", "k", "row_class", "col_class") for field in ((name, c_void_p), (f"{name}_count", c_int64))],
        *_i64("k_rows", "k_cols"),
        *[(name, c_int32) for name in ("k_kind", "act", "act_before_add")],
        ("clamp_lo", c_float),
        ("clamp_hi", c_float),
        ("reserved", c_int32),
        *[(name, c_void_p) for name in ("pos", "neg", "shift_in", "shift_out")],
        *_i64("pos_count", "neg_count", "shift_in_count", "shift_out_count"),
        ("shortcut", Map),
    ]


class ConvArgs(Structure):
    _fields_ = [
        ("struct_bytes", c_uint64),
        ("shape", ConvShape),
        ("words", c_void_p),
        *_i64("word_count"),
        ("floats", Floats),
        ("weights", c_void_p),
        *_i64("weights_bytes"),
        ("sums", Map),
        ("group_sums", Map),
        ("out", Map),
        ("epilogue", Epilogue),
        *_i64("threads"),
    ]


class PackArgs(Structure):
    _fields_ = [
        ("struct_bytes", c_uint64),
        *_i64("n", "h", "w", "groups", "channels"),
        ("floats", Floats),
        ("words", c_void_p),
        *_i64("word_count", "threads"),
    ]


def declare(library: ctypes.CDLL) -> None:
    """Give the library's functions their types."""
    pointer = POINTER(c_int64)
    functions: dict[str, tuple[type, list[type]]] = {
        "abi_version": (c_int32, []),
        "error": (c_char_p, []),
        "feature_count": (c_int32, []),
        "feature_name": (c_char_p, [c_int32]),
        "feature_present": (c_int32, [c_int32]),
        "path_count": (c_int32, []),
        "path_name": (c_char_p, [c_int32]),
        "path_needs": (c_char_p, [c_int32]),
        "path_supported": (c_int32, [c_int32]),
        "path_active": (c_int32, []),
        "path_runs": (c_int64, [c_int32]),
        "force_path": (c_int32, [c_char_p]),
        "output_size": (c_int32, [POINTER(ConvShape), pointer, pointer]),
        "packed_words": (c_int32, [c_int64] * 5 + [pointer]),
        "weights_bytes": (c_int32, [POINTER(ConvShape), c_char_p, pointer]),
        "prepare_weights": (c_int32, [POINTER(ConvShape), c_char_p, c_void_p, c_int64, c_void_p, c_int64]),
        "pack_sign": (c_int32, [POINTER(PackArgs)]),
        "conv2d": (c_int32, [c_void_p]),  # a ConvArgs, or its bytes
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"esbnn_{name}")
        function.restype, function.argtypes = result, arguments
