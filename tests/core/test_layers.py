"""Binary layers: training expression and canonical form agree, the cached form is never stale, padding, shapes, refusals."""

from __future__ import annotations

import warnings
from typing import Any

from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.methods import Threshold
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear, Canonical, Evaluator
from esbnn_core.training import Progress, begin_step

import pytest
import torch
import torch.nn.functional as F
from builders import close, conv, express, images, infer, shaken
from hypothesis import given
from hypothesis import strategies as st
from strategies import MANY, METHODS, PROJECTING, TINY, geometries
from torch import Tensor, nn

FIRST = Progress.at(0, 2, 4)


# -- the two expressions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pad", ["skip", "lo", "hi"])
@pytest.mark.parametrize("method", METHODS)
def test_evaluation_with_and_without_gradients_agrees(method: str, pad: str) -> None:
    layer = conv(method, pad=pad).eval()
    assert close(infer(layer, images()), express(layer, images()))


@TINY
@given(geometries(), st.sampled_from(METHODS))
def test_they_agree_for_any_stride_dilation_kernel_and_groups(geometry: dict[str, Any], method: str) -> None:
    size = geometry.pop("size")
    layer = conv(method, **geometry).eval()
    x = images(2, geometry["in_channels"], *size)
    assert close(infer(layer, x), express(layer, x))


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_equals_training_where_nothing_but_the_mode_differs(method: str) -> None:
    layer = conv(method)
    begin_step(layer, FIRST)
    trained = layer(images()).detach()
    assert close(infer(layer.eval(), images()), trained)


@pytest.mark.parametrize("wanted_of", ["weight", "bias", "alpha", "x"])
def test_evaluation_gives_gradients_to_whoever_wants_them(wanted_of: str) -> None:
    layer, x = conv("recu").eval().requires_grad_(False), images()
    target = x if wanted_of == "x" else getattr(layer, wanted_of)
    assert not layer(x).requires_grad
    target.requires_grad_()
    layer(x).sum().backward()
    assert target.grad.abs().sum() > 0


