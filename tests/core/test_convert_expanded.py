"""Networks of other people with expanding-and-shrinking: what is expanded, where it ends, and that the wiring is right."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

from esbnn_core import ESPlan, Progress, begin_step, binarize, count_ops
from esbnn_core.convert import report_of
from esbnn_core.errors import ESError, UserError
from esbnn_core.es import Head
from esbnn_core.nn import BinaryConv2d, BinaryLayer, ReplicatedBatchNorm2d
from esbnn_core.training import watch

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import HEADS, TINY, settings_of
from torch import Tensor, nn
from torchvision.models import vgg


class Block(nn.Module):
    """A residual block with a shortcut where widths change."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.PReLU(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1), nn.BatchNorm2d(c_out)
        self.down = (
            nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(c_in, c_out, 1), nn.BatchNorm2d(c_out)) if c_in != c_out else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return F.hardtanh(y + self.down(x))


class Small(nn.Module):
    """A residual network of two stages, whose middle (if there is one) mixes channels; the map is flattened as it is."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b, self.c = Block(8, 8), Block(8, 16, 2), Block(16, 16)
        self.middle = nn.Identity() if middle is None else middle
        self.fc = nn.Linear(16 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.middle(self.b(self.a(F.hardtanh(self.norm(self.stem(x)))))))
        x = F.avg_pool2d(x, 2)
        out: Tensor = self.fc(F.dropout(x.view(x.size(0), -1), 0.5, self.training))
        return out


def _vgg() -> nn.Module:
    features = vgg.make_layers([8, "M", 16, "M", 32, 32, "M"], batch_norm=True)
    with torch.device("meta"):
        net = vgg.VGG(features, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(32 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 7))
    return net


ZOO: dict[str, Callable[[], nn.Module]] = {
    "small": Small,
    "vgg_bn": _vgg,
    "torchvision resnet18": partial(torchvision.models.resnet18, num_classes=7),
    "torchvision densenet": partial(torchvision.models.DenseNet, 8, (2, 2), 16, num_classes=7),
    "torchvision mobilenet_v2": partial(torchvision.models.mobilenet_v2, width_mult=0.25, num_classes=7),
    "torchvision shufflenet": partial(torchvision.models.shufflenet_v2_x0_5, num_classes=7),
    "timm resnet18d": partial(timm.create_model, "resnet18d", channels=(16, 16, 32, 32), stem_width=8, num_classes=7),
    "timm mobilenetv3": partial(timm.create_model, "mobilenetv3_small_050", num_classes=7),
    "timm preactivation": partial(timm.create_model, "resnetv2_50", layers=[1, 1], channels=[32, 64], stem_chs=16, num_classes=7),
}
ONLY_3x3 = ["layer*.conv?"]  # of torchvision's ResNets: all but stem, shortcuts and classifier


def _binary(model: nn.Module) -> dict[str, BinaryLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}


def _image(side: int = 32, n: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _input_of(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return _image(8 if name == "small" else 32, dtype=dtype)


def _shaken(model: nn.Module) -> nn.Module:
    """Norms off their initial values, so that they cannot be mistaken for one another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).mul_(0.5))
    return model


