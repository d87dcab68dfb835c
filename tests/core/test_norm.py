"""Replicated batch norm is the batch norm of the tiled tensor, at the cost of the tensor before tiling."""

from __future__ import annotations

from typing import Any

from esbnn_core.functional import replicate
from esbnn_core.nn import BinaryConv2d, BinaryUnit, ReplicatedBatchNorm2d
from esbnn_core.training import Progress, begin_step

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import METHODS, TINY
from torch import Tensor, nn


def pair(
    c: int, copies: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[ReplicatedBatchNorm2d, nn.BatchNorm2d]:
    """Ours and torch's, with the same parameters and running statistics, which differ between copies."""
    ours, theirs = ReplicatedBatchNorm2d(c, copies, **options), nn.BatchNorm2d(c * copies, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (ours.weight, ours.bias, ours.running_mean):
            tensor.copy_(torch.randn(c * copies, generator=generator))
        ours.running_var.copy_(torch.rand(c * copies, generator=generator) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def maps(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 2).to(dtype)


@TINY
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(2, 4), st.booleans(), st.integers(0, 999))
def test_it_is_the_batch_norm_of_the_tiled_tensor_for_several_steps(c: int, copies: int, n: int, size: int, train: bool, seed: int) -> None:
    ours, theirs = pair(c, copies, seed, eps=1e-3, momentum=0.3)
    ours.train(train), theirs.train(train)
    optimizers = [torch.optim.SGD(norm.parameters(), lr=0.1) for norm in (ours, theirs)]
    for step in range(3):
        x = maps(n, c, size, size, seed=seed + step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, want = ours(a), theirs(replicate(b, copies))
        assert torch.allclose(y, want, rtol=1e-9, atol=1e-9)
        g = torch.randn(want.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        y.backward(g)
        want.backward(g)
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-8)
        assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-8, atol=1e-8)
        assert torch.allclose(ours.bias.grad, theirs.bias.grad, rtol=1e-8, atol=1e-8)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for key, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[key], value, rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("copies", [1, 3])
def test_its_gradients_are_the_derivatives(copies: int, train: bool) -> None:
    norm, _ = pair(2, copies)
    norm.train(train)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Running statistics move in every call, and only evaluation reads them.
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    arguments = [t.detach().requires_grad_() for t in (maps(3, 2, 2, 2), norm.weight, norm.bias)]
    assert torch.autograd.gradcheck(function, arguments)


def test_its_state_is_that_of_batch_norm() -> None:
    ours, theirs = pair(3, 4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(ours.state_dict()[key].shape == value.shape for key, value in theirs.state_dict().items())


def test_copies_that_start_equal_stay_equal_bit_for_bit() -> None:
    norm = ReplicatedBatchNorm2d(3, 4)
    for step in range(3):
        y = norm(maps(4, 3, 5, 5, seed=step, dtype=torch.float32))
        blocks = y.unflatten(1, (4, 3))
        assert all(torch.equal(blocks[:, r], blocks[:, 0]) for r in range(4))
    for statistic in (norm.running_mean, norm.running_var):
        assert all(torch.equal(statistic.view(4, 3)[r], statistic[:3]) for r in range(4))
    assert norm.num_batches_tracked == 3


def test_evaluation_uses_the_running_statistics_of_each_copy() -> None:
    norm = ReplicatedBatchNorm2d(1, 2, eps=0.0).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 5.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    assert norm(torch.full((1, 1, 1, 1), 3.0)).flatten().tolist() == [1.0, -2.0]
    mul, add = norm.affine()
    assert mul.tolist() == [0.5, 1.0]
    assert add.tolist() == [-0.5, -5.0]


def test_float32_is_as_exact_as_torchs_own() -> None:
    ours, theirs = pair(8, 4, dtype=torch.float32)
    exact, _ = pair(8, 4)
    x = maps(8, 8, 9, 9)
    g = torch.randn(8, 32, 9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = []
    for norm, tile in ((ours, 1), (theirs, 4), (exact, 1)):
        dtype = norm.weight.dtype
        a = x.to(dtype).requires_grad_()
        norm(replicate(a, tile)).backward(g.to(dtype))
        grads.append(a.grad.double())  # type: ignore[union-attr]
    mine, torchs, want = grads
    assert (mine - want).abs().max() <= 2 * (torchs - want).abs().max() + 1e-9


def test_one_value_a_channel_has_no_statistics() -> None:
    for copies in (1, 2):
        norm = ReplicatedBatchNorm2d(3, copies)
        with pytest.raises(ValueError, match=r"more than (1|one) value"):
            norm(torch.ones(1, 3, 1, 1))
        assert norm.eval()(torch.ones(1, 3, 1, 1)).shape == (1, 3 * copies, 1, 1)


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected 3 channels, got a tensor of shape \(1, 6, 2, 2\)"):
        ReplicatedBatchNorm2d(3, 2)(torch.ones(1, 6, 2, 2))


@pytest.mark.parametrize("train", [True, False])
def test_narrow_input_keeps_its_dtype_as_under_autocast(train: bool) -> None:
    norm, exact = pair(4, 3, dtype=torch.float32)
    x = maps(4, 4, 5, 5, dtype=torch.bfloat16).requires_grad_()
    y = norm.train(train)(x)
    y.sum().backward()
    assert y.dtype == x.dtype == x.grad.dtype  # type: ignore[union-attr]
    assert norm.weight.grad.dtype == torch.float32
    want = exact.train(train)(replicate(x.detach().float(), 3))
    assert (y.float() - want).abs().max() < 0.02 * want.abs().max()


# -- memory --------------------------------------------------------------------------------------------------------------------
def saved_shapes(module: nn.Module, x: Tensor) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    shapes: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def pack(t: Tensor) -> Tensor:
        shapes.append((t.dtype, tuple(t.shape)))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return shapes


@pytest.mark.parametrize("method", METHODS)
def test_training_saves_the_channels_before_the_copies_only(method: str) -> None:
    """tau = 2, g = 2 before a layer with e = 4: c_o/tau = 8 channels computed, 64 written."""
    c_i, c_o, tau, groups, m_out = 4, 16, 2, 2, 4
    torch.manual_seed(0)
    conv = BinaryConv2d(c_i * tau * groups, c_o // tau, 3, stride=2, padding=1, groups=groups, method=method)
    unit = BinaryUnit(conv, "n", copies=tau * m_out)
    begin_step(unit, Progress.at(0, 1, 1))
    shapes = saved_shapes(unit, torch.randn(2, c_i * tau * groups, 10, 10, requires_grad=True))
    behind = [shape for dtype, shape in shapes if dtype != torch.bool and len(shape) >= 4 and shape[-2:] == (5, 5)]
    assert behind
    assert all(shape[0] == 2 and shape[1:] == (c_o // tau, 5, 5) for shape in behind), behind
    assert unit(torch.randn(2, 16, 10, 10)).shape == (2, 64, 5, 5)


def test_the_norm_saves_one_map_whatever_the_copies() -> None:
    for copies in (2, 16):
        shapes = saved_shapes(ReplicatedBatchNorm2d(3, copies), torch.randn(2, 3, 6, 6, requires_grad=True))
        assert [shape for _, shape in shapes if len(shape) == 4] == [(2, 3, 6, 6)]
        assert all(torch.Size(shape).numel() <= 3 * copies for _, shape in shapes if len(shape) < 4)
