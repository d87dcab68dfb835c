"""The one unit: every tail, copies, norms in front and behind, gradients in evaluation, refusals."""

from __future__ import annotations

import copy
from typing import Any

from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.functional import adapt_blocks
from esbnn_core.nn import TAILS, BinaryConv2d, BinaryLinear, BinaryUnit, Maxout, RPReLU, ScaleMap, Shortcut, make_activation
from esbnn_core.training import Progress, begin_step

import pytest
import torch
from strategies import METHODS
from torch import Tensor, nn

FIRST = Progress.at(0, 1, 4)
C_IN, FILTERS, SIZE = 6, 4, 5


def maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape or (3, C_IN, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and not key.endswith(("conv.weight", "R1", "R2")):
                tensor.add_(0.4 * torch.rand(tensor.shape, generator=generator))
    return module


def unit(tail: str, method: Any = "irnet", copies: int = 2, act: str = "prelu", **changes: Any) -> BinaryUnit:
    torch.manual_seed(0)
    conv = BinaryConv2d(C_IN, FILTERS, 3, padding=1, method=method)
    wide = FILTERS * copies
    made = BinaryUnit(
        conv,
        tail,
        copies=copies,
        act=make_activation(act, wide) if "a" in tail else None,
        mul=ScaleMap(wide, (SIZE, SIZE)) if "x" in tail else None,
        **changes,
    )
    shaken(made)
    begin_step(made, FIRST)
    return made


def residual(copies: int = 2) -> Tensor:
    return maps(3, FILTERS * copies, SIZE, SIZE, seed=2)


def by_hand(made: BinaryUnit, x: Tensor, tap: Tensor, norm: nn.BatchNorm2d | None) -> Tensor:
    """The unit with its copies made at once, by repeating, and a batch norm of all of them."""
    y = made.conv(x if made.pre is None else made.pre(x)).repeat(1, made.copies, 1, 1)
    for stage in made.tail:
        if stage == "n":
            assert norm is not None
            y = norm(y)
        elif stage == "a":
            y = made.act(y)  # type: ignore[misc]
        elif stage == "x":
            y = made.mul(y)  # type: ignore[misc]
        else:
            y = y + tap
    return y


def wide_norm(made: BinaryUnit) -> nn.BatchNorm2d | None:
    if "n" not in made.tail:
        return None
    norm = nn.BatchNorm2d(FILTERS * made.copies)
    norm.load_state_dict(made.norm.state_dict())
    return norm.train(made.training)


@pytest.mark.parametrize("act", ["prelu", "relu"])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("tail", TAILS)
def test_copies_of_a_unit_are_a_repeat_before_its_tail(tail: str, copies: int, act: str) -> None:
    made = unit(tail, copies=copies, act=act)
    tap = residual(copies)
    for train in (True, False):
        made.train(train).zero_grad()
        twin, norm = copy.deepcopy(made), wide_norm(made)
        x, x_twin = maps().requires_grad_(), maps().requires_grad_()
        y = made(x, tap) if "+" in tail else made(x)
        want = by_hand(twin, x_twin, tap, norm)
        assert torch.allclose(y, want, rtol=1e-4, atol=1e-5)
        g = maps(*y.shape, seed=3)
        y.backward(g)
        want.backward(g)
        assert torch.allclose(x.grad, x_twin.grad, rtol=1e-3, atol=1e-3 * float(x_twin.grad.abs().max()))  # type: ignore[union-attr, arg-type]
        theirs = dict(twin.named_parameters())
        if norm is not None:
            theirs |= {f"norm.{key}": p for key, p in norm.named_parameters()}
            assert torch.allclose(made.norm.running_var, norm.running_var, rtol=1e-4)
        for key, p in made.named_parameters():
            assert p.grad is not None
            other = theirs[key].grad
            assert other is not None
            assert torch.allclose(p.grad, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-5), key


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tail", TAILS)
def test_evaluation_with_and_without_gradients_agrees(tail: str, method: str) -> None:
    made = unit(tail, method).eval()
    tap = (residual(),) if "+" in tail else ()
    with torch.no_grad():
        folded = made(maps(), *tap)
    expressed = made(maps().requires_grad_(), *tap).detach()
    assert folded.shape == (3, made.out_channels, SIZE, SIZE)
    assert torch.allclose(folded, expressed, rtol=1e-4, atol=1e-5 * float(expressed.abs().max()))


def test_the_shortcut_taps_the_input_or_what_the_call_gives() -> None:
    x, other = maps(), maps(3, FILTERS, SIZE, SIZE)
    torch.manual_seed(0)
    made = BinaryUnit(BinaryConv2d(FILTERS, FILTERS, 3, padding=1), "+", copies=2, shortcut=Shortcut("identity", FILTERS, FILTERS, m_out=2))
    begin_step(made, FIRST)
    bare = made.conv(other).repeat(1, 2, 1, 1)
    assert torch.allclose(made(other), bare + adapt_blocks(other, 8))
    assert torch.allclose(made(other, 3 * other), bare + adapt_blocks(3 * other, 8))
    assert torch.allclose(unit("+")(x, residual()), unit("")(x) + residual())


def test_a_block_of_units_may_hold_a_unit_in_its_shortcut() -> None:
    inner = BinaryUnit(BinaryConv2d(C_IN, FILTERS, 1), "n", copies=2)
    made = unit("n+a", shortcut=inner)
    y = made.eval()(maps())
    assert y.shape == (3, 8, SIZE, SIZE)


# -- norms ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "shift"), [*((m, False) for m in METHODS), ("bnn", True), ("irnet", True), ("recu", True)])
def test_a_norm_in_front_becomes_thresholds_where_it_can(method: str, shift: bool) -> None:
    torch.manual_seed(0)
    conv = BinaryConv2d(C_IN, FILTERS, 3, padding=1, method=method, shift=shift or None)
    made = shaken(BinaryUnit(conv, "n", copies=2, pre=nn.BatchNorm2d(C_IN)))
    with torch.no_grad():
        made.pre.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0, 0.0, 0.0]))
        made.pre.bias.copy_(torch.tensor([0.1, 0.3, -0.2, 0.6, 0.7, -0.7]))
    begin_step(made, FIRST)
    made.eval()
    with torch.no_grad():
        folded = made(maps())
    assert torch.allclose(folded, made(maps().requires_grad_()), rtol=1e-4, atol=1e-4)
    if method in ("rbnn", "siman"):
        with pytest.raises(UserError, match=r"cannot be folded into a threshold of the kind 'sample_mean'"):
            made.canonical()
    else:
        form = made.canonical()
        assert form.threshold is not None
        assert form.flip is not None
        assert form.threshold.shape == (1, C_IN)
        assert form.flip.tolist() == [False, True, False, True, False, False]
        assert torch.isinf(form.threshold[0, 4:]).all()


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_a_value_that_a_norm_in_front_makes_zero_is_positive(weight: float) -> None:
    made = BinaryUnit(BinaryConv2d(1, 1, 1, method="xnor"), "", pre=nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        made.pre.running_mean.fill_(0.5)
        made.pre.weight.fill_(weight)
        middle = torch.tensor(0.5)
        x = torch.stack([torch.nextafter(middle, -torch.ones(())), middle, torch.nextafter(middle, torch.ones(()))]).view(3, 1, 1, 1)
        bits = made.evaluator(x).bits(x)
        assert bits.flatten().tolist() == ([-1, 1, 1] if weight > 0 else [1, 1, -1])
        assert torch.equal(bits, made.conv.sign(made.pre(x), {}))


def test_a_negative_scale_of_adabin_reverses_the_bits_in_front_of_a_norm_too() -> None:
    torch.manual_seed(0)
    made = shaken(BinaryUnit(BinaryConv2d(C_IN, FILTERS, 3, padding=1, method="adabin"), "n", pre=nn.BatchNorm2d(C_IN)))
    with torch.no_grad():
        made.conv.sign.alpha_a.fill_(-0.8)
        made.pre.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0, 0.3, -0.3]))
    begin_step(made, FIRST)
    made.eval()
    with torch.no_grad():
        folded = made(maps())
    assert made.canonical().flip.tolist() == [True, False] * 3
    assert torch.allclose(folded, made(maps().requires_grad_()), rtol=1e-4, atol=1e-4)


