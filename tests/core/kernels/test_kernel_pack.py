"""Packing: the layout bit by bit, comparisons at ties, zeros, infinities and NaN, all strides; weights' prepared form."""

from __future__ import annotations

import ctypes

from esbnn_core.errors import UserError
from esbnn_core.kernels import abi, layout, ops, reference

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CHANNELS


def test_channel_c_is_bit_c_mod_64_of_word_c_div_64() -> None:
    bits = torch.zeros(130, dtype=torch.bool)
    bits[[0, 63, 64, 129]] = True
    assert layout.pack_words(bits).tolist() == [1 - 2**63, 1, 2]
    assert torch.equal(layout.unpack_words(layout.pack_words(bits), 130), bits)


@given(st.integers(1, 300), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_words_keep_their_bits_and_spare_bits_are_zero(channels: int, seed: int) -> None:
    bits = torch.rand((3, channels), generator=torch.Generator().manual_seed(seed)) < 0.5
    words = layout.pack_words(bits)
    assert torch.equal(layout.unpack_words(words, channels), bits)
    assert not layout.unpack_words(words, words.shape[-1] * 64)[:, channels:].any()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("groups", [1, 2])
def test_packing_equals_the_definition_for_all_layouts_in_memory(path: str, channels: int, groups: int) -> None:
    g = torch.Generator().manual_seed(channels)
    x = torch.randint(-2, 3, (2, channels * groups, 5, 21), generator=g).float()
    for threshold in (torch.zeros(1, 1), torch.randint(-1, 2, (2, channels * groups), generator=g).float()):
        for flip in (None, torch.rand(channels * groups, generator=g) < 0.5):
            want = reference.pack_sign(x, threshold, flip, groups)
            layouts = [
                x,
                x.to(memory_format=torch.channels_last),
                x.transpose(2, 3).contiguous().transpose(2, 3),
                torch.stack((x, x), -1)[..., 0],
                x[:, :, :, :1].expand_as(x) if torch.equal(x, x[:, :, :, :1].expand_as(x)) else x,
            ]
            for view in layouts:
                assert torch.equal(ops.pack_sign(view, threshold, flip, groups), want), view.stride()


def test_expanded_tensors_with_strides_of_zero_are_packed(path: str) -> None:
    x = torch.randn(1, 70, 1, 1).expand(2, 70, 3, 4)
    assert torch.equal(ops.pack_sign(x, torch.zeros(1, 1), None, 1), reference.pack_sign(x, torch.zeros(1, 1), None, 1))


def test_zeros_infinities_and_nan_compare_as_floats_do(path: str) -> None:
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45])
    expected = [True, True, True, False, False, True, False]
    for size in ((1, 7, 1, 1), (1, 1, 1, 7)):
        words = ops.pack_sign(values.reshape(size), torch.zeros(1, 1), None, 1)
        assert layout.unpack_words(words, size[1]).flatten().tolist() == expected
        flipped = ops.pack_sign(values.reshape(size), torch.zeros(1, 1), torch.ones(1, dtype=torch.bool), 1)
        assert layout.unpack_words(flipped, size[1]).flatten().tolist() == [not bit for bit in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_give_the_bits_of_their_own_comparison(native: ctypes.CDLL, dtype: torch.dtype) -> None:
    x = torch.randn(2, 20, 4, 4).to(dtype)
    assert torch.equal(ops.pack_sign(x, torch.full((1, 1), 0.25), None, 1), layout.pack_words((x >= 0.25).movedim(1, -1)).unsqueeze(3))


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("per_group", [1, 8, 11])
def test_prepared_weights_are_the_same_from_c_and_from_torch(native: ctypes.CDLL, channels: int, groups: int, per_group: int) -> None:
    bits = torch.rand(groups * per_group, channels, 3, 2) < 0.5
    made = layout.prepare_weights(bits, groups)
    words = layout.pack_words(bits.movedim(1, -1)).contiguous()
    shape = abi.ConvShape(0, 0, 0, groups, channels, groups * per_group, 3, 2, 1, 1, 0, 0, 1, 1, 0, 0)
    wanted = ctypes.c_int64()
    assert native.esbnn_weights_bytes(ctypes.byref(shape), None, ctypes.byref(wanted)) == 0
    assert wanted.value == made.numel() == layout.prepared_bytes(groups * per_group, channels, (3, 2), groups)
    native_form = torch.full_like(made, 255)
    status = native.esbnn_prepare_weights(
        ctypes.byref(shape), None, words.data_ptr(), words.numel(), native_form.data_ptr(), native_form.numel()
    )
    assert status == 0
    assert torch.equal(native_form, made)
    assert torch.equal(layout.prepared_bits(made, groups * per_group, channels, (3, 2), groups), bits)


def test_weights_that_cannot_be_prepared_are_refused() -> None:
    with pytest.raises(UserError, match="bool"):
        layout.prepare_weights(torch.randn(4, 4, 1, 1))
    with pytest.raises(UserError, match="must divide"):
        layout.prepare_weights(torch.ones(4, 4, 1, 1, dtype=torch.bool), groups=3)