def test_evaluation_of_frozen_layers_lets_gradients_through() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), conv("irnet")).eval()
    model[1].requires_grad_(False)
    model(images(1, 3, 7, 7)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


# -- padding -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("rbnn", "siman")])
def test_padding_is_nothing_or_one_of_the_two_values(method: str, mode: str) -> None:
    x = images()
    for pad in ("skip", "lo", "hi"):
        layer = conv(method, pad=pad, bias=False)
        begin_step(layer, FIRST)
        layer.train(mode == "train")
        assert layer.sign is not None
        value = {"skip": 0.0, "lo": layer.method.values(layer.sign.state)[0], "hi": layer.method.values(layer.sign.state)[1]}[pad]
        with torch.no_grad():
            padded = F.pad(layer.sign(x, layer.scalars), (1, 1, 1, 1), value=value)
            want = F.conv2d(padded, layer.binary_weight()) * (1 if layer.alpha is None else layer.alpha.view(-1, 1, 1))
            assert close(layer(x), want), pad


def test_padding_is_part_of_the_form() -> None:
    assert conv("irnet").canonical().pad == "skip"
    assert conv("dorefa").canonical().pad == "lo"
    assert conv("irnet", pad="hi").canonical().pad == "hi"


# -- shapes and layouts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_samples_bit_for_bit(method: str) -> None:
    layer, x = conv(method).eval(), images(5, 6, 7, 7) + images(5, 6, 1, 1, seed=2)
    whole = infer(layer, x)
    assert torch.equal(whole, torch.cat([infer(layer, x[i : i + 1]) for i in range(5)]))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_gives_an_empty_batch(method: str, mode: str) -> None:
    layer = conv(method)
    begin_step(layer, FIRST)
    layer.train(mode == "train")
    y = layer(images(0, 6, 7, 7).requires_grad_())
    y.sum().backward()
    assert y.shape == (0, 4, 7, 7)
    assert infer(layer.eval(), images(0, 6, 7, 7)).shape == (0, 4, 7, 7)


@pytest.mark.parametrize("method", METHODS)
def test_the_layout_of_memory_does_not_matter(method: str) -> None:
    layer, x = conv(method).eval(), images()
    want = infer(layer, x)
    strided = torch.zeros(2, 12, 7, 14)[:, ::2, :, 1::2].copy_(x)
    assert not strided.is_contiguous()
    for same in (x.to(memory_format=torch.channels_last), strided):
        assert torch.equal(infer(layer, same), want)
        assert close(express(layer, same), want)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_a_linear_layer_is_a_1x1_convolution(method: str, mode: str) -> None:
    torch.manual_seed(0)
    linear = shaken(BinaryLinear(12, 5, bias=True, method=method))
    maps = BinaryConv2d(12, 5, 1, bias=True, method=method)
    maps.load_state_dict({k: v.view(5, 12, 1, 1) if k == "weight" or k == "B" else v for k, v in linear.state_dict().items()})
    for module in (linear, maps):
        begin_step(module, FIRST)
        module.train(mode == "train")
    tokens = images(2, 7, 12)
    with torch.set_grad_enabled(mode == "train"):
        want = maps(tokens.movedim(2, 1)[..., None])[..., 0].movedim(1, 2)
        assert close(linear(tokens), want)
        assert close(linear(tokens.view(2, 7, 1, 12)), want.view(2, 7, 1, 5))
        assert close(linear(tokens[:, 0]), maps(tokens[:, 0, :, None, None])[..., 0, 0])
    assert linear.weight.shape == (5, 12)


def test_groups_must_divide_both_widths() -> None:
    with pytest.raises(UserError, match="groups=4 must divide in_channels=6 and out_channels=4"):
        conv("irnet", groups=4)


# -- hooks and refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", PROJECTING)
def test_training_without_begin_step_is_an_error_where_weights_are_projected(method: str) -> None:
    layer = conv(method)
    with pytest.raises(RuntimeError, match=rf"'{method}' changes latent weights.*begin_step\(model, progress\)"):
        layer(images())
    begin_step(layer, FIRST)
    layer(images())
    layer.weights_moved()
    with pytest.raises(RuntimeError, match="begin_step"):
        layer(images())


@pytest.mark.parametrize("method", [m for m in METHODS if m not in PROJECTING])
def test_training_without_begin_step_warns_once_where_there_is_a_schedule(method: str) -> None:
    layer = conv(method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(images())
        layer(images())
    scheduled = methods.get(method).scheduled
    assert [f"'{method}' has a schedule" in str(w.message) for w in caught] == [True] * scheduled


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_with_real_weights_or_input_has_no_form(method: str) -> None:
    layer = conv(method).eval()
    layer.weight_mode = "real"
    with pytest.raises(UserError, match=rf"binary layer 6 -> 4 \({method}\) still has real weights"):
        layer.canonical()
    assert close(infer(layer, images()), express(layer, images()))
    first = conv(method, real_input=True).eval()
    with pytest.raises(UserError, match=rf"binary layer 6 -> 4 \({method}\) reads real input"):
        first.canonical()
    want = F.conv2d(images(), first.binary_weight(), None, 1, 1)
    want = want * (1 if first.alpha is None else first.alpha.view(-1, 1, 1)) + first.bias.view(-1, 1, 1)  # type: ignore[union-attr]
    assert close(infer(first, images()), want.detach())


def test_activations_of_more_than_one_bit_have_no_form_but_work() -> None:
    layer = conv(methods.get("dorefa", a_bits=2)).eval()
    with pytest.raises(UserError, match=r"binary layer 6 -> 4 \(dorefa\) has activations of more than one bit"):
        layer.canonical()
    assert not layer.has_form()
    assert torch.equal(infer(layer, images()), express(layer, images()))


@pytest.mark.parametrize("method", ["rbnn", "siman", "adabin", "dorefa"])
def test_a_learned_shift_and_a_threshold_of_ones_own_exclude_each_other(method: str) -> None:
    with pytest.raises(UserError, match=rf"method '{method}' has a threshold of its own"):
        conv(method, shift=True)


def test_a_learned_shift_is_a_threshold_of_the_channel() -> None:
    layer = conv("recu", shift=True).eval()
    x = images()
    with torch.no_grad():
        x[0, :, 0, 0] = -layer.sign.bias  # exactly at the threshold
        assert torch.equal(layer.evaluator(x).bits(x), layer.sign(x, layer.scalars))
    assert torch.equal(layer.canonical().threshold, -layer.sign.bias.detach().unsqueeze(0))


def test_xnor_is_centred_in_evaluation_before_and_after_begin_step() -> None:
    layer = conv("xnor")
    fresh = infer(layer.eval(), images())
    assert close(express(layer, images()), fresh)
    begin_step(layer, FIRST)
    assert torch.equal(infer(layer, images()), fresh)
    centred = layer.weight.mean(1).abs().max()
    assert centred < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_capacity_counts_the_inputs_of_one_group(method: str) -> None:
    assert conv(method, in_channels=8, groups=2).capacity == 4 * 9 + 1
    assert conv(method).canonical().meta == {"method": method, "capacity": 55}
    assert isinstance(conv(method), BinaryLayer)


# -- the canonical line --------------------------------------------------------------------------------------------------------
VALUES = [(-1.0, 1.0), (0.0, 1.0), (-0.7, 1.9), (0.4, -1.3)]


@MANY
@given(geometries(), st.sampled_from(VALUES), st.sampled_from(["skip", "lo", "hi"]), st.integers(0, 2**20), st.data())
def test_the_canonical_line_is_the_convolution_of_the_values(
    geometry: dict[str, Any], values: tuple[float, float], pad: Any, seed: int, data: st.DataObject
) -> None:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    (lo, hi), groups = values, geometry["groups"]
    i, o, copies = geometry["in_channels"], geometry["out_channels"], data.draw(st.integers(1, 3))
    some = data.draw(st.fixed_dictionaries({k: st.booleans() for k in ("mid", "post", "bias", "norm", "flip")}))
    x = draw(2, i, *geometry["size"]).float()
    form = Canonical(
        bits=draw(o, i // groups, *geometry["kernel_size"]) > 0,
        half=draw(o),
        mid=draw(o) if some["mid"] else torch.zeros(o, dtype=torch.float64),
        lo=lo,
        hi=hi,
        kind="const",
        threshold=draw(1, i).float() * 0.3,
        flip=draw(i) > 0 if some["flip"] else None,
        resolve=lambda x: Threshold(x),
        pad=pad,
        **{k: geometry[k] for k in ("stride", "padding", "dilation", "groups")},
        post=draw(o) if some["post"] else None,
        bias=draw(o) if some["bias"] else None,
        copies=copies,
        mul=draw(o * copies) if some["norm"] else None,
        add=draw(o * copies) if some["norm"] else None,
    )
    assert form.threshold is not None
    bit = x >= form.threshold.view(1, -1, 1, 1)
    if form.flip is not None:
        bit = bit ^ form.flip.view(1, -1, 1, 1)
    activation = torch.where(bit, torch.tensor(hi, dtype=torch.float64), torch.tensor(lo, dtype=torch.float64))
    (ph, pw), border = form.padding, {"skip": 0.0, "lo": lo, "hi": hi}[form.pad]
    activation = F.pad(activation, (pw, pw, ph, ph), value=border)
    weight = form.mid.view(-1, 1, 1, 1) + form.half.view(-1, 1, 1, 1) * torch.where(form.bits, 1.0, -1.0)
    want = F.conv2d(activation, weight, None, form.stride, 0, form.dilation, groups)
    if form.post is not None:
        want = want * form.post.view(-1, 1, 1)
    if form.bias is not None:
        want = want + form.bias.view(-1, 1, 1)
    want = want.repeat(1, copies, 1, 1)
    if form.mul is not None and form.add is not None:
        want = want * form.mul.view(-1, 1, 1) + form.add.view(-1, 1, 1)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        got = Evaluator(form, dtype, x.device)(x.to(dtype))
        assert got.dtype == dtype
        assert close(got.double(), want, tolerance)