def test_a_norm_without_running_statistics_stays_a_step_of_its_own() -> None:
    made = BinaryUnit(BinaryConv2d(C_IN, FILTERS, 1, method="xnor"), "", pre=nn.BatchNorm2d(C_IN, track_running_stats=False)).eval()
    with torch.no_grad():
        y = made(maps())
    assert torch.allclose(y, made(maps().requires_grad_()), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="must track running statistics"):
        made.canonical()


def test_the_first_norm_is_part_of_the_form() -> None:
    made = unit("n+a", "recu").eval()
    form = made.canonical()
    scale = made.norm.weight.double() / (made.norm.running_var.double() + made.norm.eps).sqrt()
    assert form.copies == 2
    assert torch.allclose(form.mul, scale)
    assert torch.allclose(form.add, made.norm.bias.double() - made.norm.running_mean.double() * scale)
    later = unit("an+").canonical()
    assert (later.copies, later.mul, later.add) == (1, None, None)


def test_running_statistics_can_be_estimated_again_while_the_rest_is_in_evaluation() -> None:
    made = unit("n").eval()
    made.norm.train()
    before = made.norm.running_mean.clone()
    with torch.no_grad():
        y = made(maps())
    assert not torch.equal(made.norm.running_mean, before)
    assert torch.allclose(y.mean((0, 2, 3)), made.norm.bias, atol=1e-4)


