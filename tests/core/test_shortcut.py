"""Shortcuts of every kind: what they compute, and that everything that moves channels stays inside its block."""

from __future__ import annotations

from fractions import Fraction

from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.es import Slot
from esbnn_core.nn import BinaryConv2d, Shortcut
from esbnn_core.training import Progress, begin_step

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("pad", "avg_pad", "conv", "avg_conv", "avg_ceil_conv", "binary")


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(kind: str, c_in: int, c_out: int, stride: int, m_in: int, m_out: Fraction | int, tau: int = 1, groups: int = 1) -> Shortcut:
    torch.manual_seed(0)
    slot = Slot(tau, groups, m_in, Fraction(m_out), int(tau * m_out))
    made = Shortcut(kind, c_in, c_out, stride, m_in, m_out, slot, methods.get("irnet"))  # type: ignore[arg-type]
    begin_step(made, Progress.at(0, 1, 1))
    return made


@pytest.mark.parametrize(("m_in", "m_out"), [(1, 1), (1, 4), (2, 2), (2, 4), (4, 2), (4, 1)])
def test_an_identity_tiles_or_averages_blocks(m_in: int, m_out: int) -> None:
    x = maps(2, 3 * m_in, 4, 4)
    y = Shortcut("identity", 3, 3, m_in=m_in, m_out=m_out)(x)
    blocks = x.unflatten(1, (m_in, 3))
    tiled = [blocks[:, b % m_in] for b in range(m_out)]
    averaged = [blocks[:, b::m_out].mean(1) for b in range(m_out)]
    assert torch.allclose(y, torch.cat(tiled if m_out >= m_in else averaged, 1))


def test_an_identity_to_less_than_a_block_averages_parts_of_blocks() -> None:
    x = maps(1, 2 * 4, 2, 2)  # two blocks of four channels, for a head of n/2
    y = Shortcut("identity", 4, 4, m_in=2, m_out=Fraction(1, 2))(x)
    assert torch.allclose(y, x.unflatten(1, (4, 2)).mean(1))


def channels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("m_out", "want"),
    [
        (2, (0, 1, 2, 0, 0, 3, 4, 0)),
        (4, (0, 1, 2, 0, 0, 3, 4, 0, 0, 1, 2, 0, 0, 3, 4, 0)),
        (1, (0, 2, 3, 0)),
        (Fraction(1, 2), (1.5, 1)),
    ],
)
def test_zeros_are_added_inside_each_of_two_blocks(m_out: Fraction | int, want: tuple[float, ...]) -> None:
    """By hand: blocks (1, 2) and (3, 4) of two channels become blocks of four, one zero in front and one behind."""
    y = Shortcut("pad", 2, 4, 1, m_in=2, m_out=m_out)(channels(1, 2, 3, 4))
    assert torch.equal(y, channels(*want))


def test_an_odd_number_of_zeros_has_the_larger_half_behind() -> None:
    assert torch.equal(Shortcut("pad", 1, 4, 1)(channels(7)), channels(0, 7, 0, 0))


def test_subsampling_takes_every_second_pixel_and_averaging_all() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Shortcut("pad", 1, 1, 2)(x).flatten().tolist() == [0, 2, 8, 10]
    assert Shortcut("avg_pad", 1, 1, 2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize("kind", ["pad", "avg_pad"])
def test_padded_shortcuts_are_those_of_plain_networks_in_every_block(kind: str) -> None:
    x = maps(2, 3 * 4, 6, 6)
    blocks = [Shortcut(kind, 4, 8, 2)(b) for b in x.split(4, 1)]  # type: ignore[arg-type]
    assert torch.equal(Shortcut(kind, 4, 8, 2, m_in=3, m_out=3)(x), torch.cat(blocks, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["conv", "avg_conv", "avg_ceil_conv"])
@pytest.mark.parametrize(("tau", "groups", "m_out"), [(1, 1, 1), (2, 1, 2), (2, 2, 4), (1, 2, 2)])
def test_a_real_shortcut_is_a_shrunk_1x1_convolution_tiled_before_its_norm(kind: str, tau: int, groups: int, m_out: int) -> None:
    e = tau * groups
    shortcut = build(kind, 4, 8, 2, e, m_out, tau, groups)
    size = 7 if kind == "avg_ceil_conv" else 8
    x = maps(3, 4 * e, size, size)
    assert shortcut.conv.weight.numel() == 4 * 8
    pooled = {
        "conv": x[:, :, ::2, ::2],
        "avg_conv": F.avg_pool2d(x, 2),
        "avg_ceil_conv": F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False),
    }[kind]
    want = F.conv2d(pooled, shortcut.conv.weight, groups=groups).repeat(1, tau * m_out, 1, 1)
    want = nn.BatchNorm2d(8 * m_out)(want)
    y = shortcut(x)
    assert y.shape == (3, 8 * m_out, 4, 4)
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-5)


def test_a_binary_shortcut_is_a_unit_of_the_method() -> None:
    shortcut = build("binary", 4, 8, 2, 4, 2, tau=2, groups=2)
    conv = shortcut.unit.conv
    assert isinstance(conv, BinaryConv2d)
    assert (conv.in_channels, conv.out_channels, conv.groups, conv.stride, conv.method.name) == (16, 4, 2, (2, 2), "irnet")
    x = maps(2, 16, 6, 6)
    want = nn.BatchNorm2d(16)(conv(x).repeat(1, 4, 1, 1))
    assert torch.allclose(shortcut(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["identity", *KINDS])
def test_without_change_every_kind_is_an_identity_without_parameters(kind: str) -> None:
    shortcut = build(kind, 4, 4, 1, 1, 1)
    x = maps(1, 4, 3, 3)
    assert shortcut(x) is x
    assert not list(shortcut.parameters())
    assert shortcut.kind == "identity"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 1), (2, 2)])
def test_equal_blocks_stay_equal(kind: str, tau: int, groups: int) -> None:
    e, m_out = tau * groups, 4
    x = maps(2, 4, 6, 6).repeat(1, e, 1, 1)
    blocks = build(kind, 4, 8, 2, e, m_out, tau, groups)(x).unflatten(1, (m_out, 8))
    assert blocks.abs().sum() > 0
    assert all(torch.equal(blocks[:, b], blocks[:, 0]) for b in range(m_out))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_gradients(kind: str) -> None:
    x = maps(2, 8, 6, 6).requires_grad_()
    shortcut = build(kind, 4, 8, 2, 2, 2, tau=2)
    shortcut(x).square().sum().backward()
    assert x.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(p.grad is not None for p in shortcut.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="an identity cannot go from 4 to 8 channels with stride 2"):
        Shortcut("identity", 4, 8, 2)
    with pytest.raises(UserError, match="cannot go from 8 down to 4 channels"):
        Shortcut("pad", 8, 4)
    with pytest.raises(UserError, match="a binary shortcut needs a method"):
        Shortcut("binary", 4, 8)
    with pytest.raises(UserError, match=r"unknown shortcut 'maxpool'; known: identity, pad,"):
        Shortcut("maxpool", 4, 8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"8 blocks of 2 channels, and 3/2 are wanted"):
        Shortcut("identity", 2, 2, m_in=8, m_out=Fraction(3, 2))
