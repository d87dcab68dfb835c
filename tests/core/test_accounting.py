"""Counting: the paper's figures, agreement with torch's own counter, and a model that is left as it was."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import esbnn_core  # noqa: F401  (before timm and torchvision)
from esbnn_core import methods
from esbnn_core.accounting import Report, count_ops
from esbnn_core.errors import UserError
from esbnn_core.es import ESPlan, Layer, representation_capacity, resolve
from esbnn_core.nn import BinaryConv2d, BinaryLinear, BinaryUnit, ReplicatedBatchNorm2d, Shortcut
from esbnn_core.training import binary_layers

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

timm = pytest.importorskip("timm")
pytest.importorskip("esbnn_cls.models")

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def report_of(name: str, size: tuple[int, int, int] = IMAGENET, **arguments: Any) -> Report:
    return count_ops(timm.create_model(name, **arguments), size)


def rounded(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def cut(value: float, digits: int) -> str:
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


# -- the paper -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "table6", "four_digits"),
    [
        ("resnet18_recu", "1.373 0.005 1.676 1.640 0.025 1.665", "1.3728 0.0051 1.6763 1.6399 0.0248 1.6647"),
        ("es_resnet18_recu", "1.373 0.041 1.676 1.676 0.082 1.758", "1.3728 0.0410 1.6763 1.6757 0.0823 1.7580"),
    ],
)
def test_table_6_comes_out_to_every_printed_digit(name: str, table6: str, four_digits: str) -> None:
    t = report_of(name).totals
    values = [t["conv_flops"] / 1e8, t["fc_flops"] / 1e8, t["bops"] / 1e9, t["ops"] / 1e8, t["bn_flops"] / 1e8, t["ops_plus"] / 1e8]
    assert " ".join(rounded(v, 3) for v in values) == table6
    assert " ".join(rounded(v, 4) for v in values) == four_digits


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("resnet18_irnet", "1.68 1.37 1.64"),
        ("resnet18_rbnn", "1.68 1.37 1.64"),
        ("resnet18_reste", "1.68 1.37 1.64"),
        ("resnet18_recu", "1.68 1.37 1.64"),
        ("es_resnet18_recu", "1.68 1.41 1.68"),
        ("resnet18_reactnet", "1.68 1.37 1.64"),
        ("es_resnet18_reactnet", "1.68 1.41 1.68"),
    ],
)
def test_rows_of_table_2_come_out_with_flops_cut_and_the_rest_rounded(name: str, row: str) -> None:
    t = report_of(name).totals
    flops = (t["conv_flops"] + t["fc_flops"]) / 1e8
    assert f"{rounded(t['bops'] / 1e9, 2)} {cut(flops, 2)} {rounded(t['ops'] / 1e8, 2)}" == row
    assert abs(float(rounded(flops, 2)) - float(row.split()[1])) < 0.0101  # by rounding: one unit of the last digit at most


def test_expanding_irnet_costs_what_it_costs_recu() -> None:
    assert report_of("es_resnet18_irnet").totals["ops"] == report_of("es_resnet18_recu").totals["ops"]


def test_capacities_of_figure_4() -> None:
    plain = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 3  # c_i of the 16 binary layers
    tau = [2, 2, 2, 2, 4, 4, 2, 2] + [4] * 8
    assert report_of("resnet18_recu").capacities == [c * 9 + 1 for c in plain]
    assert report_of("es_resnet18_recu").capacities == [c * t * 9 + 1 for c, t in zip(plain, tau, strict=True)]


@pytest.mark.parametrize(
    ("name", "size", "bops", "real"),
    [
        ("resnet20_cifar_irnet", CIFAR, "4.011e+07", "4.430e+05"),
        ("resnet18_cifar_recu", CIFAR, "5.474e+08", None),
        ("resnet34_irnet", IMAGENET, "3.526e+09", None),
    ],
)
def test_known_counts_of_other_resnets(name: str, size: tuple[int, int, int], bops: str, real: str | None) -> None:
    t = report_of(name, size).totals
    assert f"{t['bops']:.3e}" == bops
    assert real is None or f"{t['conv_flops'] + t['fc_flops']:.3e}" == real


# -- expansion keeps the products ----------------------------------------------------------------------------------------------
class Chain(nn.Module):
    """A stem and three units with every kind of shortcut, wired by a plan."""

    def __init__(self, plan: ESPlan, kind: str, method: str = "irnet") -> None:
        super().__init__()
        widths = [(16, 16, 1), (16, 32, 2), (32, 32, 1)]
        layers = [Layer("stem", "image", "e0", 3, 16, 3, real=True)]
        for i, (a, b, _) in enumerate(widths):
            layers.append(Layer(f"u{i}", f"e{i}", f"e{i + 1}", a, b, 3))
        wiring = resolve(layers, (), plan)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = ReplicatedBatchNorm2d(16, wiring["stem"].copies)
        self.units = nn.Sequential()
        for i, (a, b, stride) in enumerate(widths):
            slot = wiring[f"u{i}"]
            conv = BinaryConv2d(slot.channels_in(a), slot.filters(b), 3, stride, 1, groups=slot.groups, method=method)
            around = None if kind == "none" else Shortcut(kind, a, b, stride, slot.m_in, slot.m_out, slot)  # type: ignore[arg-type]
            self.units.append(BinaryUnit(conv, "n+" if around is not None else "n", copies=slot.copies, shortcut=around))
        self.fc = nn.Linear(wiring.channels("e3"), 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.units(self.norm(self.stem(x))).mean((2, 3)))
        return out


@st.composite
def plans(draw: st.DrawFn, layers: int = 3) -> ESPlan:
    return ESPlan.layers([(draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))) for _ in range(layers)])


@settings(max_examples=25, deadline=None)
@given(plans())
def test_any_plan_keeps_bops_and_binary_weights(plan: ESPlan) -> None:
    plain, es = (count_ops(Chain(p, "none"), (3, 8, 8)) for p in (ESPlan.none(), plan))
    for column in ("bops", "conv_flops", "params_binary"):
        assert es.totals[column] == plain.totals[column]
    c_in = (16, 16, 32)
    assert es.capacities == [representation_capacity(c, 3, s.tau) for c, s in zip(c_in, plan.settings, strict=True)]


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from(["conv", "avg_pad"]))
def test_shortcuts_cost_the_same_and_their_norms_count_after_the_copies(tau: int, groups: int, kind: str) -> None:
    plain, es = (count_ops(Chain(p, kind), (3, 8, 8)) for p in (ESPlan.none(), ESPlan.uniform(tau, groups)))
    assert (es.totals["bops"], es.totals["conv_flops"]) == (plain.totals["bops"], plain.totals["conv_flops"])
    assert es.totals["bn_flops"] == plain.totals["bn_flops"] * tau * groups


@pytest.mark.parametrize("method", methods.names())
def test_every_method_counts_alike(method: str) -> None:
    t = count_ops(Chain(ESPlan.uniform(2), "conv", method), (3, 8, 8)).totals
    base = count_ops(Chain(ESPlan.uniform(2), "conv", "bireal"), (3, 8, 8)).totals
    assert all(t[c] == base[c] for c in ("conv_flops", "fc_flops", "bn_flops", "bops", "params_binary"))
    assert t["params_real"] >= base["params_real"]


# -- binary layers one by one --------------------------------------------------------------------------------------------------
def test_products_with_real_numbers_are_flops() -> None:
    first = BinaryConv2d(3, 8, 3, padding=1, method="bnn", real_input=True)
    t = count_ops(first, (3, 4, 4)).totals
    assert (t["conv_flops"], t["bops"], t["params_binary"]) == (8 * 27 * 16, 0, 216)
    annealing = BinaryConv2d(4, 8, 3, padding=1)
    annealing.weight_mode = "real"
    report = count_ops(annealing, (4, 4, 4))
    assert (report.totals["conv_flops"], report.totals["bops"], report.totals["params_binary"]) == (8 * 36 * 16, 0, 0)
    assert (report.rows[0].kind, report.rows[0].capacity) == ("conv", None)


def test_activations_of_two_bits_cost_two_binary_operations_a_product() -> None:
    one, two = (count_ops(BinaryConv2d(4, 8, 3, method=methods.get("dorefa", a_bits=b)), (4, 4, 4)) for b in (1, 2))
    assert two.totals["bops"] == 2 * one.totals["bops"]
    assert (one.capacities, two.capacities) == ([37], [])


def test_a_binary_linear_layer_over_tokens() -> None:
    report = count_ops(BinaryLinear(12, 20, bias=True), (7, 12), batch_size=2)
    (row,) = report.rows
    assert (row.kind, row.bops, row.capacity, row.in_shape, row.out_shape) == ("binary_linear", 2 * 7 * 12 * 20, 13, (2, 7, 12), (2, 7, 20))
    assert row.elementwise == 2 * 7 * 12 + 2 * 7 * 20  # the signs and the bias


def test_weight_arithmetic_of_methods_counts_as_nothing() -> None:
    for method in ("rbnn", "siman", "irnet"):  # rotations are matrix products
        t = count_ops(BinaryConv2d(4, 8, 3, method=method), (4, 6, 6)).totals
        assert (t["fc_flops"], t["conv_flops"], t["bn_flops"]) == (0, 0, 0)


def test_packed_bytes_follow_the_stated_rule() -> None:
    conv = BinaryConv2d(5, 6, 3, method="bireal")  # 270 bits
    assert count_ops(conv, (5, 8, 8)).totals["packed_bytes"] == 34 + 4 * 2 * 6
    unit = BinaryUnit(conv, "n", copies=2)
    assert count_ops(unit, (5, 8, 8)).totals["packed_bytes"] == 34 + 4 * 2 * 12
    centred = BinaryUnit(BinaryConv2d(5, 6, 3, method="adabin"), "n")
    assert count_ops(centred, (5, 8, 8)).totals["packed_bytes"] == 34 + 4 * (6 + 2 + 2 * 6)
    shifted = BinaryUnit(BinaryConv2d(5, 6, 3, method="reactnet"), "n")
    assert count_ops(shifted, (5, 8, 8)).totals["packed_bytes"] == 34 + 4 * (5 + 2 * 6)
    rotated = BinaryUnit(BinaryConv2d(5, 6, 3, method="rbnn"), "n")
    assert count_ops(rotated, (5, 8, 8)).totals["packed_bytes"] == 34 + 4 * 2 * 6
    assert count_ops(nn.Conv2d(5, 6, 3), (5, 8, 8)).totals["packed_bytes"] == 4 * 276


@pytest.mark.parametrize("name", ["resnet20_cifar_siman", "es_resnet20_cifar_adabin", "resnet20_cifar_bnn", "nin_cifar_xnor"])
def test_parameters_add_up(name: str) -> None:
    model = timm.create_model(name)
    t = count_ops(model, CIFAR).totals
    assert t["params_binary"] + t["params_real"] == sum(p.numel() for p in model.parameters())
    assert t["params_binary"] == sum(layer.weight.numel() for _, layer in binary_layers(model))


# -- any network ---------------------------------------------------------------------------------------------------------------
def torch_flops(model: nn.Module, *inputs: Tensor) -> int:
    """By torch's own counter, which takes two for a multiply-accumulate and misses the CPU's fused attention."""
    model.eval()
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops())


def flops(report: Report) -> int:
    return int(report.totals["conv_flops"] + report.totals["fc_flops"])


class Attend(nn.Module):
    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * channels, channels))
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in F.linear(tokens, self.qkv).chunk(3, 2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhqk,bhkd->bhqd", (q @ k.transpose(2, 3)).softmax(-1), v)
        return y.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])


class ChannelMlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.hardswish(self.up(x.movedim(1, -1)))).movedim(-1, 1)


class Functional(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(c_out, c_in // groups, 3, 3))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x, self.kernel, padding=1, groups=self.groups)) + 1


@st.composite
def real_networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    c = 4 * draw(st.integers(1, 3))
    size = (c, draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        kind, out = draw(st.sampled_from(["conv", "transposed", "functional", "attend", "mlp", "norm"])), 4 * draw(st.integers(1, 3))
        groups = draw(st.sampled_from([1, 2, 4]))
        if kind == "conv":
            stride, padding, dilation = (draw(st.integers(1, 2)) for _ in range(3))
            layers += [nn.Conv2d(c, out, 3, stride, padding, dilation, groups), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 5))]
            c = out
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(c, out, 3, 2, groups=groups))
            c = out
        elif kind == "functional":
            layers.append(Functional(c, out, groups))
            c = out
        elif kind == "attend":
            layers.append(Attend(c, 4, draw(st.booleans())))
        elif kind == "norm":
            layers.append(draw(st.sampled_from([nn.BatchNorm2d(c), nn.GroupNorm(2, c), nn.InstanceNorm2d(c)])))
        else:
            layers.append(ChannelMlp(c))
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net.eval()(torch.zeros(1, *size))
    return net, size


@settings(max_examples=40, deadline=None)
@given(real_networks(), st.integers(1, 3))
def test_real_networks_agree_with_torchs_counter(network: tuple[nn.Module, tuple[int, int, int]], batch: int) -> None:
    model, size = network
    want = torch_flops(model, torch.zeros(batch, *size))
    for device in (None, "meta", "cpu"):
        report = count_ops(model, size, batch_size=batch, device=device)
        assert 2 * flops(report) == want
        assert report.totals["bops"] == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "swin_t"])
def test_torchvisions_networks_have_their_published_counts(name: str) -> None:
    import torchvision

    (weights,) = [w for w in torchvision.models.get_model_weights(name) if w.name == "IMAGENET1K_V1"]
    size = weights.transforms().crop_size[0]
    published = weights.meta["_ops"]  # 1e9 multiply-accumulates
    assert f"{flops(count_ops(torchvision.models.get_model(name), (3, size, size))) / 1e9:.3f}" == f"{published:.3f}"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swinv2_cr_tiny_224", "resnetv2_50", "convnext_atto"])
def test_timms_networks_agree_with_torchs_counter(name: str) -> None:
    model = timm.create_model(name)
    report = count_ops(model, IMAGENET)
    assert 2 * flops(report) == torch_flops(model.to("meta"), torch.zeros(1, *IMAGENET, device="meta"))


def test_recurrent_and_vector_products_are_counted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
            self.vector = nn.Parameter(torch.randn(10))

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][0] @ self.vector

    model = Net()
    want = 2 * 7 * 4 * 5 * (6 + 5) + 7 * 10
    assert flops(count_ops(model, (7, 6))) == flops(count_ops(model, (7, 6), device="cpu")) == want
    assert model.rnn._flat_weights[0] is model.rnn.weight_ih_l0


def test_norms_activations_and_sums_stand_in_their_columns() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Flatten(), nn.BatchNorm1d(64), nn.LayerNorm(64))
    report = count_ops(model, (4, 4, 4), batch_size=2)
    norms = {row.name: (row.kind, row.bn_flops, row.elementwise) for row in report.rows if row.name != "2"}
    assert norms == {"0": ("norm", 128, 0), "1": ("norm", 0, 128), "4": ("norm", 128, 0), "5": ("norm", 0, 128)}
    assert (report.totals["bn_flops"], report.totals["elementwise"], report.totals["ops"]) == (256, 3 * 128, 0)


def test_standardising_a_real_weight_is_no_batch_norm_of_the_network() -> None:
    from timm.layers import StdConv2d

    t = count_ops(StdConv2d(4, 8, 3), (4, 6, 6)).totals
    assert (t["bn_flops"], t["elementwise"], t["conv_flops"]) == (0, 0, 8 * 36 * 36)


def test_shared_layers_keep_one_set_of_parameters_and_count_every_call() -> None:
    layer = nn.Linear(6, 6)
    report = count_ops(nn.Sequential(layer, nn.ReLU(), layer), (6,))
    (row,) = [row for row in report.rows if row.kind == "fc"]
    assert (row.calls, row.fc_flops, row.params_real) == (2, 72, 42)


def test_layers_that_never_run_keep_their_parameters() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    rows = {row.name: row for row in count_ops(Net(), (4,)).rows}
    assert (rows["unused"].fc_flops, rows["unused"].params_real, rows["unused"].calls) == (0, 25, 0)


def test_values_that_steer_the_run_are_computed() -> None:
    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("times", torch.tensor(3))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(self.times)):
                x = self.fc(x)
            return x

    assert count_ops(Steered(), (4,)).totals["fc_flops"] == 48


def test_several_inputs_and_given_tensors() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b.transpose(1, 2)

    sizes = count_ops(Pair(), [(3, 5), (4, 5)], batch_size=2)
    tensors = count_ops(Pair(), inputs=(torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)))
    assert sizes.totals == tensors.totals
    assert sizes.totals["fc_flops"] == 120
    words = count_ops(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2)), inputs=torch.zeros(1, 5, dtype=torch.long))
    assert words.totals["fc_flops"] == 60


def test_half_precision_models_are_given_half_precision_input() -> None:
    assert count_ops(nn.Linear(4, 4).to(torch.bfloat16), (4,)).totals["fc_flops"] == 16


# -- a model is left as it was -------------------------------------------------------------------------------------------------
class Habits(nn.Module):
    """A model that writes to itself in every forward, and looks at its numbers."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.unit = BinaryUnit(BinaryConv2d(4, 4, 3, padding=1, method="siman"), "n+a", copies=2, act=nn.PReLU(8), shortcut=Double())
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: dict[str, Tensor] = {}
        self.trace: list[Tensor] = []
        self.last: Tensor | None = None
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.norm.running_mean.add_(1)
        y = self.norm(self.unit(x))
        self.cache["y"], self.last = y, y
        self.trace.append(y)
        if self.fails:
            raise RuntimeError("broken\nsecond line")
        return y * self.calls.item()


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_before(fails: bool, training: bool) -> None:
    model = Habits(fails)
    model.norm.register_forward_hook(lambda *_: None)
    model.train(training)
    model.unit.eval()
    if not training:
        with torch.no_grad():
            model.unit(torch.randn(1, 4, 5, 5))  # fills the cache of the canonical form
    state, tensors = copy.deepcopy(model.state_dict()), {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    random = torch.random.get_rng_state()
    if fails:
        with pytest.raises(UserError, match=r"Habits cannot be run on an input of 1x4x5x5: broken$"):
            count_ops(model, (4, 5, 5))
    else:
        count_ops(model, (4, 5, 5))
    assert {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == tensors
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
        assert all(module.__dict__[k] is v for k, v in attributes[name].items())
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks
    assert (model.cache, model.trace, model.last) == ({}, [], None)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_counting_in_between_changes_no_output() -> None:
    model = timm.create_model("es_resnet20_cifar_irnet").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        count_ops(model, CIFAR)
        assert torch.equal(model(x), before)


# -- mistakes ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (5, 8, 8)}, r"Conv2d cannot be run on an input of 1x5x8x8: .*3 channels"),
        ({"input_size": (3, 2, 2)}, "cannot be run on an input of 1x3x2x2"),
        ({"input_size": (3, 0, 8)}, "whole numbers from 1"),
        ({"input_size": "3x8x8"}, "whole numbers from 1"),
        ({"input_size": (3, 8, 8), "batch_size": 0}, "batch_size 0"),
        ({}, "give either input_size"),
    ],
)
def test_input_that_does_not_fit_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        count_ops(nn.Conv2d(3, 4, 5), **arguments)
    assert "\n" not in str(caught.value)


