"""Signs and their surrogate gradients, blocks of channels."""

from __future__ import annotations

import math
from collections.abc import Callable

from esbnn_core.functional import (
    adapt_blocks,
    clip_sign,
    identity_sign,
    normalised_tent_sign,
    replicate,
    sign,
    straight_through,
    tanh_sign,
    tent_sign,
)
from esbnn_core.methods.reste import power_sign

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TINY
from torch import Tensor

POINTS = [-2.0, -1.5, -1.0, -0.7, -0.1, -0.05, -0.0, 0.0, 0.05, 0.1, 0.7, 1.0, 1.5, 2.0]

SURROGATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "identity": (identity_sign, lambda x: 1.0),
    "clip, open": (clip_sign, lambda x: float(abs(x) < 1)),
    "clip, closed": (lambda x: clip_sign(x, closed=True), lambda x: float(abs(x) <= 1)),
    "tent": (tent_sign, lambda x: max(2 - 2 * abs(x), 0.0)),
    "tent of RBNN": (lambda x: tent_sign(x, 2**0.5 * 0.5, 0.25), lambda x: max(2**0.5 * 0.5 - 0.25 * abs(x), 0.0)),
    "tanh": (lambda x: tanh_sign(x, 0.5, 2.0), lambda x: 1.0 - math.tanh(0.5 * x) ** 2),
    "power, o = 1": (lambda x: power_sign(x, 1.0, 1.5), lambda x: float(abs(x) <= 1.5)),
    "power, o = 3": (
        lambda x: power_sign(x, 3.0, 1.5),
        lambda x: 0.0 if abs(x) > 1.5 else 0.1 ** (1 / 3) / 0.1 if abs(x) <= 0.1 else abs(x) ** (-2 / 3) / 3,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_both_zeros_are_positive(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1e-3, -1e-3, math.inf, -math.inf], dtype=dtype)
    assert sign(x).tolist() == [1, 1, 1, -1, 1, -1]
    assert sign(x).dtype == dtype


def test_the_sign_of_the_smallest_numbers_is_theirs() -> None:
    tiny = torch.tensor([5e-324, -5e-324], dtype=torch.float64)
    assert sign(tiny).tolist() == [1, -1]


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_is_the_sign_forward_and_its_formula_backward(name: str) -> None:
    function, slope = SURROGATES[name]
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    y = function(x)
    assert torch.equal(y, sign(x))
    weights = torch.linspace(0.5, 2, len(POINTS), dtype=torch.float64)
    y.backward(weights)
    want = torch.tensor([slope(p) for p in POINTS], dtype=torch.float64) * weights
    assert torch.allclose(x.grad, want, rtol=1e-12, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_leaves_its_input_and_the_arriving_gradient_alone(name: str) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before, grad = x.detach().clone(), torch.ones(64)
    SURROGATES[name][0](x).backward(grad)
    assert torch.equal(x.detach(), before)
    assert torch.equal(grad, torch.ones(64))


def test_straight_through_takes_the_value_and_passes_the_gradient() -> None:
    value, carrier = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    out = straight_through(value, carrier)
    out.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(out, value)
    assert value.grad is None
    assert carrier.grad.tolist() == [1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 7), (1, 2, 9)])
def test_the_fused_normalised_sign_is_the_tent_of_the_normalised_tensor(shape: tuple[int, ...], centre: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3).requires_grad_()
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = normalised_tent_sign(x, 1.7, 1.1, centre, 1e-5)
    (got,) = torch.autograd.grad(y, x, g)
    dims = tuple(range(1, x.dim()))
    z = (x - x.mean(dims, keepdim=True) if centre else x) / (x.var(dims, keepdim=True) + 1e-5).sqrt()
    want_y = tent_sign(z, 1.7, 1.1)
    (want,) = torch.autograd.grad(want_y, x, g)
    assert torch.equal(y, want_y)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_a_sample_of_equal_values_is_all_ones_and_passes_no_gradient() -> None:
    x = torch.zeros(2, 3, 4, 4)
    x[1] = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    y = normalised_tent_sign(x)
    y.sum().backward()
    assert torch.equal(y[0], torch.ones(3, 4, 4))
    assert torch.equal(x.grad[0], torch.zeros(3, 4, 4))  # type: ignore[index]
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


@TINY
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_copies_are_whole_tiles_of_channels(copies: int, c: int, extra_dims: int) -> None:
    x = torch.arange(2.0 * c * 2**extra_dims).view(2, c, *[2] * extra_dims)
    y = replicate(x, copies)
    for r in range(copies):
        for j in range(c):
            assert torch.equal(y[:, r * c + j], x[:, j])
    assert y.shape[1] == copies * c


@TINY
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_adapting_tiles_to_more_blocks_and_averages_to_fewer(c: int, few: int, factor: int) -> None:
    many = few * factor
    x = torch.randn(2, few * c, 3, 3, generator=torch.Generator().manual_seed(c), dtype=torch.float64)
    wide = adapt_blocks(x, many * c)
    assert torch.equal(wide, x.repeat(1, factor, 1, 1))
    assert torch.allclose(adapt_blocks(wide, few * c), x, rtol=1e-14)
    noise = torch.randn(2, many * c, 3, 3, generator=torch.Generator().manual_seed(c), dtype=torch.float64)
    mean = sum(noise[:, i * few * c : (i + 1) * few * c] for i in range(factor)) / factor
    assert torch.allclose(adapt_blocks(noise, few * c), mean)


def test_the_same_number_of_blocks_is_the_same_tensor() -> None:
    x = torch.randn(1, 6, 2, 2)
    assert adapt_blocks(x, 6) is x
    assert replicate(x, 1) is x
