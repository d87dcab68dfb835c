"""A layer's cached form is never stale: steps, loading, averages, copies, dtypes, writes behind its back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from esbnn_core.nn import BinaryUnit
from esbnn_core.training import Progress, begin_step, ema_refresh, watch

import pytest
import torch
from builders import close, conv, images, infer, shaken
from strategies import METHODS
from timm.utils import ModelEmaV3
from torch import nn

FIRST = Progress.at(0, 2, 4)


def train_step(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[nn.Module], None]:
    def step(module: nn.Module) -> None:
        optimizer = make(module.parameters(), lr=0.3, **options)
        handle = watch(optimizer, module)
        # Evaluation mode throughout: only the hook can tell that a fused step took place.
        module(images().requires_grad_()).square().sum().backward()
        infer(module, images())
        optimizer.step()
        handle.remove()

    return step


def load(assign: bool) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        state = {k: -v.clone() if v.is_floating_point() and v.dim() != 2 else v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict({k: v.abs() if "running_var" in k else v for k, v in state.items()}, assign=assign)

    return change


def write_through_data(module: nn.Module) -> None:
    layer = module.conv if isinstance(module, BinaryUnit) else module
    layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(8)))
    layer.refresh()


def write_through_data_and_tell(module: nn.Module) -> None:
    layer = module.conv if isinstance(module, BinaryUnit) else module
    for parameter in layer.parameters():
        parameter.data.mul_(-1.5)
    layer.weights_moved()


def write_in_place(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-1.5)


def replace_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * -1.5


def train_a_little(module: nn.Module) -> None:
    module.train()
    begin_step(module, FIRST)
    module(images())
    for parameter in module.parameters():
        parameter.data.mul_(-1.5)
    module.eval()


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "sgd": train_step(torch.optim.SGD),
    "fused sgd": train_step(torch.optim.SGD, fused=True),
    "foreach adam": train_step(torch.optim.Adam, foreach=True),
    "fused adam": train_step(torch.optim.Adam, fused=True),
    "load_state_dict": load(assign=False),
    "load_state_dict, assign": load(assign=True),
    "data written and refreshed": write_through_data,
    "data written and told": write_through_data_and_tell,
    "written in place": write_in_place,
    "data replaced": replace_data,
    "training mode and back": train_a_little,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["adabin", "recu", "siman", "xnor"])
@pytest.mark.parametrize("unit", [False, True], ids=["layer", "unit"])
def test_what_is_kept_is_dropped_when_weights_move(method: str, change: str, unit: bool) -> None:
    layer = conv(method)
    module = shaken(BinaryUnit(layer, "n", copies=2)).eval() if unit else layer.eval()
    before = infer(module, images())
    assert torch.equal(infer(module, images()), before)
    CHANGES[change](module)
    after = infer(module, images())
    assert torch.equal(after, infer(copy.deepcopy(module), images()))  # a copy keeps nothing
    assert not torch.equal(after, before)


def test_a_fused_step_needs_the_hook() -> None:
    """Guards the tests above: such a step leaves no trace in versions or addresses."""
    layer = conv("recu").eval()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, fused=True)
    layer(images().requires_grad_()).sum().backward()
    kept = infer(layer, images())
    optimizer.step()
    assert torch.equal(infer(layer, images()), kept)
    layer.weights_moved()
    assert not torch.equal(infer(layer, images()), kept)


@pytest.mark.parametrize("method", METHODS)
def test_another_dtype_makes_another_form(method: str) -> None:
    layer = conv(method).eval()
    single = infer(layer, images())
    double = infer(layer.to(torch.float64), images().double())
    assert double.dtype == torch.float64
    assert close(single.double(), double)
    assert torch.equal(infer(layer.float(), images()), single)


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_copy_does_not_change_its_original(method: str) -> None:
    layer = conv(method).eval()
    before = infer(layer, images())
    twin = copy.deepcopy(layer)
    assert torch.equal(infer(twin, images()), before)
    with torch.no_grad():
        twin.weight.copy_(torch.randn(twin.weight.shape, generator=torch.Generator().manual_seed(9)))
    twin.refresh()
    assert not torch.equal(infer(twin, images()), before)
    assert torch.equal(infer(layer, images()), before)


@pytest.mark.parametrize("method", METHODS)
def test_an_average_of_weights_is_evaluated_as_itself(method: str) -> None:
    model = nn.Sequential(conv(method), nn.BatchNorm2d(4))
    average = ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    watch(optimizer, model)
    seen = []
    for step in range(3):
        begin_step(model, Progress.at(step, 3, 4))
        model(images(seed=step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        ema_refresh(average.module, model)
        average.module.eval()
        seen.append(infer(average.module, images()))
        assert torch.equal(seen[-1], infer(copy.deepcopy(average.module), images()))
    assert not torch.equal(seen[0], seen[2])
    mine, theirs = average.module[0], model[0]
    for name in mine.method.copied:
        assert torch.equal(mine.state[name], theirs.state[name])
    if method == "siman":
        fresh = mine.method.weight_state(mine.weight.detach())["B"]
        assert torch.equal(mine.state["B"], fresh)


def test_models_made_or_run_in_inference_mode_work() -> None:
    with torch.inference_mode():
        made = conv("adabin").eval()
        inside = made(images())
    layer = conv("adabin").eval()
    with torch.inference_mode():
        assert torch.equal(layer(images()), inside)
    scale = torch.ones(4, 1, 1, requires_grad=True)
    (layer.requires_grad_(False)(images()) * scale).sum().backward()
    assert torch.allclose(scale.grad.flatten(), inside.sum((0, 2, 3)), rtol=1e-4)  # type: ignore[union-attr]
