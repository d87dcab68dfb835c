"""The operators under torch's own machinery: opcheck, compile, export, other devices."""

from __future__ import annotations

import ctypes
import io
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from esbnn_core.kernels import library, ops, reference

import pytest
import torch
from kernel_cases import Layer
from torch import Tensor, nn


def _arguments(of: Layer) -> dict[str, tuple[Any, ...]]:
    j = 2 * of.filters
    h, w = ops.output_size((of.h, of.w), of.kernel, of.stride, of.padding, of.dilation)
    g = torch.Generator().manual_seed(0)
    vector = lambda: torch.randn(j, generator=g)  # noqa: E731
    line = (vector(), vector(), torch.randn(j, h, w, generator=g), None, None, torch.randn(of.n, j, h, w, generator=g))
    start = (of.x, of.weight, of.limit, of.turned)
    rows, linear = torch.randn(3, 4, 24, generator=g), Layer(1, 1, 1, 1, 24, 6, (1, 1))
    one = torch.randn(6, generator=g)
    return {
        "pack_sign": (of.x, of.limit, of.turned, of.groups),
        "bconv2d": (*start, *line, vector(), vector(), vector(), vector(), *of.window, 2, "two_slope", True, 0.0, 0.0),
        "bconv2d_sums": (*start, *of.window, False),
        "blinear": (rows, linear.weight, torch.zeros(1, 24), None, one, one, one, 24, 6),
    }


LAYER = Layer(2, 6, 7, 2, 20, 5, (3, 3), (2, 1), (1, 1), (1, 1), "skip", "both", True)
NAMES = ["pack_sign", "bconv2d", "bconv2d_sums", "blinear"]


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native":
        request.getfixturevalue("native")
    library.force_path("torch" if request.param == "torch" else None)
    yield request.param
    if library.library_file() is not None:
        library.force_path(None)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_passes(backend: str, name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.esbnn, name).default, _arguments(LAYER)[name])


@pytest.mark.parametrize("name", ["bconv2d", "bconv2d_sums"])
def test_opcheck_passes_for_packed_input(backend: str, name: str) -> None:
    arguments = _arguments(LAYER)
    words = reference.pack_sign(*arguments["pack_sign"])
    _, weight, _, _, *rest = arguments[name]
    torch.library.opcheck(getattr(torch.ops.esbnn, name).default, (words, weight, None, None, *rest))


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_give_shapes_and_types_only(name: str) -> None:
    arguments = _arguments(LAYER)[name]
    want = getattr(reference, name)(*arguments)
    out = getattr(ops, name)(*(a.to("meta") if isinstance(a, Tensor) else a for a in arguments))
    assert out.device.type == "meta" and out.shape == want.shape and out.dtype == want.dtype


@pytest.mark.parametrize("name", NAMES)
def test_other_devices_take_the_float_form(name: str) -> None:
    # What is registered for every device without a kernel of its own is the reference, on tensors of any device; here it runs on meta.
    arguments = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in _arguments(LAYER)[name])
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"esbnn::{name}", "CompositeExplicitAutograd")
    out = getattr(reference, name)(*arguments)
    assert out.device.type == "meta" and out.shape == getattr(ops, name)(*arguments).shape


class _Packed(nn.Module):
    """A layer that packs, convolves and adds a shortcut: two operators in a row."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.window = layer.window
        self.register_buffer("weight", layer.weight)
        self.register_buffer("p", torch.randn(layer.filters))

    def forward(self, x: Tensor) -> Tensor:
        words = torch.ops.esbnn.pack_sign(x, x.mean((1, 2, 3), keepdim=False).unsqueeze(1), None, 1)
        y: Tensor = torch.ops.esbnn.bconv2d(
            words,
            self.weight,
            None,
            None,
            self.p,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            *self.window,
            1,
            "clamp",
            False,
            -3.0,
            3.0,
        )
        return y + x


def _model() -> tuple[_Packed, Callable[[int], Tensor]]:
    model = _Packed(Layer(1, 6, 6, 1, 8, 8, (3, 3), padding=(1, 1))).eval()
    return model, lambda n: torch.randn(n, 8, 6, 6, generator=torch.Generator().manual_seed(n))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_layer_gives_the_same_numbers_as_one_graph(native: ctypes.CDLL, dynamic: bool) -> None:
    torch.compiler.reset()
    model, make = _model()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for n in (2, 3):
            torch.testing.assert_close(compiled(make(n)), model(make(n)))


def test_an_exported_layer_takes_any_batch_and_survives_a_file(native: ctypes.CDLL) -> None:
    model, make = _model()
    with torch.no_grad():
        exported = torch.export.export(model, (make(2),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}})
        file = io.BytesIO()
        torch.export.save(exported, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for n in (2, 5):
            assert torch.equal(loaded(make(n)), model(make(n)))
