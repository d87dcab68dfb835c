"""The arithmetic of expanding and shrinking: every plan that resolves is consistent, every one that cannot says what could."""

from __future__ import annotations

import re
from fractions import Fraction

from esbnn_core.errors import ESError, UserError
from esbnn_core.es import ESPlan, ExpandShrink, Join, Layer, Slot, representation_capacity, resolve
from esbnn_core.nn import BinaryConv2d, BinaryUnit, ReplicatedBatchNorm2d
from esbnn_core.training import Progress, begin_step

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import HEADS, MANY, METHODS, TINY, Net, chains, residual_nets

nets = st.one_of(chains(), residual_nets())


def chain(*settings: tuple[int, int], c: int = 8) -> list[Layer]:
    return [Layer(f"l{i}", f"e{i}", f"e{i + 1}", c, c, 3, stage=i // 2) for i in range(len(settings))]


@MANY
@given(nets)
def test_what_a_layer_writes_is_what_its_readers_read(net: Net) -> None:
    wiring = net.wire()
    for layer in net.layers:
        slot = wiring[layer.name]
        c, m = wiring.edge(layer.writes)
        assert slot.channels_out(layer.c_out) == slot.copies * slot.filters(layer.c_out) == wiring.channels(layer.writes) == c * m
        assert slot.channels_in(layer.c_in) == wiring.channels(layer.reads)


@MANY
@given(nets)
def test_every_binary_layer_reads_tau_times_g_blocks(net: Net) -> None:
    wiring, chosen = net.wire(), net.plan.settings_for(net.layers)
    for layer in net.binary():
        slot = wiring[layer.name]
        assert slot.setting == chosen[layer.name]
        assert slot.m_in == slot.setting.e == wiring.edge(layer.reads)[1]
        assert slot.copies == slot.tau * slot.m_out


@MANY
@given(nets)
def test_expanding_leaves_multiplications_and_weights_as_many_as_they_were(net: Net) -> None:
    wiring = net.wire()
    for layer in net.layers:
        slot = wiring[layer.name]
        weights = slot.filters(layer.c_out) * (slot.channels_in(layer.c_in) // slot.groups) * layer.kernel**2
        assert weights == layer.c_in * layer.c_out * layer.kernel**2  # one use a position each, so multiplications too
        assert slot.filters(layer.c_out) % slot.groups == 0


@MANY
@given(residual_nets())
def test_the_blocks_of_a_sum_and_of_what_is_added_divide_each_other(net: Net) -> None:
    wiring = net.wire()
    for join in net.joins:
        own, tap = (wiring.edge(edge)[1] for edge in join.inputs)
        total = wiring.edge(join.output)[1]
        assert own == total
        assert 1 in ((tap / total).denominator, (total / tap).denominator)


@MANY
@given(nets)
def test_the_head_gives_the_widths_of_table_9(net: Net) -> None:
    last = net.binary()[-1]
    edge = net.joins[-1].output if net.joins else last.writes
    setting = net.plan.settings[-1]
    want = {"full": last.c_out * setting.e, "n": last.c_out, "one": last.c_out // setting.tau}
    assert net.wire().channels(edge) == want[net.head]


@MANY
@given(chains())
def test_a_chain_makes_tau_times_the_next_layers_blocks_of_copies(net: Net) -> None:
    wiring, plan = net.wire(), net.plan.settings
    for i in range(len(plan) - 1):
        assert wiring[f"l{i}"].copies == plan[i].tau * plan[i + 1].tau * plan[i + 1].groups
    assert wiring["stem"].copies == plan[0].e


@TINY
@given(chains(widths=(4, 6, 8)), st.sampled_from(METHODS))
def test_a_chain_built_from_its_slots_runs_forward_and_backward(net: Net, method: str) -> None:
    wiring = net.wire()
    stem = wiring["stem"]
    units = [ReplicatedBatchNorm2d(net.layers[0].c_out, stem.copies)]
    for layer in net.binary():
        slot = wiring[layer.name]
        conv = BinaryConv2d(
            slot.channels_in(layer.c_in),
            slot.filters(layer.c_out),
            layer.kernel,
            padding=layer.kernel // 2,
            groups=slot.groups,
            method=method,
        )
        units.append(BinaryUnit(conv, "n", copies=slot.copies))
        assert conv.weight.numel() == layer.c_in * layer.c_out * layer.kernel**2
        assert conv.capacity == representation_capacity(layer.c_in, layer.kernel, slot.tau)
    model = torch.nn.Sequential(*units)
    begin_step(model, Progress.at(0, 1, 4))
    y = model(torch.randn(2, net.layers[0].c_out, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert y.shape == (2, wiring.channels(net.binary()[-1].writes), 4, 4)
    y.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# -- what cannot be ----------------------------------------------------------------------------------------------------------
@MANY
@given(st.integers(1, 24), st.integers(1, 9), st.integers(1, 9))
def test_an_impossible_setting_names_layer_widths_setting_and_the_largest_possible_ones(c_out: int, tau: int, groups: int) -> None:
    assume(c_out % (tau * groups) != 0)
    layer = Layer("stage2.conv1", "x", "y", 5, c_out, 3)
    with pytest.raises(ESError) as caught:
        resolve([layer], plan=ESPlan.uniform(tau, groups))
    text = str(caught.value)
    assert all(part in text for part in ("'stage2.conv1'", f"5 -> {c_out} channels", f"tau={tau}, groups={groups}"))
    offered = [(int(t), int(g)) for t, g in re.findall(r"tau=(\d+) with groups=(\d+)", text)]
    assert offered
    for t, g in offered:
        assert resolve([layer], plan=ESPlan.uniform(t, g))["stage2.conv1"].filters(c_out) == c_out // t
        # None with these groups, or with this tau, is larger.
        assert all(c_out % (bigger * g) or bigger <= t for bigger in range(1, c_out + 1))
        assert all(c_out % (t * bigger) or bigger <= g for bigger in range(1, c_out + 1))
    if c_out % groups == 0:
        assert [g for _, g in offered] == [groups]


@pytest.mark.parametrize(("tau", "groups"), [(0, 1), (1, 0), (-2, 1), (2.0, 1), (True, 1), (1, "2")])
def test_settings_are_integers_of_at_least_one(tau: object, groups: object) -> None:
    with pytest.raises(ESError, match="integer of at least 1"):
        ExpandShrink(tau, groups)  # type: ignore[arg-type]


def test_readers_of_one_tensor_must_want_the_same_blocks() -> None:
    layers = [Layer("left", "x", "a", 8, 8), Layer("right", "x", "b", 8, 8)]
    with pytest.raises(ESError, match=r"'left' and 'right' read the same tensor of 8 channels.*= 2 and 4"):
        resolve(layers, plan=ESPlan.layers([(2, 1), (2, 2)]))
    wiring = resolve(layers, plan=ESPlan.layers([(4, 1), (2, 2)]))  # equal products are enough
    assert wiring.channels("x") == 32


def test_a_sum_of_tensors_whose_blocks_do_not_divide_names_the_reader() -> None:
    layers = [Layer("u0", "x0", "y0", 12, 12, 3), Layer("u1", "x1", "y1", 12, 12, 3)]
    joins = [Join(("y0", "x0"), "x1"), Join(("y1", "x1"), "x2")]
    with pytest.raises(ESError, match=r"read by layer 'u0' has 2 blocks of 12 channels.*one of 3; neither divides"):
        resolve(layers, joins, ESPlan.layers([(2, 1), (3, 1)]))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_list_of_settings_must_have_one_a_layer_or_one_a_stage(n: int) -> None:
    layers = chain(*[(1, 1)] * 4)
    with pytest.raises(ESError, match=rf"plan has {n} settings for a network of 4 binary layers in 2 stages"):
        resolve(layers, plan=ESPlan.layers([(1, 1)] * n))
    with pytest.raises(ESError, match="4 binary layers in 2 stages"):
        resolve(layers, plan=ESPlan.stages([(1, 1)] * 4))


def test_plans_of_numbers_and_lists() -> None:
    layers = chain(*[(1, 1)] * 4)
    assert ESPlan.of(2, 1) == ESPlan.uniform(2, 1)
    per_layer = ESPlan.of([1, 2, 4, 8], 1).settings_for(layers)
    assert [per_layer[f"l{i}"].tau for i in range(4)] == [1, 2, 4, 8]
    per_stage = ESPlan.of(2, [1, 4]).settings_for(layers)
    assert [(s.tau, s.groups) for s in per_stage.values()] == [(2, 1), (2, 1), (2, 4), (2, 4)]
    assert ESPlan.stages([(1, 1), (2, 2)]).settings_for(layers)["l3"] == ExpandShrink(2, 2)
    with pytest.raises(ESError, match="2 entries and groups has 3"):
        ESPlan.of([1, 2], [1, 1, 1])
    with pytest.raises(ESError, match="at least one setting"):
        ESPlan.layers([])
    with pytest.raises(ESError, match=r"unknown plan 'table9'.*table8"):
        ESPlan.named("table9")


def test_a_head_that_does_not_exist_is_named() -> None:
    with pytest.raises(ESError, match=r"unknown head 'two'; known: full .*, n, one"):
        resolve(chain((1, 1)), head="two")  # type: ignore[arg-type]


def test_a_layer_that_takes_its_setting_from_nowhere_is_named() -> None:
    with pytest.raises(ESError, match=r"'s' takes its setting from 'u9'"):
        resolve([Layer("u0", "x", "y", 4, 4), Layer("s", "x", "z", 4, 4, real=True, like="u9")])


def test_a_real_layer_cannot_read_blocks() -> None:
    layers = [Layer("binary", "x", "y", 4, 4), Layer("real", "x", "z", 4, 4, real=True)]
    with pytest.raises(ESError, match="'real' is real and not expanded, but reads 2 blocks"):
        resolve(layers, plan=ESPlan.uniform(2))


def test_impossible_settings_are_the_users_mistake() -> None:
    assert issubclass(ESError, UserError)
    assert ESError.exit_code == 2


# -- the published plan ------------------------------------------------------------------------------------------------------
def resnet18() -> tuple[list[Layer], list[Join]]:
    layers, joins, c = [Layer("stem", "image", "x0", 3, 64, 7, real=True)], [], 64
    for i in range(16):
        wide = 64 * 2 ** (i // 4)
        layers.append(Layer(f"u{i}", f"x{i}", f"y{i}", c, wide, 3, stage=i // 4))
        tap = f"x{i}"
        if wide != c:
            tap = f"s{i}"
            layers.append(Layer(tap, f"x{i}", tap, c, wide, 1, real=True, like=f"u{i}"))
        joins.append(Join((f"y{i}", tap), f"x{i + 1}"))
        c = wide
    return layers, joins


def test_table_8s_plan_resolves_for_resnet18_with_4096_channels_for_the_classifier() -> None:
    plan = ESPlan.named("table8")
    assert [s.tau for s in plan.settings] == [2, 2, 2, 2, 4, 4, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4]
    assert [s.groups for s in plan.settings] == [1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2]
    wiring = resolve(*resnet18(), plan)
    assert {head: resolve(*resnet18(), plan, head).channels("x16") for head in HEADS} == {"full": 4096, "n": 512, "one": 128}
    assert wiring["stem"].copies == 2
    assert wiring["u3"] == Slot(tau=2, groups=2, m_in=4, m_out=Fraction(4), copies=8)
    assert wiring["s4"] == Slot(tau=4, groups=1, m_in=4, m_out=Fraction(4), copies=16)


def test_no_plan_is_the_plain_network() -> None:
    layers, joins = resnet18()
    wiring = resolve(layers, joins)
    assert all(wiring[name] == Slot() for name in wiring)
    assert all(wiring.channels(layer.writes) == layer.c_out for layer in layers)
    assert ESPlan.named("none") == ESPlan.none()


def test_the_capacity_is_the_number_of_values_that_a_sum_of_signs_can_take() -> None:
    assert representation_capacity(64, 3) == 577
    assert representation_capacity(64, 3, tau=2) == 1153
    assert representation_capacity(512, 1) == 513
