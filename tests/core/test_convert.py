"""Giving the treatment to networks of other people: what is replaced, what is kept, and that the result runs, trains and is right."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial

from esbnn_core import Progress, begin_step, binarize, methods
from esbnn_core.convert import report_of, select_layers
from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear
from esbnn_core.training import watch

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

# The structures are the real ones; maps and some widths are small so that the file is quick.
VGG11 = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]


def _vgg11(norm: bool) -> nn.Module:
    features = vgg.make_layers(VGG11, batch_norm=norm)  # type: ignore[arg-type]
    with torch.device("meta"):  # its own classifier of 120 million weights is never made
        net = vgg.VGG(features, init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(64 * 49, 16), nn.Hardtanh(), nn.Dropout(), nn.Linear(16, 16), nn.Hardtanh(), nn.Linear(16, 7))
    return net


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": partial(torchvision.models.resnet18, num_classes=7),
    "torchvision vgg11_bn": partial(_vgg11, True),
    "torchvision vgg11": partial(_vgg11, False),
    "torchvision mobilenet_v2": partial(torchvision.models.mobilenet_v2, width_mult=0.25, num_classes=7),
    "torchvision vit": _vit,
    "timm resnet18": partial(timm.create_model, "resnet18", num_classes=7),
    "timm vit": partial(timm.create_model, "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7),
    "timm mobilenetv3": partial(timm.create_model, "mobilenetv3_small_050", num_classes=7),
}
ReLUless = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardtanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Hardtanh(), nn.Conv2d(8, 2, 1))


def _binary(model: nn.Module) -> dict[str, BinaryLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}


def _image(side: int = 32, n: int = 2) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def _train_one_step(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watch(optimizer, model)
    model.train()
    begin_step(model, Progress.at(0, 1, 1))
    (model(x) - 1).square().mean().backward()
    assert all(p.grad is not None for layer in _binary(model).values() for p in layer.parameters())
    optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_known_networks_become_binary_and_still_run_and_train(name: str) -> None:
    torch.manual_seed(0)
    original = NETWORKS[name]()
    before = {k: v.clone() for k, v in original.state_dict().items()}
    model = binarize(original, "reactnet")
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items()), "the original must not change"
    layers = _binary(model)
    assert tuple(sorted(layers)) == tuple(sorted(report_of(model).selection.replaced))
    for layer_name, layer in layers.items():
        assert torch.equal(layer.weight, original.get_submodule(layer_name).weight), "weights are carried over"  # type: ignore[arg-type]
    x = _image()
    _train_one_step(model, x)
    model.eval()
    with torch.no_grad():
        assert model(x).shape == (2, 7)
    # The float model's checkpoint still fits by name.
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert not unexpected
    assert all(".sign." in key for key in missing)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_without_and_with_gradients_agrees(name: str) -> None:
    # In float64: where rounding moves a number across a threshold, a bit and all that follows from it would differ.
    torch.manual_seed(1)
    model = binarize(NETWORKS[name]().double(), "recu", shift=True).eval()
    with torch.no_grad():
        form = model(_image().double())
    torch.testing.assert_close(model(_image().double()), form, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_trains_and_agrees_in_a_converted_network(method: str) -> None:
    torch.manual_seed(2)
    model = binarize(ReLUless, method)
    _train_one_step(model, _image(8))
    model.eval()
    with torch.no_grad():
        form = model(_image(8))
    torch.testing.assert_close(model(_image(8)), form, rtol=1e-4, atol=1e-4)


# -- what is chosen -----------------------------------------------------------------------------------------------------------
def test_first_and_last_layers_stay_real_unless_asked() -> None:
    net = NETWORKS["torchvision resnet18"]()
    every = {"conv1": "first or last layer", "fc": "first or last layer"}
    assert select_layers(net).kept == every
    assert select_layers(net, include="*").kept == every, "a pattern does not ask for them"
    assert select_layers(net, include=["*", "fc"]).kept == {"conv1": "first or last layer"}, "a name does"
    assert len(_binary(binarize(net, "reactnet", keep_first_last=False))) == 21


class _Heads(nn.Module):
    """Declared backwards; two layers end it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.middle, self.first = nn.Linear(8, 3), nn.Linear(8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.middle(self.first(x)).mean((2, 3))
        return self.left(x), self.right(x)


class _Untraceable(_Heads):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 1e9:
            return x, x
        left: Tensor = self.left(self.middle(self.first(x)).mean((2, 3)))
        return left, left


def test_first_and_last_are_those_that_run_first_and_last() -> None:
    assert select_layers(_Heads()).replaced == ("middle",)
    assert select_layers(_Untraceable(), example=torch.randn(1, 3, 4, 4)).kept["right"] == "it does not run on the example in evaluation"
    assert select_layers(_Untraceable(), example=(torch.randn(1, 3, 4, 4),)).replaced == ("middle",)
    with pytest.raises(UserError, match=r"_Untraceable does not run on the example: .*size"):
        select_layers(_Untraceable(), example=torch.randn(1, 4, 4, 4))


def test_layers_are_chosen_by_names_globs_expressions_or_functions() -> None:
    net = NETWORKS["torchvision resnet18"]()
    convs = tuple(f"layer3.{i}.conv{j}" for i in (0, 1) for j in (1, 2))
    assert select_layers(net, include="layer3.*.conv?").replaced == convs
    assert select_layers(net, include=re.compile(r"layer3\.\d\.conv\d")).replaced == convs
    assert select_layers(net, include=[re.compile(r"layer3\.0\.conv\d"), "layer3.1.conv?"]).replaced == convs
    assert not any("downsample" in n for n in select_layers(net, exclude=["*downsample*"]).replaced)
    only_wide = select_layers(net, include=lambda name, m: isinstance(m, nn.Conv2d) and m.in_channels >= 256)
    assert all(net.get_submodule(n).in_channels >= 256 for n in only_wide.replaced)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"no layer's name matches 'layer9\.\*'; the nearest is"):
        select_layers(net, include="layer9.*")
    with pytest.raises(UserError, match=r"not by 3"):
        select_layers(net, exclude=["fc", 3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="nothing to binarize in ResNet: 21 excluded"):
        select_layers(net, exclude="*")


def test_depthwise_convolutions_are_kept_unless_named() -> None:
    net = NETWORKS["torchvision mobilenet_v2"]()
    assert sum(reason == "depthwise" for reason in select_layers(net, include="features.*").kept.values()) == 17
    assert "features.2.conv.1.0" in select_layers(net, include="features.2.conv.1.0").replaced


# -- layers that must not be replaced -----------------------------------------------------------------------------------------
def test_weights_that_are_read_without_calling_their_layer_are_kept() -> None:
    # A replacement would silently do nothing.
    kept = select_layers(_vit(), include="encoder.*").kept
    assert sum("subclass" in why for n, why in kept.items() if n.endswith("out_proj")) == 2
    with pytest.raises(UserError, match="out_proj' cannot be made binary"):
        select_layers(_vit(), include="encoder.layers.encoder_layer_0.self_attention.out_proj")
    swin = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4])
    kept = select_layers(swin).kept
    assert all(kept[f"features.{i}.0.attn.{n}"] == "its weight is read without calling it" for i in (1, 3) for n in ("qkv", "proj"))
    encoder = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 8))
    assert select_layers(encoder).replaced == ("2",)
    assert "without calling it" in select_layers(encoder).kept["1.linear1"]


