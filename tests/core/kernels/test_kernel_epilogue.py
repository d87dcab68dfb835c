"""The float line behind the sums: bit-equal to PyTorch's operations, one by one, and to the canonical evaluation of trained layers."""

from __future__ import annotations

import ctypes
import random

from esbnn_core import BinaryConv2d, BinaryUnit, methods
from esbnn_core.kernels import calls, layout, ops, reference
from esbnn_core.nn.canonical import Evaluator

import pytest
import torch
from kernel_cases import Layer
from torch import Tensor


def _random_tail(layer: Layer, rng: random.Random) -> tuple[tuple[Tensor | None, ...], tuple[object, ...]]:
    copies = rng.choice([1, 2, 4])
    j = copies * layer.filters
    h, w = ops.output_size((layer.h, layer.w), layer.kernel, layer.stride, layer.padding, layer.dilation)
    maybe = lambda: torch.randn(j) if rng.random() < 0.6 else None  # noqa: E731
    rows = cols = None
    kind = rng.choice(["none", "channel", "classes", "map"])
    k = {"none": None, "channel": torch.randn(j), "classes": torch.randn(j, 3, 2), "map": torch.randn(j, h, w)}[kind]
    if kind == "classes":
        rows, cols = torch.randint(0, 3, (h,), dtype=torch.int32), torch.randint(0, 2, (w,), dtype=torch.int32)
    shortcut = torch.randn(layer.n, j, h, w) if rng.random() < 0.6 else None
    if shortcut is not None and rng.random() < 0.4:
        shortcut = shortcut.to(memory_format=torch.channels_last)
    tensors = (torch.randn(j), maybe(), k, rows, cols, shortcut, maybe(), maybe(), maybe(), maybe())
    return tensors, (copies, rng.choice(["none", "clamp", "two_slope"]), rng.random() < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("seed", range(40))
def test_every_combination_of_terms_is_bit_equal_to_pytorch(path: str, seed: int) -> None:
    rng = random.Random(seed)
    layer = Layer(
        rng.randint(1, 2), rng.randint(3, 9), rng.choice([5, 9, 300]), rng.choice([1, 2]), rng.choice([5, 64, 70]), rng.choice([3, 8, 17]),
        (3, 3), rng.choice([(1, 1), (2, 2)]), (1, 1), (1, 1), rng.choice(["skip", "lo", "hi"]), "both", True, rng.random() < 0.5, seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    tensors, tail = _random_tail(layer, rng)
    want = reference.bconv2d(layer.x, layer.weight, layer.limit, layer.turned, *tensors, *layer.window, *tail)
    weight = layer.prepared()
    assert torch.equal(ops.bconv2d(layer.x, weight, layer.limit, layer.turned, *tensors, *layer.window, *tail), want)
    words = ops.pack_sign(layer.x, layer.limit, layer.turned, layer.groups)
    assert torch.equal(ops.bconv2d(words, weight, None, None, *tensors, *layer.window, *tail), want)


def test_nan_and_infinity_in_the_tail_behave_as_in_pytorch(path: str) -> None:
    layer = Layer(1, 4, 4, 1, 8, 8, (1, 1))
    p = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e38, 1e-45])
    for act in ("none", "clamp", "two_slope"):
        tensors = (p, None, torch.randn(8), None, None, None, None, torch.full((8,), 0.25), None, None)
        args = (layer.x, layer.weight, layer.limit, None, *tensors, *layer.window, 1, act, False, -1.0, 1.0)
        torch.testing.assert_close(ops.bconv2d(*args), reference.bconv2d(*args), rtol=0, atol=0, equal_nan=True)


def _evaluator_terms(e: Evaluator, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    k = e._constant((x.shape[2], x.shape[3]), e.bits(x))
    k = k.flatten(1, 2)[0]
    return e._p.flatten(), None if e._q is None else e._q.flatten(), k if k.shape[1:] != (1, 1) else k.flatten()


@pytest.mark.parametrize("method", sorted(methods.names()))
@pytest.mark.parametrize("copies", [1, 4])
def test_units_of_every_method_are_bit_equal_to_their_canonical_evaluation(path: str, method: str, copies: int) -> None:
    torch.manual_seed(3)
    unit = BinaryUnit(BinaryConv2d(20, 12, 3, stride=2, padding=1, groups=2, method=method, bias=True), "n", copies=copies)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        unit.norm.running_mean.normal_()
        unit.norm.running_var.uniform_(0.5, 2)
        unit.conv.refresh()
    unit.eval()
    x = torch.randn(3, 20, 9, 9)
    with torch.no_grad():
        want = unit(x)
        form = unit.canonical()
        e = Evaluator(form, torch.float32, x.device)
        p, q, k = _evaluator_terms(e, x)
        threshold = form.resolve(x)
        if k.dim() == 3:
            k = k.expand(-1, want.shape[2], want.shape[3]).contiguous()
        got = ops.bconv2d(
            x, calls.expand_weights(form.bits, (3, 9, 9), (2, 2), (1, 1), (1, 1), 2, form.pad), threshold.value, threshold.flip, p, q, k, None, None, None, None, None,
            None, None, 10, 12, (3, 3), (2, 2), (1, 1), (1, 1), 2, form.pad, copies, "none", False, 0.0, 0.0,
        )  # fmt: skip
    assert torch.equal(got, want)


@pytest.mark.parametrize("lead", [(7,), (2, 5), (3, 2, 4)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_linear_layer_equals_the_float_form(path: str, lead: tuple[int, ...], per_sample: bool) -> None:
    torch.manual_seed(0)
    x, bits = torch.randn(*lead, 70), torch.rand(11, 70, 1, 1) < 0.5
    threshold = torch.randn(lead[0] if per_sample else 1, 70) / 4
    weight = layout.prepare_weights(bits)
    p, q, k = torch.randn(11), torch.randn(11), torch.randn(11)
    got = ops.blinear(x, weight, threshold, None, p, q, k, 70, 11)
    s = torch.where(x >= threshold.view(threshold.shape[0], *([1] * (len(lead) - 1)), 70), 1.0, -1.0)
    w = torch.where(bits, 1.0, -1.0).flatten(1)
    assert torch.equal(got, (s @ w.T) * p + s.sum(-1, keepdim=True) * q + k)
    assert torch.equal(got, reference.blinear(x, weight, threshold, None, p, q, k, 70, 11))


def test_results_do_not_depend_on_the_number_of_threads(native: ctypes.CDLL) -> None:
    layer = Layer(2, 30, 30, 1, 128, 40, (3, 3), padding=(1, 1), threshold="both")
    results = []
    for threads in (1, 2, 3, 7, 64):
        torch.set_num_threads(threads)
        results.append(layer.run())
    assert all(torch.equal(result, layer.sums()) for result in results)