def test_norms_can_stay_in_evaluation_during_training() -> None:
    made = unit("n")
    made.norm.eval()
    before = made.norm.running_mean.clone()
    made(maps()).sum().backward()
    assert torch.equal(made.norm.running_mean, before)
    assert made.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("wanted_of", ["norm.weight", "norm.bias", "conv.alpha", "conv.weight", "act.weight"])
def test_evaluation_gives_gradients_to_whoever_wants_them(wanted_of: str) -> None:
    made = unit("n+a", "recu").eval().requires_grad_(False)
    assert not made(maps(), residual()).requires_grad
    parameter = dict(made.named_parameters())[wanted_of].requires_grad_()
    made(maps(), residual()).square().sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("told", ["layer", "unit"])
def test_a_unit_hears_that_the_weights_of_its_layer_moved(told: str) -> None:
    made = unit("n", "recu").eval()
    with torch.no_grad():
        before = made(maps())
        made.conv.alpha.data.mul_(2)
        (made.conv if told == "layer" else made).weights_moved()
        after = made(maps())
        want = copy.deepcopy(made)(maps())
    assert torch.equal(after, want)
    assert not torch.equal(after, before)


def test_a_unit_hears_of_projections_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    made = BinaryUnit(BinaryConv2d(C_IN, FILTERS, 3, method=methods.get("bnn", clip_weights=True)), "n").eval()
    with torch.no_grad():
        made(maps())
        made.conv.weight.data.neg_()
        begin_step(made, FIRST)
        assert torch.equal(made(maps()), copy.deepcopy(made)(maps()))


# -- activations -----------------------------------------------------------------------------------------------------------------
def test_activations_are_what_their_names_say() -> None:
    x = maps(2, 3, 4, 4)
    c = torch.tensor([0.5, 1.0, 2.0])
    shaped = c.view(3, 1, 1)
    rprelu, maxout = RPReLU(3), Maxout(3)
    with torch.no_grad():
        rprelu.shift_in.copy_(c), rprelu.shift_out.copy_(-c), rprelu.weight.copy_(0.1 * c)
        maxout.pos_scale.copy_(c), maxout.neg_scale.copy_(0.1 * c)
    moved = x + shaped
    assert torch.allclose(rprelu(x), torch.where(moved >= 0, moved, 0.1 * shaped * moved) - shaped)
    assert torch.allclose(maxout(x), torch.where(x >= 0, shaped * x, 0.1 * shaped * x))
    assert torch.equal(make_activation("hardtanh", 3)(x), x.clamp(-1, 1))
    assert torch.equal(make_activation("none", 3)(x), x)
    assert make_activation("prelu", 3).weight.shape == (3,)
    with pytest.raises(UserError, match=r"unknown activation 'gelu'; known: hardtanh, relu, prelu, rprelu, maxout, none"):
        make_activation("gelu", 3)


@pytest.mark.parametrize("form", ["channel", "full", "outer", "rank_one"])
def test_scale_maps_are_products_of_their_factors(form: str) -> None:
    made = ScaleMap(3, (4, 5), form)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x = maps(2, 3, 4, 5)
    gamma = torch.ones(3, 4, 5)
    for p in made.parameters():
        gamma = gamma * p
    assert torch.allclose(made(x), x * gamma)
    sizes = {"channel": 3, "full": 60, "outer": 23, "rank_one": 12}
    assert sum(p.numel() for p in made.parameters()) == sizes[form]
    with pytest.raises(UserError, match="unknown form 'cubic' of a scale map; known: channel, full, outer, rank_one"):
        ScaleMap(3, (4, 5), "cubic")


# -- refusals --------------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_is_refused() -> None:
    conv = BinaryConv2d(4, 4, 1)
    with pytest.raises(UserError, match=r"unknown tail 'nn' of a binary unit; known: '', 'n', 'a'"):
        BinaryUnit(conv, "nn")
    with pytest.raises(UserError, match="tail 'na' needs an activation"):
        BinaryUnit(conv, "na")
    with pytest.raises(UserError, match="tail 'n' has no place for an activation"):
        BinaryUnit(conv, "n", act=nn.ReLU())
    with pytest.raises(UserError, match=r"tail 'xn\+' needs a map"):
        BinaryUnit(conv, "xn+")
    with pytest.raises(UserError, match="tail 'n' has no place for a shortcut"):
        BinaryUnit(conv, "n", shortcut=nn.Identity())
    with pytest.raises(UserError, match="use a 1x1 BinaryConv2d instead of a BinaryLinear"):
        BinaryUnit(BinaryLinear(4, 4), "n")