def test_lazy_layers_are_asked_to_run_first() -> None:
    with pytest.raises(UserError, match="run it once"):
        count_ops(nn.LazyLinear(3), (4,))


# -- the report ----------------------------------------------------------------------------------------------------------------
def test_json_has_the_agreed_keys_and_whole_numbers() -> None:
    report = report_of("es_resnet20_cifar_recu", CIFAR)
    value = json.loads(report.to_json())
    keys = {"conv_flops", "fc_flops", "bn_flops", "bops", "ops", "ops_plus", "params_binary", "params_real", "packed_bytes"}
    assert keys <= value["totals"].keys()
    assert all(isinstance(value["totals"][key], int) for key in keys)
    assert value["input_shapes"] == [[1, 3, 32, 32]]
    for column in keys - {"ops", "ops_plus"}:
        assert sum(layer[column] for layer in value["layers"]) == value["totals"][column]
    binary = [layer for layer in value["layers"] if layer["kind"] == "binary_conv"]
    assert len(binary) == 18
    assert binary[0]["name"] == "stages.0.0.unit1.conv"
    assert all(layer["capacity"] > 1 for layer in binary)
    assert all(layer["capacity"] is None for layer in value["layers"] if layer["kind"] != "binary_conv")


def test_a_fraction_of_an_operation_is_not_lost() -> None:
    t = count_ops(BinaryLinear(3, 5), (3,)).totals
    assert (t["bops"], t["ops"]) == (15, 15 / 64)


def test_table_shows_layers_and_totals() -> None:
    text = report_of("resnet20_cifar_irnet", CIFAR).to_table()
    for piece in ("stages.2.2.unit2.conv", "binary_conv", "other elementwise", "40,108,032", "OPs+", "for an input of 1x3x32x32"):
        assert piece in text
    assert all(line == line.rstrip() for line in text.splitlines())
