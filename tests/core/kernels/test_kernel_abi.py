"""The C interface refuses what cannot be meant, with a text, and reads or writes nothing then."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.kernels import abi, layout, ops

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Layer


class Call:
    """A good call of esbnn_conv2d, and the tensors it points to."""

    def __init__(self) -> None:
        self.layer = Layer(2, 5, 6, 2, 70, 9, (3, 3), padding=(1, 1))
        s = self.layer
        self.words = ops.pack_sign(s.x, s.limit, None, 2)
        self.out = torch.zeros(2, 36, 5, 6)
        self.vectors = torch.randn(8, 36)
        self.classes = torch.zeros(6, dtype=torch.int32)
        self.args = args = abi.ConvArgs(struct_bytes=ctypes.sizeof(abi.ConvArgs), threads=2)
        args.shape = abi.ConvShape(2, 5, 6, 2, 70, 18, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0)
        args.words, args.word_count = self.words.data_ptr(), self.words.numel()
        args.weights, args.weights_bytes = s.weight.data_ptr(), s.weight.numel()
        args.out = abi.Map(self.out.data_ptr(), self.out.numel(), *self.out.stride())
        e = args.epilogue
        e.copies, e.k_kind = 2, abi.K_CHANNEL
        for i, name in enumerate(("p", "q", "k", "pos", "neg", "shift_in", "shift_out")):
            setattr(e, name, self.vectors[i].data_ptr())
            setattr(e, f"{name}_count", 36)


def _set(path: str, value: Any) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        *parents, last = path.split(".")
        target = call.args
        for name in parents:
            target = getattr(target, name)
        setattr(target, last, value)

    return change


BAD = {
    "struct_bytes": (8, "different versions"),
    "shape.n": (-1, "n is -1"),
    "shape.h": (2**40, "h is"),
    "shape.groups": (0, "groups is 0"),
    "shape.channels": (2**30, "not exact in float32"),
    "shape.filters": (17, "do not divide"),
    "shape.kernel_h": (9, "kernel reaches over"),
    "shape.stride_w": (0, "stride_w is 0"),
    "shape.padding_w": (-1, "padding_w is -1"),
    "shape.dilation_h": (0, "dilation_h is 0"),
    "shape.pad": (3, "pad is 3"),
    "shape.reserved": (1, "reserved"),
    "words": (None, "words is null but has"),
    "word_count": (7, "words has 7 elements, wanted 240"),
    "weights": (None, "the weights have 0 bytes"),
    "weights_bytes": (100, "the weights have 100 bytes"),
    "out.data": (None, "out is null but has"),
    "out.count": (2159, "reach element 2159"),
    "out.stride_h": (-1, "negative stride"),
    "out.stride_c": (2**62, "beyond what can be addressed"),
    "epilogue.copies": (0, "copies is 0"),
    "epilogue.p": (None, "p is null"),
    "epilogue.p_count": (35, "p has 35 elements, wanted 36"),
    "epilogue.q_count": (1, "q has 1 elements"),
    "epilogue.k_count": (37, "k has 37 elements"),
    "epilogue.k_kind": (9, "k_kind is 9"),
    "epilogue.act": (-1, "act is -1"),
    "epilogue.act_before_add": (2, "act_before_add is 2"),
    "epilogue.neg": (None, "neg is null"),
    "epilogue.shortcut.count": (5, "shortcut is null but has 5"),
    "threads": (0, "threads is 0"),
}


@pytest.mark.parametrize("where", BAD)
def test_one_wrong_number_is_an_error_that_names_it(native: ctypes.CDLL, where: str) -> None:
    value, text = BAD[where]
    call = Call()
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 0
    call.out.zero_()
    _set(where, value)(call)
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 1
    assert text in native.esbnn_error().decode()
    assert not call.out.any()


def test_border_classes_outside_the_table_are_refused(native: ctypes.CDLL) -> None:
    call = Call()
    e = call.args.epilogue
    table = torch.randn(36, 2, 1)
    rows, columns = torch.tensor([0, 1, 1, 1, 0], dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    e.k_kind, e.k, e.k_count, e.k_rows, e.k_cols = abi.K_CLASSES, table.data_ptr(), table.numel(), 2, 1
    e.row_class, e.row_class_count, e.col_class, e.col_class_count = rows.data_ptr(), 5, columns.data_ptr(), 6
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 0
    rows[4] = 2
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 1
    assert "row_class[4] is 2" in native.esbnn_error().decode()


def test_weights_for_other_sizes_or_of_another_kind_are_refused(native: ctypes.CDLL) -> None:
    call = Call()
    weight = call.layer.weight.clone()
    for offset, text in (
        (0, "not weights that"),
        (8, "filters"),
        (16, "groups"),
        (24, "channels"),
        (32, "rows"),
        (40, "columns"),
        (56, "expansion"),
    ):
        changed = weight.clone()
        changed[offset] += 1
        call.args.weights = changed.data_ptr()
        assert native.esbnn_conv2d(ctypes.byref(call.args)) == 1
        assert text in native.esbnn_error().decode()
    cut = weight.clone()
    cut[48:56].view(torch.int64)[0] += 64
    call.args.weights = cut.data_ptr()
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 1 and "cut off" in native.esbnn_error().decode()


def test_weights_with_any_content_give_a_result_and_no_crash(native: ctypes.CDLL) -> None:
    call = Call()
    weight = call.layer.weight.clone()
    weight[64:] = torch.randint(0, 256, (weight.numel() - 64,), dtype=torch.uint8)
    call.args.weights = weight.data_ptr()
    assert native.esbnn_conv2d(ctypes.byref(call.args)) == 0


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_number_in_any_field_gives_a_status(native: ctypes.CDLL, data: st.DataObject) -> None:
    """Sizes and strides at random. Counts only shrink and pointers stay: nothing could tell that those lie."""
    call = Call()
    extreme = st.one_of(st.integers(-3, 12), st.sampled_from([2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]))
    for name in data.draw(st.lists(st.sampled_from([f for f, _ in abi.ConvShape._fields_[:14]]), min_size=1, max_size=3)):
        setattr(call.args.shape, name, data.draw(extreme))
    for name in data.draw(st.lists(st.sampled_from(["stride_n", "stride_c", "stride_h", "stride_w"]), max_size=2)):
        setattr(call.args.out, name, data.draw(extreme))
    status = native.esbnn_conv2d(ctypes.byref(call.args))
    assert status in (0, 1)


def test_null_structs_are_refused(native: ctypes.CDLL) -> None:
    assert native.esbnn_conv2d(None) == native.esbnn_pack_sign(None) == 1
    assert native.esbnn_output_size(None, None, None) == native.esbnn_packed_words(1, 1, 1, 1, 1, None) == 1
    assert native.esbnn_force_path(b"x" * 1000) == 2


def test_packing_checks_its_sizes(native: ctypes.CDLL) -> None:
    x, limit, words = torch.randn(2, 6, 3, 3), torch.zeros(2, 6), torch.zeros(18, dtype=torch.int64)

    def call(**changes: Any) -> int:
        args = abi.PackArgs(
            ctypes.sizeof(abi.PackArgs), 2, 3, 3, 1, 6,
            abi.Floats(x.data_ptr(), x.numel(), *x.stride(), limit.data_ptr(), 2, 6, None, 0), words.data_ptr(), 18, 1,
        )  # fmt: skip
        for name, value in changes.items():
            setattr(args.floats if hasattr(abi.Floats, name) else args, name, value)
        return native.esbnn_pack_sign(ctypes.byref(args))

    assert call() == 0
    for change in ({"threshold_n": 3}, {"threshold_c": 5}, {"flip_c": 6}, {"x_count": 107}, {"x": None}, {"thresholds": None},
                   {"word_count": 17}, {"words": None}, {"stride_n": 2**62}, {"threads": 0}, {"channels": 0}):  # fmt: skip
        assert call(**change) == 1, change


def test_the_error_text_belongs_to_the_thread(native: ctypes.CDLL) -> None:
    from threading import Thread

    native.esbnn_conv2d(None)
    mine = native.esbnn_error()
    seen: list[bytes] = []
    thread = Thread(target=lambda: seen.append(native.esbnn_error()))
    thread.start()
    thread.join()
    assert mine and seen == [b""]


def test_operators_turn_errors_into_user_errors(native: ctypes.CDLL) -> None:
    layer = Layer(1, 4, 4, 1, 8, 4, (3, 3))
    with pytest.raises(UserError, match="wanted 1 groups of 9"):
        ops.bconv2d_sums(layer.x, layer.weight, layer.limit, None, 9, *layer.window[1:], False)
    with pytest.raises(UserError, match="unknown padding 'zero'"):
        ops.bconv2d_sums(layer.x, layer.weight, layer.limit, None, *layer.window[:-1], "zero", False)
    with pytest.raises(UserError, match="the weights are for 4 filters"):
        ops.bconv2d_sums(layer.x, layer.weight, layer.limit, None, 8, 3, *layer.window[2:], False)
    with pytest.raises(UserError, match="needs a threshold"):
        ops.bconv2d_sums(layer.x, layer.weight, None, None, *layer.window, False)
    with pytest.raises(UserError, match="uint8"):
        ops.bconv2d_sums(layer.x, layer.bits, layer.limit, None, *layer.window, False)
    with pytest.raises(UserError, match="must divide the 8 channels"):
        ops.pack_sign(layer.x, layer.limit, None, 3)
    assert layout.prepared_bits(layer.weight, 4, 8, (3, 3)).shape == (4, 8, 3, 3)
