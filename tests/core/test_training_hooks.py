"""What a trainer calls: progress, the beginning of a step, the watch on the optimizer, averages, flips."""

from __future__ import annotations

import copy
import warnings
from typing import Literal

from esbnn_core.nn import BinaryConv2d, BinaryUnit
from esbnn_core.training import Progress, begin_step, binary_layers, ema_refresh, flip_rate, watch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import MANY, METHODS, PROJECTING
from torch import Tensor, nn


def network(method: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        BinaryUnit(BinaryConv2d(6, 4, 3, padding=1, method=method), "n", copies=2),
        BinaryUnit(BinaryConv2d(8, 4, 3, padding=1, groups=2, method=method), "n"),
    )


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


# -- progress ------------------------------------------------------------------------------------------------------------------
@MANY
@given(st.integers(1, 50), st.integers(1, 30), st.data())
def test_progress_is_a_function_of_the_step(per_epoch: int, epochs: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, per_epoch * epochs - 1))
    at = Progress.at(step, per_epoch, epochs)
    assert at.epoch * per_epoch + at.step_in_epoch == step
    assert at.first_of_epoch == (step % per_epoch == 0)
    assert at.p == (step // per_epoch) / epochs
    assert at.p <= 1 - 1 / epochs + 1e-12
    smooth = Progress.at(step, per_epoch, epochs, per="step")
    assert smooth.p == step / (per_epoch * epochs)
    assert smooth == Progress.at(step, per_epoch, epochs, per="step")
    assert at.p <= smooth.p < at.p + 1 / epochs + 1e-12


def test_progress_of_no_training_is_zero() -> None:
    assert Progress(0, 0, 0, 0, 0).p == 0.0


@pytest.mark.parametrize(("per", "at"), [("epoch", (1 / 8, 1 / 8, 2 / 8, 2 / 8)), ("step", (2 / 16, 3 / 16, 4 / 16, 5 / 16))])
def test_schedules_move_with_epochs_or_steps(per: Literal["epoch", "step"], at: tuple[float, ...]) -> None:
    model = network("irnet")
    seen = []
    for step in range(2, 6):
        begin_step(model, Progress.at(step, 2, 8, per))
        seen.append(model[1].conv.scalars["t"])
    assert seen == pytest.approx([10 ** (-3 + 4 * p) for p in at])


# -- begin_step ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_in_one_step_changes_nothing(method: str) -> None:
    model = network(method)
    first = Progress.at(0, 2, 4)
    begin_step(model, first)
    once = state(model)
    begin_step(model, first)
    assert same(state(model), once)
    model(images())  # the first micro-batch
    after = state(model)
    begin_step(model, first)
    assert same(state(model), after)


@pytest.mark.parametrize("method", PROJECTING)
def test_weights_are_projected_once_a_step(method: str) -> None:
    model = network(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    watch(optimizer, model)
    for step in range(3):
        before = state(model)
        begin_step(model, Progress.at(step, 1, 4))
        assert not same(before, state(model))
        projected = state(model)
        for micro in range(2):
            begin_step(model, Progress.at(step, 1, 4))
            model(images(micro)).square().sum().backward()
        assert torch.equal(model[1].conv.weight, projected["1.conv.weight"])
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", PROJECTING)
def test_a_skipped_step_does_not_project_again(method: str) -> None:
    """A gradient scaler that finds an infinite gradient leaves the weights where they are."""
    model = network(method)
    begin_step(model, Progress.at(0, 1, 4))
    model(images())
    projected = state(model)
    begin_step(model, Progress.at(1, 1, 4))
    assert torch.equal(model[1].conv.weight, projected["1.conv.weight"])


@pytest.mark.parametrize("method", PROJECTING)
def test_loading_a_checkpoint_makes_a_projection_due(method: str) -> None:
    model = network(method)
    begin_step(model, Progress.at(0, 1, 4))
    model(images())
    model.load_state_dict(state(model))
    with pytest.raises(RuntimeError, match="begin_step"):
        model(images())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", PROJECTING)
def test_a_forgotten_begin_step_is_noticed_in_the_second_step_too(method: str, fused: bool) -> None:
    model = network(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    watch(optimizer, model)
    begin_step(model, Progress.at(0, 1, 4))
    model(images()).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="begin_step"):
        model(images())


def test_any_module_can_take_part() -> None:
    class Listener(nn.Module):
        heard: Progress | None = None

        def begin_step(self, progress: Progress) -> None:
            assert not torch.is_grad_enabled()
            self.heard = progress

    model = nn.Sequential(nn.Sequential(Listener()))
    at = Progress.at(3, 2, 4)
    begin_step(model, at)
    assert model[0][0].heard == at


def test_real_weights_are_not_projected() -> None:
    model = network("xnor")
    for _, layer in binary_layers(model):
        layer.weight_mode = "real"
    before = state(model)
    begin_step(model, Progress.at(0, 1, 4))
    model(images())
    assert torch.equal(model[1].conv.weight, before["1.conv.weight"])


def test_watch_can_be_taken_back() -> None:
    model = network("xnor")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = watch(optimizer, model)
    handle.remove()
    begin_step(model, Progress.at(0, 1, 4))
    model(images()).sum().backward()
    optimizer.step()
    model(images())  # nobody told the layers


def test_binary_layers_come_with_their_names_in_order() -> None:
    model = network("irnet")
    assert [name for name, _ in binary_layers(model)] == ["1.conv", "2.conv"]
    assert [layer.in_channels for _, layer in binary_layers(model)] == [6, 8]


@pytest.mark.parametrize("method", METHODS)
def test_training_can_be_taken_up_from_a_state_dict(method: str) -> None:
    """Two steps at once, or one, a fresh network with the first one's state, and the other."""

    def step(model: nn.Module, number: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
        watch(optimizer, model)
        begin_step(model, Progress.at(number, 1, 4))
        model(images(number)).square().sum().backward()
        optimizer.step()

    whole = network(method)
    step(whole, 0), whole.zero_grad()
    resumed = network(method, seed=7)
    resumed.load_state_dict(whole.state_dict())
    step(whole, 1), step(resumed, 1)
    assert same(whole.state_dict(), resumed.state_dict())
    whole.eval(), resumed.eval()
    with torch.no_grad():
        assert torch.equal(whole(images()), resumed(images()))


# -- what single methods do -----------------------------------------------------------------------------------------------------
def test_siman_keeps_the_code_of_the_last_training_forward_for_inference() -> None:
    model = network("siman")
    layer = model[1].conv
    initial = layer.B.clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape))  # an optimizer's step
    begin_step(model, Progress.at(0, 1, 4))
    assert torch.equal(layer.B, initial)  # made in the forward, as in the official code
    model(images())
    trained = layer.B.clone()
    wb = layer.binary_weight() > 0
    assert torch.equal(trained, wb)
    assert not torch.equal(trained, initial)
    model.eval()
    layer.weight.data.mul_(torch.rand_like(layer.weight))
    with torch.no_grad():
        model(images())
    assert torch.equal(layer.B, trained)
    layer.refresh()
    assert torch.equal(layer.B, layer.method.weight_state(layer.weight.detach())["B"])
    assert not torch.equal(layer.B, trained)
    assert layer.B.dtype == torch.bool


def test_rbnn_rotates_at_the_first_step_of_an_epoch_only() -> None:
    model = network("rbnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    watch(optimizer, model)
    layer = model[1].conv
    changed = []
    for step in range(6):
        before = layer.R1.clone()
        begin_step(model, Progress.at(step, 3, 2))
        changed.append(not torch.equal(layer.R1, before))
        after = layer.R1.clone()
        model(images(step)).square().sum().backward()
        optimizer.step()
        assert torch.equal(layer.R1, after)
    assert changed == [True, False, False, True, False, False]


def test_rbnn_rotates_every_few_epochs_when_asked() -> None:
    from esbnn_core import methods

    layer = BinaryConv2d(4, 4, 3, method=methods.get("rbnn", rotation_update=2))
    changed = []
    for epoch in range(4):
        before = layer.R1.clone()
        begin_step(layer, Progress.at(epoch, 1, 4))
        changed.append(not torch.equal(layer.R1, before))
        layer.weights_moved()
    assert changed == [True, False, True, False]


# -- averages and flips ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_mending_an_average_leaves_the_averaged_weights_alone(method: str) -> None:
    source = network(method)
    average = copy.deepcopy(source)
    begin_step(source, Progress.at(0, 1, 4))
    source(images())
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), source.parameters(), strict=True):
            mine.lerp_(theirs, 0.5)
    before = {key: p.clone() for key, p in average.named_parameters()}
    ema_refresh(average, source)
    assert all(torch.equal(p, before[key]) for key, p in average.named_parameters())
    if method == "rbnn":
        assert torch.equal(average[1].conv.R2, source[1].conv.R2)


def test_the_flip_rate_is_the_share_of_bits_that_changed() -> None:
    model = network("bnn")
    rate, bits = flip_rate(model, {})
    assert rate == 0.0
    assert set(bits) == {"1.conv", "2.conv"}
    with torch.no_grad():
        model[1].conv.weight[0].neg_()
    total = sum(layer.weight.numel() for _, layer in binary_layers(model))
    rate, bits = flip_rate(model, bits)
    assert rate == pytest.approx(6 * 9 / total)
    assert flip_rate(model, bits)[0] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_the_flip_rate_needs_no_begin_step_and_changes_nothing(method: str) -> None:
    model = network(method)
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate, bits = flip_rate(model, {})
        again, _ = flip_rate(model, bits)
    assert rate == again == 0.0
    assert same(state(model), before)


def test_a_network_without_binary_layers_flips_nothing() -> None:
    assert flip_rate(nn.Linear(2, 2), {}) == (0.0, {})
