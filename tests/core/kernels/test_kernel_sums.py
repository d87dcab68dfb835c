"""Integer sums of every path equal a float64 convolution's, for all sizes and settings."""

from __future__ import annotations

import ctypes

from esbnn_core.kernels import calls, library, ops

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from kernel_cases import Layer, grid, layers

_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@_SETTINGS
@given(layer=layers())
def test_sums_equal_a_float64_convolution(path: str, layer: Layer) -> None:
    for packed in (False, True):
        assert torch.equal(layer.run(packed=packed), layer.sums()), (path, packed)
    assert torch.equal(layer.run(of_groups=True), layer.sums(of_groups=True)), path


def _check_grid(every: int, paths: list[str]) -> int:
    count = 0
    for i, layer in enumerate(grid()):
        if i % every:
            continue
        count += 1
        want = layer.sums()
        for name in paths:
            library.force_path(name)
            assert torch.equal(layer.run(packed=i // every % 2 == 0), want), (name, layer)
    library.force_path(None)
    return count


def _usable() -> list[str]:
    return [p.name for p in library.paths() if p.supported]


def test_a_sample_of_the_grid_is_exact_on_every_path(native: ctypes.CDLL) -> None:
    assert _check_grid(25, _usable()) >= 400


@pytest.mark.slow
def test_ten_thousand_combinations_are_exact_on_every_path(native: ctypes.CDLL) -> None:
    assert _check_grid(1, _usable()) >= 10_000


def test_a_forced_path_is_the_one_that_runs(path: str) -> None:
    runs = lambda: {p.name: p.runs for p in library.paths()}  # noqa: E731
    before = runs()
    Layer(1, 4, 4, 1, 16, 8, (3, 3)).run()
    assert library.active() == path
    assert {name: count - before[name] for name, count in runs().items()} == {name: int(name == path) for name in before}


def test_windows_wholly_inside_the_padding_sum_to_nothing(path: str) -> None:
    layer = Layer(1, 2, 2, 1, 65, 9, (2, 2), padding=(4, 4))
    sums = layer.run()
    assert torch.equal(sums, layer.sums())
    assert not sums[..., 0].any()


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)])
def test_empty_maps_give_empty_words(path: str, shape: tuple[int, ...]) -> None:
    words = ops.pack_sign(torch.empty(shape), torch.zeros(1, 1), None, 1)
    assert words.shape == (shape[0], shape[2], shape[3], 1, 1)


def test_an_empty_batch_gives_an_empty_result(path: str) -> None:
    layer = Layer(1, 4, 4, 1, 8, 4, (3, 3), padding=(1, 1))
    out = ops.bconv2d_sums(layer.x[:0], layer.weight, layer.limit, None, *layer.window, False)
    assert out.shape == (0, 4, 4, 4)


@pytest.mark.parametrize(("n", "made_for"), [(1, 64), (70, 1), (1003, 1003), (1003, 7)])
def test_weights_made_for_one_batch_serve_every_other(path: str, n: int, made_for: int) -> None:
    layer = Layer(n, 5, 5, 1, 128, 70, (3, 3), padding=(1, 1))
    weight = calls.expand_weights(layer.bits, (made_for, 5, 5), padding=(1, 1))
    assert torch.equal(ops.bconv2d_sums(layer.x, weight, layer.limit, None, *layer.window, False), layer.sums())


@pytest.mark.parametrize("size", [(3, 3), (14, 14), (56, 56), (1, 100)])
@pytest.mark.parametrize("made_for", [(3, 3), (14, 14), (56, 56)])
def test_weights_made_for_one_size_of_map_serve_every_other(path: str, size: tuple[int, int], made_for: tuple[int, int]) -> None:
    layer = Layer(1, *size, 1, 64, 64, (3, 3), padding=(1, 1), pad="skip")
    weight = calls.expand_weights(layer.bits, (1, *made_for), padding=(1, 1))
    assert torch.equal(ops.bconv2d_sums(layer.x, weight, layer.limit, None, *layer.window, False), layer.sums())
