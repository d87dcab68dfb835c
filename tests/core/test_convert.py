"""Giving the treatment to networks of other people: torchvision's and timm's, plain and expanded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from esbnn_core import ESPlan, Progress, begin_step, binarize, count_ops
from esbnn_core.convert import select_layers
from esbnn_core.errors import ESError, UserError
from esbnn_core.nn import BinaryConv2d, BinaryLayer, BinaryLinear, ReplicatedBatchNorm2d
from esbnn_core.training import watch

import pytest
import timm
import torch
import torchvision
from torch import nn


def _small_head(vgg: nn.Module) -> nn.Module:
    """VGG's convolutions with one linear layer behind them: its own three have 120 million weights."""
    vgg.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.Hardtanh(), nn.Linear(16, 7))
    return vgg


# Image side 32 to 64 keeps these networks quick; their structure is the real one.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=7), 32),
    "torchvision vgg11_bn": (lambda: _small_head(torchvision.models.vgg11_bn()), 32),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), 32),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7),
        32,
    ),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=7), 32),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7), 32),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), 32),
}


def _binary(model: nn.Module) -> dict[str, BinaryLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}


def _train_one_step(model: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watch(optimizer, model)
    model.train()
    begin_step(model, Progress.at(0, 1, 1))
    (model(x) - 1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_known_networks_become_binary_and_still_run_and_train(name: str) -> None:
    make, side = NETWORKS[name]
    torch.manual_seed(0)
    original = make()
    before = {k: v.clone() for k, v in original.state_dict().items()}
    model = binarize(original, "bireal", shift=True)
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items()), "the original must not change"
    layers = _binary(model)
    assert layers
    for layer_name, layer in layers.items():
        assert torch.equal(layer.weight, original.get_submodule(layer_name).weight), "weights are carried over"  # type: ignore[arg-type]
    x = torch.randn(2, 3, side, side)
    model.eval()
    with torch.no_grad():
        once = model(x)
    assert once.shape == (2, 7)
    _train_one_step(model, x)
    model.eval()
    with torch.no_grad():
        assert not torch.equal(model(x), once)
    # The float model's checkpoint still fits by name.
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert not unexpected
    assert all(".sign." in key for key in missing)


@pytest.mark.parametrize("name", NETWORKS)
def test_form_and_training_expression_of_every_replaced_layer_agree(name: str) -> None:
    make, side = NETWORKS[name]
    torch.manual_seed(1)
    model = binarize(make(), "recu").eval()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, o, n=n: seen.update({n: (i[0].clone(), o.clone())})) for n, layer in _binary(model).items()
    ]
    with torch.no_grad():
        model(torch.randn(2, 3, side, side))
    for hook in hooks:
        hook.remove()
    for layer_name, (given, out) in seen.items():
        torch.testing.assert_close(_binary(model)[layer_name](given.requires_grad_()), out, rtol=1e-4, atol=1e-4)


def test_first_and_last_layers_stay_real_unless_asked() -> None:
    net = torchvision.models.resnet18(num_classes=7)
    kept = select_layers(net).kept
    assert kept == {"conv1": "first or last layer", "fc": "first or last layer"}
    assert len(_binary(binarize(net, keep_first_last=False))) == 21


def test_first_and_last_are_those_that_run_first_and_last() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.middle(self.first(x)).mean((2, 3)))
            return y

    assert select_layers(Shuffled()).replaced == ("middle",)
    assert select_layers(Shuffled(), example=torch.randn(1, 3, 4, 4)).replaced == ("middle",)


def test_layers_are_chosen_by_globs_or_functions() -> None:
    net = torchvision.models.resnet18()
    assert select_layers(net, include="layer3.*.conv?").replaced == tuple(f"layer3.{i}.conv{j}" for i in (0, 1) for j in (1, 2))
    assert not any("downsample" in n for n in select_layers(net, exclude=["*downsample*"]).replaced)
    only_wide = select_layers(net, include=lambda name, m: isinstance(m, nn.Conv2d) and m.in_channels >= 256)
    assert all(net.get_submodule(n).in_channels >= 256 for n in only_wide.replaced)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"no layer's name matches 'layer9\.\*'; the nearest is"):
        select_layers(net, include="layer9.*")
    with pytest.raises(UserError, match="nothing to binarize"):
        select_layers(net, exclude="*")


def test_depthwise_convolutions_are_kept_unless_named() -> None:
    net = torchvision.models.mobilenet_v2()
    kept = select_layers(net).kept
    assert sum(reason == "depthwise" for reason in kept.values()) == 17
    assert "features.2.conv.1.0" in select_layers(net, include="features.2.conv.1.0").replaced


def test_the_projection_inside_multi_head_attention_is_kept_and_said_so() -> None:
    net = NETWORKS["torchvision vit"][0]()
    kept = {n: why for n, why in select_layers(net).kept.items() if n.endswith("out_proj")}
    assert len(kept) == 2
    assert all("subclass" in why for why in kept.values())
    with pytest.raises(UserError, match="out_proj' cannot be made binary"):
        select_layers(net, include="*out_proj")


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