def _train_one_step(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watch(optimizer, model)
    model.train()
    begin_step(model, Progress.at(0, 1, 1))
    (model(x) - 1).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()


@pytest.mark.parametrize("head", ["n", "full"])
@pytest.mark.parametrize("name", ZOO)
def test_blocks_that_are_equal_change_nothing(name: str, head: Head) -> None:
    # With tau = 1 no weight changes its shape, and each of two groups reads a whole block: whatever is wired wrongly shows.
    torch.manual_seed(0)
    net = _shaken(ZOO[name]()).double()
    plain, wide = binarize(net, "reactnet").eval(), binarize(net, "reactnet", plan=ESPlan.uniform(1, 2), head=head).eval()
    x = _input_of(name, torch.float64)
    done = report_of(wide).expansion
    assert done is not None
    assert done.slots
    assert not done.anew
    with torch.no_grad():
        torch.testing.assert_close(wide(x), plain(x))
    torch.testing.assert_close(wide(x), plain(x), rtol=1e-4, atol=1e-4)  # the training expression


@pytest.mark.parametrize("name", ZOO)
def test_expanded_networks_train(name: str) -> None:
    torch.manual_seed(1)
    wide = binarize(ZOO[name](), "reactnet", plan=ESPlan.uniform(2), head="full")
    _train_one_step(wide, _input_of(name))
    with torch.no_grad():
        assert wide.eval()(_input_of(name)).shape == (2, 7)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("setting", [(2, 1), (2, 2), (4, 1)])
def test_resnet_is_expanded_at_the_same_cost(setting: tuple[int, int], head: Head) -> None:
    tau, groups = setting
    net = ZOO["torchvision resnet18"]()
    plain = binarize(net, "reactnet", include=ONLY_3x3)
    wide = binarize(net, "reactnet", include=ONLY_3x3, plan=ESPlan.uniform(tau, groups), head=head)
    mine, theirs = count_ops(wide, (3, 32, 32)), count_ops(plain, (3, 32, 32))
    for key in ("bops", "conv_flops", "params_binary"):
        assert mine.totals[key] == theirs.totals[key]
    assert {row.name: row.bops for row in mine.rows if row.bops} == {row.name: row.bops for row in theirs.rows if row.bops}
    for name, layer in _binary(wide).items():
        old = net.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        assert layer.weight.shape == (old.out_channels // tau, old.in_channels * tau, 3, 3)
        assert layer.in_channels == old.in_channels * tau * groups
        assert layer.capacity == old.in_channels * tau * 9 + 1
        macs = layer.weight.numel() * next(row.out_shape for row in mine.rows if row.name == name)[-1] ** 2  # type: ignore[index]
        assert next(row.bops for row in mine.rows if row.name == name) == macs
    down = wide.get_submodule("layer2.0.downsample.0")
    assert type(down) is nn.Conv2d
    assert down.weight.shape == (128 // tau, 64 * tau, 1, 1)
    assert down.groups == groups
    assert sum(isinstance(m, ReplicatedBatchNorm2d) for m in wide.modules()) == 20
    assert wide.get_submodule("fc").in_features == {"full": 512 * tau * groups, "n": 512, "one": 512 // tau}[head]
    with torch.no_grad():
        assert wide.eval()(_image()).shape == (2, 7)


def test_the_papers_plan_gives_the_papers_counts() -> None:
    with torch.device("meta"):
        net = torchvision.models.resnet18()
    wide = binarize(net, "reactnet", exclude="*downsample*", plan=ESPlan.named("table8"), head="full")
    totals = count_ops(wide, (3, 224, 224)).totals
    # Table 6. There every convolution has a shortcut of its own; torchvision's go around two, so that the last real one makes 8 copies
    # for a sum after the second, where the paper's makes 4 for one after the first.
    assert totals["conv_flops"] == 137_281_536
    assert totals["fc_flops"] == 4_096_000
    assert totals["bops"] == 1_676_279_808
    assert round((totals["bn_flops"] - 4 * 512 * 7 * 7) / 1e8, 4) == 0.0823


def test_binary_shortcuts_take_the_setting_of_what_they_go_around() -> None:
    wide = binarize(ZOO["torchvision resnet18"](), "reactnet", plan=ESPlan.named("table8"))
    done = report_of(wide).expansion
    assert done is not None
    assert len(done.slots) == 19
    assert isinstance(wide.get_submodule("layer2.0.downsample.0"), BinaryConv2d)
    assert done.slots["layer2.0.downsample.0"].setting == done.slots["layer2.0.conv1"].setting


def test_stages_begin_where_maps_get_smaller() -> None:
    wide = binarize(ZOO["torchvision resnet18"](), "reactnet", plan=ESPlan.stages([(1, 2), (2, 1), (2, 2), (4, 1)]))
    done = report_of(wide).expansion
    assert done is not None
    found = {name.split(".")[0]: (slot.tau, slot.groups) for name, slot in done.slots.items()}
    assert found == {"layer1": (1, 2), "layer2": (2, 1), "layer3": (2, 2), "layer4": (4, 1)}


@st.composite
def _plans(draw: st.DrawFn) -> tuple[ESPlan, Head]:
    widths = (8, 8, 16, 16, 16, 16)
    return ESPlan.layers([draw(settings_of(c, powers_of_two=True)) for c in widths]), draw(st.sampled_from(HEADS))


@TINY
@given(_plans())
def test_any_plan_runs_at_the_same_cost(drawn: tuple[ESPlan, Head]) -> None:
    plan, head = drawn
    torch.manual_seed(2)
    wide = binarize(Small(), "reactnet", exclude="*down*", plan=plan, head=head).eval()
    done = report_of(wide).expansion
    assert done is not None
    with torch.no_grad():
        assert wide(_image(8)).shape == (2, 7)
    mine, theirs = (count_ops(m, (3, 8, 8)).totals for m in (wide, binarize(Small(), "reactnet", exclude="*down*")))
    assert (mine["bops"], mine["conv_flops"], mine["params_binary"]) == (theirs["bops"], theirs["conv_flops"], theirs["params_binary"])
    for name, setting in zip(("a.conv1", "a.conv2", "b.conv1", "b.conv2", "c.conv1", "c.conv2"), plan.settings, strict=True):
        assert done.slots[name].setting == setting
    assert done.slots["b.down.1"].setting == done.slots["b.conv1"].setting


# -- where it ends ------------------------------------------------------------------------------------------------------------
class Cat(nn.Module):
    """Exchanges the halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], x[:, :half]], 1)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


class Tokens(nn.Module):
    """Attention over positions, as in hybrid networks: reshaped to tokens and back."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        return self.attend(tokens, tokens, tokens)[0].transpose(1, 2).reshape(n, c, h, w).contiguous()


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "concatenation": Cat,
    "gate": Gate,
    "attention": Tokens,
    "channel shuffle": lambda: nn.ChannelShuffle(4),
    "grouped convolution": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=4),
    "group norm": lambda: nn.GroupNorm(4, 16),
    "other batch norm": lambda: nn.BatchNorm2d(16, affine=False),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_expansion_stops_where_channels_are_mixed(mixer: str) -> None:
    torch.manual_seed(3)
    net = _shaken(Small(MIXERS[mixer]())).double()
    include = [f"{b}.conv{i}" for b in "abc" for i in (1, 2)]
    plain = binarize(net, "reactnet", include=include).eval()
    x = _image(8, dtype=torch.float64)
    for head in ("n", "full"):
        same = binarize(net, "reactnet", include=include, plan=ESPlan.uniform(1, 2), head=head).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(same(x), plain(x))
    wide = binarize(net, "reactnet", include=include, plan=ESPlan.uniform(2), head="full")
    done = report_of(wide).expansion
    assert done is not None
    assert done.slots["b.conv2"].m_out == 1, "in front of what mixes channels stands one block"
    assert done.slots["c.conv1"].m_in == 2
    assert "c.conv1" in str(done.tiled)
    _train_one_step(wide, x)


def test_operations_that_read_an_expanded_tensor_get_the_mean_of_its_blocks() -> None:
    class Tapped(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = self.a(self.norm(self.stem(x)))
            return self.c(self.b(x)).mean((2, 3)), x.softmax(1)

    wide = binarize(Tapped(), "reactnet", plan=ESPlan.uniform(2), exclude="*down*").eval()
    done = report_of(wide).expansion
    assert done is not None
    assert done.averaged == ["softmax"]
    with torch.no_grad():
        assert [t.shape[1] for t in wide(_image(8))] == [16, 8]


def test_networks_without_a_chain_say_what_is_in_the_way() -> None:
    plan = ESPlan.uniform(2)
    for net, match in (
        (
            vgg.VGG(vgg.make_layers([8, "M", 16]), num_classes=2, init_weights=False).features,
            "Sequential can be expanded; the first: '3', no BatchNorm2d",
        ),
        (torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 64), r"the first: '.*mlp\.0', only convolutions are expanded"),
        (torchvision.models.SqueezeNet("1_1", 2), "the first: 'features.3.squeeze', no BatchNorm2d alone reads its output"),
    ):
        if isinstance(net, nn.Sequential):
            net.append(nn.Conv2d(16, 16, 1))
        with pytest.raises(ESError, match=match):
            binarize(net, "reactnet", plan=plan)


def test_a_layer_that_runs_twice_is_not_expanded() -> None:
    class Twice(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.a(self.a(self.norm(self.stem(x)))).mean((2, 3)).repeat(1, 8))  # type: ignore[no-any-return]

    with pytest.raises(ESError, match=r"'a\.conv1', it is called more than once"):
        binarize(Twice(), "reactnet", include="a.*", plan=ESPlan.uniform(2))


def test_a_plan_that_cannot_be_is_an_error_that_names_the_layer() -> None:
    net = ZOO["torchvision resnet18"]()
    with pytest.raises(ESError, match=r"layer 'layer1\.0\.conv1' \(64 -> 64 channels\): tau=128"):
        binarize(net, "reactnet", include=ONLY_3x3, plan=ESPlan.uniform(128))
    with pytest.raises(ESError, match="the plan has 3 settings for a network of 16 binary layers in 4 stages"):
        binarize(net, "reactnet", plan=ESPlan.layers([(2, 1)] * 3))
    with pytest.raises(UserError, match="inplace=True cannot be combined with a plan"):
        binarize(net, plan=ESPlan.uniform(2), inplace=True)


# -- the traced network -------------------------------------------------------------------------------------------------------
def test_what_depends_on_the_mode_still_does() -> None:
    dropping: Any = timm.create_model("resnet18", channels=(8, 8, 16, 16), num_classes=7, drop_rate=0.5, drop_path_rate=0.5)
    for net in (dropping, Small()):
        for traced_in in (True, False):
            wide = binarize(net.train(traced_in), "reactnet", plan=ESPlan.uniform(2))
            begin_step(wide, Progress.at(0, 1, 1))
            x = _image(8 if isinstance(net, Small) else 32, n=8)
            wide.eval()
            with torch.no_grad():
                assert torch.equal(wide(x), wide(x)), "nothing is dropped in evaluation"
                wide.train()
                assert not torch.equal(wide(x), wide(x)), "and something in training"


def test_networks_that_are_others_in_training_are_refused() -> None:
    class Auxiliary(Small):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y, y) if self.training else y

    with pytest.raises(UserError, match="Auxiliary computes differently in training and in evaluation at output"):
        binarize(Auxiliary(), "reactnet", plan=ESPlan.uniform(2))

    class Branching(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(UserError, match=r"Branching cannot be traced by torch\.fx"):
        binarize(Branching(), "reactnet", plan=ESPlan.uniform(2))


def test_the_original_is_left_alone_and_copies_keep_everything() -> None:
    net = Small()
    keys, modes = list(net.state_dict()), [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    wide = binarize(net, "recu", shift=True, plan=ESPlan.uniform(2, 2), head="full")
    assert list(net.state_dict()) == keys
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert set(keys) <= set(wide.state_dict()), "every name is still there"
    wide.eval()
    for other in (copy.deepcopy(wide), pickle.loads(pickle.dumps(wide))):
        with torch.no_grad():
            assert torch.equal(other(_image(8)), wide(_image(8)))
        assert report_of(other) == report_of(wide)


def test_the_report_says_what_was_made_anew() -> None:
    wide = binarize(Small(Cat()), "reactnet", exclude=["*down*", "c.conv2"], plan=ESPlan.uniform(2), head="full")
    conversion = report_of(wide)
    assert conversion.expansion is not None
    assert set(conversion.expansion.anew) == {
        *(
            f"{b}.{n}{i}.{p}"
            for b, i in (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
            for n in ("conv", "bn")
            for p in ("weight", "bias")
        ),
        *(f"b.down.{i}.{p}" for i in (1, 2) for p in ("weight", "bias")),
    }
    text = conversion.describe()
    assert "expanded with tau=2, groups=1, 4 copies (a.conv1, a.conv2, b.conv1)" in text
    assert "parameters: initialised anew, their shape changed (a.conv1.weight, " in text