def test_they_are_found_without_a_trace_too() -> None:
    class Functional(_Untraceable):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if x.sum() > 1e9:
                return x, x
            x = F.conv2d(self.first(x), self.middle.weight).mean((2, 3))
            return self.left(x), self.right(x)

    assert select_layers(Functional(), keep_first_last=False).kept["middle"] == "its weight is read without calling it"
    assert "does not run" in select_layers(Functional(), keep_first_last=False, example=torch.randn(1, 3, 4, 4)).kept["middle"]


def test_other_padding_is_refused_by_name() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 4, 3)
    )
    assert select_layers(net).kept["1"] == "padding_mode='reflect'"
    with pytest.raises(UserError, match="layer '1' cannot be made binary: padding_mode='reflect'"):
        binarize(net, include="1")
    twin = binarize(net, include="2").get_submodule("2")
    assert isinstance(twin, BinaryConv2d)
    assert twin.padding == (1, 1)
    assert select_layers(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 2, padding="same"), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    ).replaced == ("2",)


def test_subclasses_hooks_and_shared_weights_are_kept() -> None:
    class Own(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(4, 4), Own(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].register_forward_hook(lambda *_: None)
    net[4].weight = net[3].weight
    torch.nn.utils.parametrizations.spectral_norm(net[5])
    kept = select_layers(net, keep_first_last=False).kept
    assert kept == {
        "1": "Own is a subclass with behaviour of its own",
        "2": "it has hooks, which a replacement would lose",
        "3": "its weight is also that of '4'",
        "4": "its weight is also that of '3'",
        "5": "ParametrizedLinear is a subclass with behaviour of its own",
    }


# -- what the result is -------------------------------------------------------------------------------------------------------
def test_a_module_used_under_two_names_stays_one_module() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.Hardtanh(), shared, nn.Conv2d(8, 2, 1))
    for changed in (binarize(net, "irnet"), binarize(net, "irnet", include="3")):
        assert changed[1] is changed[3]  # type: ignore[index]
        assert isinstance(changed[1], BinaryConv2d)  # type: ignore[index]