def test_a_module_used_under_two_names_stays_one_module() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.Hardtanh(), shared, nn.Conv2d(8, 2, 1))
    changed = binarize(net, "irnet")
    assert changed[1] is changed[3]  # type: ignore[index]
    assert isinstance(changed[1], BinaryConv2d)  # type: ignore[index]


def test_scales_start_from_the_weights_that_were_carried_over() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    twin = binarize(net, "siman")[1]  # type: ignore[index]
    assert isinstance(twin, BinaryLinear)
    torch.testing.assert_close(twin.alpha, net[1].weight.abs().mean(1))


def test_layers_behind_a_relu_are_warned_of() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Hardtanh(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.warns(UserWarning, match=r"1 layers see no negative input.*\(2"):
        binarize(net, "irnet", example=torch.randn(2, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net[1] = nn.Hardtanh()
        binarize(net, "irnet", example=torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("head", ["n", "full", "one"])
@pytest.mark.parametrize("setting", [(2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("name", ["torchvision resnet18", "timm resnet18"])
def test_resnets_are_expanded_at_the_same_binary_cost(name: str, setting: tuple[int, int], head: Any) -> None:
    tau, groups = setting
    torch.manual_seed(2)
    net = NETWORKS[name][0]()
    include = ["layer*.conv?"]  # shortcuts real, as in the paper
    plain = binarize(net, "recu", include=include)
    if head == "one":
        # The classifier then reads n/tau channels: it is made anew, and no longer fits the user's.
        return _expect_narrow(net, include, tau, groups)
    wide = binarize(net, "recu", include=include, plan=ESPlan.uniform(tau, groups), head=head)
    assert sum(isinstance(m, ReplicatedBatchNorm2d) for m in wide.modules()) == 20
    mine, theirs = (count_ops(m, (3, 32, 32)).totals for m in (wide, plain))
    assert mine["bops"] == theirs["bops"]
    assert mine["conv_flops"] == theirs["conv_flops"]
    assert mine["params_binary"] == theirs["params_binary"]
    assert wide.get_submodule("fc").in_features == 512 * (tau * groups if head == "full" else 1)
    x = torch.randn(2, 3, 32, 32)
    _train_one_step(wide, x)
    wide.eval()
    with torch.no_grad():
        assert wide(x).shape == (2, 7)
    return None


def _expect_narrow(net: nn.Module, include: list[str], tau: int, groups: int) -> None:
    wide = binarize(net, "recu", include=include, plan=ESPlan.uniform(tau, groups), head="one")
    assert wide.get_submodule("fc").in_features == 512 // tau
    with torch.no_grad():
        assert wide.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_a_chain_without_sums_is_expanded() -> None:
    net = NETWORKS["torchvision vgg11_bn"][0]()
    wide = binarize(net, "irnet", include="features.*", plan=ESPlan.uniform(2), keep_first_last=True)
    layers = [m for n, m in _binary(wide).items()]
    assert all(m.groups == 1 and m.weight.shape[1] == m.in_channels for m in layers)
    x = torch.randn(2, 3, 32, 32)
    _train_one_step(wide, x)
    with torch.no_grad():
        assert wide.eval()(x).shape == (2, 7)


def test_per_layer_plans_adapt_sums_of_different_multiples() -> None:
    net = NETWORKS["torchvision resnet18"][0]()
    settings = [(2, 1), (4, 1), (2, 2), (1, 1), (4, 2), (2, 1), (1, 2), (8, 1)] * 2
    wide = binarize(net, "bireal", include=["layer*.conv?"], plan=ESPlan.layers(settings), head="full")
    x = torch.randn(2, 3, 32, 32)
    _train_one_step(wide, x)
    with torch.no_grad():
        assert wide.eval()(x).shape == (2, 7)


def test_a_plan_that_cannot_be_is_an_error_that_names_the_layer() -> None:
    net = NETWORKS["torchvision resnet18"][0]()
    with pytest.raises(ESError, match=r"layer 'layer1\.0\.conv1' \(64 -> 64 channels\): tau=128"):
        binarize(net, include=["layer*.conv?"], plan=ESPlan.uniform(128))


def test_networks_without_a_chain_say_what_is_in_the_way() -> None:
    with pytest.raises(ESError, match="no chain"):
        binarize(torchvision.models.vgg11(), plan=ESPlan.uniform(2))  # no batch norm to make the copies
    with pytest.raises(UserError):
        binarize(NETWORKS["torchvision vit"][0](), plan=ESPlan.uniform(2))


def test_expansion_stops_where_channels_are_mixed() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.a, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.b, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.c, self.bn3 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn0(self.stem(x))
            y = self.bn2(self.b(self.bn1(self.a(x))))
            z = self.bn3(self.c(torch.cat([y, x], 1)))
            out: torch.Tensor = self.fc(z.mean((2, 3)))
            return out

    wide = binarize(Mixing(), "irnet", plan=ESPlan.uniform(2))
    layers = _binary(wide)
    assert layers["a"].in_channels == 16
    assert layers["c"].in_channels == 32, "what a concatenation gives is one block, tiled for its reader"
    _train_one_step(wide, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        assert wide.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 4)
