"""The registered classifiers: timm's habits, expansion through whole networks, heads, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import esbnn_cls  # noqa: F401  (registers the models)
from esbnn_cls.models import SKELETONS, BinaryResNet
from esbnn_cls_catalog import CATALOG, ES_NAMES, METHODS, PLAIN_ONLY, RESNET_NAMES
from esbnn_core.errors import ESError, UserError
from esbnn_core.es import ESPlan, ExpandShrink
from esbnn_core.nn import BinaryLayer, BinaryUnit, ReplicatedBatchNorm2d
from esbnn_core.training import Progress, begin_step, binary_layers, watch

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import HEADS, TINY, settings_of
from torch import Tensor, nn

FIRST = Progress.at(0, 1, 10)
FEW = settings(TINY, max_examples=15)


def small(name: str) -> dict[str, Any]:
    """Arguments that make a registered model tiny."""
    if name == "nin_cifar_xnor":
        return {}
    stages = 3 if "resnet20" in name else 4
    # Table 8's plan, the default of some, has settings for sixteen layers.
    plan = {"tau": 2} if name.startswith("es_resnet18_") and "_cifar" not in name else {}
    return {"widths": [4, 8, 8, 16][-stages:], "depths": [1] * stages, **plan}


def size_for(name: str) -> int:
    """Pixels of an image that leave at least one at the end."""
    return 8 if "_cifar" in name else 32


def create(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**small(name), **kwargs})


def images(n: int = 2, channels: int = 3, seed: int = 1, size: int = 8) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


# -- every name ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CATALOG.names)
def test_a_registered_model_trains_evaluates_and_keeps_timms_habits(name: str, tmp_path: Path) -> None:
    model = create(name, num_classes=5, in_chans=1)
    x = images(4, 1, size=size_for(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    watch(optimizer, model)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for step in range(2):
        begin_step(model, Progress.at(step, 2, 10))
        loss = nn.functional.cross_entropy(model(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert {"fc.weight"} <= moved
    model.eval()
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (4, 5)
        features = model.forward_features(x)
        assert features.shape[:2] == (4, model.num_features)
        assert torch.equal(model.forward_head(features), logits)
        assert model.forward_head(features, pre_logits=True).shape == (4, model.num_features)

    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    loaded = create(name, num_classes=5, in_chans=1, checkpoint_path=str(tmp_path / "model.pth")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), logits)

    assert model.num_classes == 5
    model.reset_classifier(7)
    assert model.num_classes == 7
    with torch.no_grad():
        assert model(x).shape == (4, 7)
        assert model.get_classifier() is model.fc
        model.reset_classifier(0)
        assert model(x).shape == (4, model.num_features)


@pytest.mark.parametrize("name", CATALOG.names)
def test_features_are_what_their_info_says(name: str) -> None:
    model = create(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(images(size=size_for(name)))
    info = model.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    assert [size_for(name) // m.shape[2] for m in maps] == info.reduction()
    assert len(maps) == (1 if name == "nin_cifar_xnor" else len(small(name)["depths"]))


@pytest.mark.parametrize("name", CATALOG.names)
def test_a_default_configuration_describes_its_model(name: str) -> None:
    model = create(name)
    cfg = model.default_cfg
    cifar = "_cifar" in name
    assert cfg["input_size"] == ((3, 32, 32) if cifar else (3, 224, 224))
    assert cfg["num_classes"] == (10 if cifar else 1000)
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    assert model.num_classes == cfg["num_classes"]
    modules = dict(model.named_modules())
    assert modules[cfg["classifier"]] is model.get_classifier()
    if name != "nin_cifar_xnor":
        assert modules[cfg["first_conv"]].in_channels == 3


def test_timm_lists_them_by_pattern() -> None:
    assert set(timm.list_models("es_*")) == set(ES_NAMES)
    assert set(RESNET_NAMES) | set(ES_NAMES) | set(PLAIN_ONLY) == set(CATALOG.names) <= set(timm.list_models())
    assert set(timm.list_models("resnet20_cifar_*")) == {f"resnet20_cifar_{m}" for m in (*METHODS, "fp")}
    assert set(SKELETONS) == set(RESNET_NAMES)
    assert timm.is_model("es_resnet18_recu")


@pytest.mark.parametrize("name", RESNET_NAMES)
def test_every_convolution_but_first_last_and_real_shortcuts_is_binary(name: str) -> None:
    model = create(name)
    skeleton = SKELETONS[name]
    real = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    allowed = set() if skeleton.binary_ends else {"stem.conv", "fc"}
    if skeleton.shortcut in ("conv", "avg_conv", "avg_ceil_conv"):
        allowed |= {n for n in real if n.endswith(".shortcut.conv")}
    assert real == allowed
    assert all(layer.method.name == skeleton.method for _, layer in binary_layers(model))


def test_sizes_of_the_published_networks() -> None:
    def weights(name: str) -> int:
        return sum(m.weight.numel() for m in timm.create_model(name).modules() if isinstance(m, BinaryLayer))

    # Binary weights of the skeletons: 18 convolutions of CIFAR's ResNet-20; ResNet-18 and 34 on ImageNet.
    assert weights("resnet20_cifar_irnet") == 16 * 16 * 9 * 6 + 16 * 32 * 9 + 32 * 32 * 9 * 5 + 32 * 64 * 9 + 64 * 64 * 9 * 5
    assert sum(p.numel() for p in timm.create_model("resnet20_cifar_irnet").parameters()) == 269_850
    assert len(list(binary_layers(timm.create_model("resnet18_irnet")))) == 16
    assert len(list(binary_layers(timm.create_model("resnet34_irnet")))) == 32


# -- expansion through networks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ES_NAMES)
def test_tau_and_g_of_one_are_the_plain_network_bit_for_bit(name: str) -> None:
    plain, expanded = create(name.removeprefix("es_")), create(name, tau=1, groups=1)
    state = plain.state_dict()
    assert list(state) == list(expanded.state_dict())
    expanded.load_state_dict(state)
    for model in (plain, expanded):
        begin_step(model, FIRST)
    x = images(size=size_for(name))
    assert torch.equal(plain(x), expanded(x))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), expanded.eval()(x))


FAMILIES = ["resnet20_cifar_irnet", "resnet20_cifar_rbnn", "resnet20_cifar_bnn", "resnet18_cifar_siman"]
FAMILIES += ["resnet18_adabin", "resnet18_recu2stage"]


@st.composite
def expanded(draw: st.DrawFn) -> BinaryResNet:
    """A network of one of the families with any setting of powers of two in each layer."""
    skeleton = SKELETONS[draw(st.sampled_from(FAMILIES))]
    depths = (1,) * len(skeleton.widths)
    widths = (8, 8, 16, 16)[-len(skeleton.widths) :]
    plan = []
    for width in widths:
        plan += [draw(settings_of(width, powers_of_two=True).filter(lambda s: s.e <= 8)) for _ in range(2)]
    # A shortcut around a whole block has the first layer's tau, which must leave whole copies for a head of n/tau.
    head = draw(st.sampled_from(HEADS if plan[-2].tau % plan[-1].tau == 0 else HEADS[:2]))
    torch.manual_seed(0)
    return BinaryResNet(replace(skeleton, widths=widths, depths=depths), plan=ESPlan.layers(plan), head=head)


@FEW
@given(expanded())
def test_any_plan_trains_and_leaves_the_number_of_weights(model: BinaryResNet) -> None:
    begin_step(model, FIRST)
    size = 32 if model.skeleton.stem == "imagenet" else 8
    model(images(size=size)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    plain = BinaryResNet(model.skeleton)
    for (_, mine), (_, theirs) in zip(binary_layers(model.stages), binary_layers(plain.stages), strict=True):
        assert mine.weight.numel() == theirs.weight.numel()
    with torch.no_grad():
        assert model.eval()(images(size=size)).shape == (2, 10)


@FEW
@given(expanded())
def test_equal_parameters_in_all_blocks_keep_the_blocks_equal(model: BinaryResNet) -> None:
    widths, generator = model.skeleton.widths, torch.Generator().manual_seed(0)

    def tile(module: nn.Module, c: int) -> None:
        for p in module.parameters(recurse=False):
            if p.dim() == 1 and p.numel() % c == 0:
                p.data.copy_((0.5 + torch.rand(c, generator=generator)).repeat(p.numel() // c))

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, ReplicatedBatchNorm2d | nn.PReLU) or type(module).__name__ in ("Maxout", "RPReLU"):
                c = widths[int(name.split(".")[1])] if name.startswith("stages") else widths[0]
                tile(module, c)
    seen: list[tuple[int, Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, BinaryUnit):
            c = widths[int(name.split(".")[1])]
            module.register_forward_hook(lambda m, i, y, c=c: seen.append((c, y.detach())))
    begin_step(model, FIRST)
    size = 32 if model.skeleton.stem == "imagenet" else 8
    for train in (True, False):
        seen.clear()
        with torch.no_grad():
            model.train(train).forward_features(images(3, size=size))
        assert seen
        for c, y in seen:
            blocks = y.unflatten(1, (-1, min(c, y.shape[1])))  # the head `one` leaves less than a block
            assert blocks.abs().sum() > 0
            assert all(torch.equal(blocks[:, b], blocks[:, 0]) for b in range(blocks.shape[1]))


@pytest.mark.parametrize(("head", "width"), [("full", 16 * 4), ("n", 16), ("one", 8)])
def test_heads_have_the_widths_of_table_9(head: str, width: int) -> None:
    model = create("es_resnet20_cifar_irnet", tau=2, groups=2, head=head)
    assert model.num_features == width == model.fc.in_features
    begin_step(model, FIRST)
    assert model(images()).shape == (2, 10)


def test_the_imagenet_resnet18_has_table_8s_plan_by_default() -> None:
    model = timm.create_model("es_resnet18_recu")
    slots = [model.wiring[f"stages.{i // 4}.{i // 2 % 2}.unit{i % 2 + 1}"] for i in range(16)]
    assert [ExpandShrink(s.tau, s.groups) for s in slots] == list(ESPlan.named("table8").settings)
    assert model.num_features == model.fc.in_features == 4096
    assert timm.create_model("es_resnet18_recu", head="n").fc.in_features == 512
    assert timm.create_model("es_resnet18_recu", head="one").fc.in_features == 128


def test_other_expanded_models_have_tau_2_by_default() -> None:
    for name in ("es_resnet20_cifar_irnet", "es_resnet18_cifar_recu", "es_resnet34_irnet"):
        model = create(name)
        assert {(layer.groups, layer.in_channels // 2) for _, layer in binary_layers(model.stages[0][0])} == {(1, small(name)["widths"][0])}


def test_lists_of_settings_are_per_layer_or_per_stage() -> None:
    by_stage = create("es_resnet20_cifar_irnet", tau=[1, 2, 4])
    assert [by_stage.wiring[f"stages.{i}.0.unit2"].tau for i in range(3)] == [1, 2, 4]
    by_layer = create("es_resnet20_cifar_irnet", tau=[1, 2, 4, 2, 1, 2], groups=(1, 1, 1, 2, 2, 1))
    assert [by_layer.wiring[f"stages.{i}.0.unit2"].setting.e for i in range(3)] == [2, 4, 2]


def test_capacity_grows_by_tau_and_not_by_groups() -> None:
    plain, tau, both = create("resnet20_cifar_irnet"), *(create("es_resnet20_cifar_irnet", tau=2, groups=g) for g in (1, 2))
    for (_, a), (_, b), (_, c) in zip(*(binary_layers(m) for m in (plain, tau, both)), strict=True):
        assert b.capacity - 1 == c.capacity - 1 == 2 * (a.capacity - 1)


# -- errors and options --------------------------------------------------------------------------------------------------------
def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"'resnet20_cifar_irnet' is the plain network; tau, groups, plan and head belong to 'es_resnet20"):
        create("resnet20_cifar_irnet", tau=2)
    with pytest.raises(UserError, match="give either plan, or tau and groups"):
        create("es_resnet20_cifar_irnet", tau=2, plan="table8")
    with pytest.raises(ESError, match=r"layer 'stages.0.0.unit1' \(8 -> 8 channels\): tau=3, groups=1 needs"):
        create("es_resnet20_cifar_irnet", tau=3, widths=[8, 8, 8])
    with pytest.raises(ESError, match="plan has 2 settings for a network of 6 binary layers in 3 stages"):
        create("es_resnet20_cifar_irnet", tau=[2, 2])
    with pytest.raises(ESError, match="unknown head 'half'"):
        create("es_resnet20_cifar_irnet", head="half")
    with pytest.raises(UserError, match=r"widths \(4, 8\) and depths \(1, 1, 1\) must have one entry a stage"):
        create("resnet20_cifar_irnet", widths=[4, 8])
    with pytest.raises(UserError, match=r"method 'irnet' has no option 't_mn' \(did you mean 't_min'\?\)"):
        create("resnet20_cifar_irnet", method_options={"t_mn": 0.1})


def test_a_methods_options_reach_its_layers() -> None:
    model = create("es_resnet20_cifar_irnet", method_options={"t_min": 0.1})
    assert {layer.method.options()["t_min"] for _, layer in binary_layers(model)} == {0.1}


def test_intermediate_features_can_be_taken_and_pruned() -> None:
    model = create("es_resnet20_cifar_irnet", tau=2).eval()
    with torch.no_grad():
        last, found = model.forward_intermediates(images(), indices=[0, 2])
        assert torch.equal(found[-1], last)
        only = model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(only[0], found[0])
        model.prune_intermediate_layers([1])
        assert len(model.stages) == 2
        assert model(images()).shape[0] == 2


def test_dropout_acts_on_the_classifiers_input_in_training_only() -> None:
    model = create("resnet20_cifar_irnet", drop_rate=0.5)
    begin_step(model, FIRST)
    with torch.no_grad():
        assert not torch.equal(model(images()), model(images()))
        model.eval()
        assert torch.equal(model(images()), model(images()))


def test_pretrained_weights_that_do_not_exist_are_not_made_up() -> None:
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("resnet20_cifar_irnet", pretrained=True)