def test_a_single_layer_can_be_converted() -> None:
    layer = nn.Linear(4, 3)
    twin = binarize(layer, "bireal", keep_first_last=False)
    assert isinstance(twin, BinaryLinear)
    assert torch.equal(twin.weight, layer.weight)
    assert report_of(twin).selection.replaced == ("",)


def test_scales_start_from_the_weights_that_were_carried_over() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    twin = binarize(net, "siman")[1]  # type: ignore[index]
    assert isinstance(twin, BinaryLinear)
    torch.testing.assert_close(twin.alpha, net[1].weight.abs().mean(1))


def test_dtype_frozen_weights_and_modes_are_kept() -> None:
    net = NETWORKS["torchvision vgg11_bn"]().to(torch.float64).train()
    net.get_submodule("features.1").eval()
    net.get_submodule("features.4").weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    modes = [m.training for m in net.modules()]
    for example in (None, _image().double()):
        select_layers(net, example=example)
        assert [m.training for m in net.modules()] == modes
    changed = binarize(net, "reactnet")
    assert changed.get_submodule("features.4").weight.dtype == torch.float64  # type: ignore[union-attr]
    assert not changed.get_submodule("features.4").weight.requires_grad  # type: ignore[union-attr]
    assert not changed.get_submodule("features.1").training


def test_in_place_means_the_model_itself() -> None:
    net = copy.deepcopy(ReLUless)
    assert binarize(net, inplace=True) is net
    assert isinstance(net[2], BinaryConv2d)


def test_layers_can_have_different_methods() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(), nn.Linear(8, 8), nn.Hardtanh(), nn.Linear(8, 8), nn.Hardtanh(), nn.Linear(8, 2))
    twice = binarize(binarize(net, "recu", include="2"), "adabin")
    assert [layer.method.name for layer in _binary(twice).values()] == ["recu", "adabin"]
    assert isinstance(twice[6], nn.Linear), "the last layer is still known as the last"  # type: ignore[index]


def test_copies_and_pickles_work_and_keep_the_report() -> None:
    model = binarize(ReLUless, "recu").eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            assert torch.equal(other(_image(8)), model(_image(8)))
        assert report_of(other) == report_of(model)


def test_the_report_says_what_and_why() -> None:
    text = report_of(binarize(NETWORKS["torchvision vit"](), "reactnet", exclude="*.mlp.3")).describe()
    assert text.splitlines() == [
        "method reactnet",
        "2 become binary (encoder.layers.encoder_layer_0.mlp.0, encoder.layers.encoder_layer_1.mlp.0)",
        "2 stay as they are: first or last layer (conv_proj, heads.head)",
        "2 stay as they are: NonDynamicallyQuantizableLinear is a subclass with behaviour of its own "
        "(encoder.layers.encoder_layer_0.self_attention.out_proj, encoder.layers.encoder_layer_1.self_attention.out_proj)",
        "2 stay as they are: excluded (encoder.layers.encoder_layer_0.mlp.3, encoder.layers.encoder_layer_1.mlp.3)",
    ]
    with pytest.raises(UserError, match="was not made by binarize"):
        report_of(nn.Linear(2, 2))


# -- signs that never change --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 8, 8)], ids=["traced", "run"])
def test_layers_behind_a_relu_are_warned_of(example: Tensor | None) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardtanh(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    )
    with pytest.warns(UserWarning, match=r"1 layers see no negative input.*\(3\)"):
        binarize(net, "irnet", example=example)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cure in ("reactnet", "rbnn", "siman", "adabin", "dorefa"):
            binarize(net, cure, example=example)
        binarize(net, "irnet", example=example, shift=True)
        net[1] = nn.Hardtanh()
        binarize(net, "irnet", example=example)


def test_relus_inside_blocks_and_norms_are_seen() -> None:
    assert len(select_layers(NETWORKS["timm resnet18"]()).unsigned) == 19
    mobile = select_layers(NETWORKS["timm mobilenetv3"]()).unsigned
    assert "blocks.0.0.conv_pw" in mobile, "the activation inside timm's batch norm"
    assert not select_layers(NETWORKS["timm vit"]()).unsigned
