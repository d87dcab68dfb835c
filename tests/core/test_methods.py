"""One suite for every binarization method: bits, values, gradients, schedules, copies, options."""

from __future__ import annotations

import ast
import copy
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

from esbnn_core import methods
from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryConv2d
from esbnn_core.training import Progress, begin_step

import pytest
import torch
from strategies import METHODS, PROJECTING
from torch import Tensor

FIRST = Progress.at(0, 1, 4)


def layer(name: str, dtype: torch.dtype = torch.float32, groups: int = 1, seed: int = 0, begun: bool = True) -> BinaryConv2d:
    torch.manual_seed(seed)
    made = BinaryConv2d(6, 8, 3, padding=1, groups=groups, method=name).to(dtype)
    with torch.no_grad():
        for key, tensor in (*made.named_parameters(), *made.sign.named_parameters()):  # type: ignore[union-attr]
            if key != "weight":
                tensor.add_(0.2 * torch.rand_like(tensor))
    if begun:
        begin_step(made, FIRST)
    return made


def some_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_the_code_is_the_training_weight(name: str, dtype: torch.dtype, groups: int) -> None:
    made = layer(name, dtype, groups)
    trained = made.binary_weight().detach()
    code = made.code()
    shape = (-1, 1, 1, 1)
    value = code.mid.view(shape) + code.half.view(shape) * torch.where(code.bits, 1, -1).to(dtype)
    assert torch.equal(trained, value)
    assert code.bits.dtype == torch.bool
    assert code.bits.shape == made.weight.shape
    assert code.half.shape == code.mid.shape == (8,)
    assert 0 < code.bits.float().mean() < 1


@pytest.mark.parametrize("name", METHODS)
def test_the_threshold_is_where_the_training_activation_switches(name: str) -> None:
    made = layer(name)
    assert made.sign is not None
    x = some_input()
    x[0, :, 0, 0] = 0.0
    x[0, :, 0, 1] = -0.0
    with torch.no_grad():
        trained = made.sign(x, made.scalars)
        threshold = made.sign.threshold(x)
    bit = x >= threshold.value.view(*threshold.value.shape, 1, 1)
    if threshold.flip is not None:
        bit = bit ^ threshold.flip.view(1, -1, 1, 1)
    lo, hi = made.method.values(made.sign.state)
    assert torch.allclose(trained, torch.where(bit, hi, lo), rtol=1e-6, atol=1e-6)
    assert threshold.value.shape[0] == (2 if threshold.kind == "sample_mean" else 1)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("rbnn", "siman")])
def test_a_weight_at_its_centre_counts_as_positive_in_training_and_inference(name: str, zero: float) -> None:
    made = layer(name, begun=False)
    with torch.no_grad():
        # Halves of plus and minus one around zeros: every mean that a method subtracts is exactly zero.
        pattern = torch.tensor([1.0, zero, -1.0, 0.5, zero, -0.5]).view(1, 6, 1, 1)
        made.weight.copy_(pattern.expand_as(made.weight))
    begin_step(made, FIRST)
    at_zero = torch.zeros_like(made.weight, dtype=torch.bool)
    at_zero[:, [1, 4]] = True
    code = made.code()
    assert code.bits[at_zero].all()
    positive = (code.mid + code.half).view(-1, 1, 1, 1).expand_as(made.weight)
    assert torch.equal(made.binary_weight()[at_zero], positive[at_zero])


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("rbnn", "siman", "dorefa")])
def test_an_activation_at_its_centre_counts_as_positive_in_training_and_inference(name: str) -> None:
    torch.manual_seed(0)
    made = BinaryConv2d(2, 1, 1, method=name)
    x = torch.zeros(1, 2, 1, 1)
    x[0, 1] = -0.0
    begin_step(made, FIRST)
    assert made.sign is not None
    assert made.sign(x, made.scalars).flatten().tolist() == [1, 1]
    made.eval()
    with torch.no_grad():
        assert made.evaluator(x).bits(x).flatten().tolist() == [1, 1]


@pytest.mark.parametrize("alpha", [0.7, -0.7])
def test_adabins_centre_counts_as_positive_whatever_the_sign_of_its_scale(alpha: float) -> None:
    made = BinaryConv2d(3, 1, 1, method="adabin").eval()
    with torch.no_grad():
        made.sign.alpha_a.fill_(alpha), made.sign.beta_a.fill_(0.25)  # type: ignore[union-attr]
        middle = torch.tensor(0.25)
        x = torch.stack([torch.nextafter(middle, -torch.ones(())), middle, torch.nextafter(middle, torch.ones(()))]).view(1, 3, 1, 1)
        bits = made.evaluator(x).bits(x).flatten()
        assert bits.tolist() == ([-1, 1, 1] if alpha > 0 else [1, 1, -1])
        values = made.sign(x, {}).flatten()  # type: ignore[misc]
    assert torch.allclose(values, alpha * (bits + 0.25))


def test_dorefas_half_rounds_to_even() -> None:
    above = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
    made = layer("dorefa").eval()
    x = torch.tensor([0.5, above, -0.0, 1.0, 7.0, -7.0]).view(1, 6, 1, 1)
    want = [0, 1, 0, 1, 1, 0]
    assert made.sign(x, {}).flatten().tolist() == want  # type: ignore[misc]
    with torch.no_grad():
        assert made.evaluator(x).bits(x).flatten().tolist() == [2 * b - 1 for b in want]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_has_a_finite_gradient(name: str, dtype: torch.dtype) -> None:
    made = layer(name, dtype)
    x = some_input(dtype).requires_grad_()
    y = made(x)
    y.square().sum().backward()
    assert y.dtype == dtype
    for key, tensor in (("x", x), *made.named_parameters()):
        assert tensor.grad is not None, key
        assert torch.isfinite(tensor.grad).all(), key
        assert tensor.grad.any(), key
        assert tensor.grad.dtype == dtype


@pytest.mark.parametrize("name", METHODS)
def test_a_forward_never_changes_what_is_learned(name: str) -> None:
    made = layer(name)
    parameters = {key: p.detach().clone() for key, p in made.named_parameters()}
    made(some_input())
    made.eval()
    buffers = {key: b.clone() for key, b in made.named_buffers()}
    made(some_input())
    with torch.no_grad():
        made(some_input())
    assert all(torch.equal(p, parameters[key]) for key, p in made.named_parameters())
    assert all(torch.equal(b, buffers[key]) for key, b in made.named_buffers())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_in_inference(name: str, dtype: torch.dtype) -> None:
    made, x = layer(name).eval(), some_input()
    with torch.no_grad():
        plain = made(x)
        with torch.autocast("cpu", dtype=dtype):
            cast = made(x)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_input_is_summed_exactly(name: str) -> None:
    torch.manual_seed(0)
    made = BinaryConv2d(640, 3, 1, method=name).eval()  # sums beyond 256, where bfloat16 has no odd numbers
    x = torch.randn(4, 640, 1, 1).bfloat16()
    with torch.no_grad():
        got, want = made(x), made(x.float())
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())


@pytest.mark.parametrize("name", METHODS)
def test_copies_and_pickles_answer_the_same(name: str) -> None:
    made, x = layer(name), some_input()
    made(x)
    made.eval()
    with torch.no_grad():
        want = made(x)
        for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(twin(x), want)
            assert twin.method == made.method


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_can_be_exported(name: str) -> None:
    made, x = layer(name, begun=False).eval(), some_input()
    with torch.no_grad():
        want = made(x)
        program = torch.export.export(made, (x,))
        got = program.module()(x)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", METHODS)
def test_evaluation_can_be_compiled(name: str) -> None:
    made, x = layer(name).eval(), some_input()
    x[0, 0] = -0.0
    with torch.no_grad():
        want = made(x)
        got = torch.compile(made)(x)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


# -- schedules -----------------------------------------------------------------------------------------------------------------
QUARTERS = (0.0, 0.25, 0.5, 0.75)
SCHEDULES = {
    ("irnet", "t", 400): (0.001, 0.01, 0.1, 1, 9.772372),
    ("irnet", "k", 400): (999.9999, 100, 10, 1, 1),
    ("adabin", "t", 400): (0.001, 0.01, 0.1, 1, 9.772372),
    ("adabin", "k", 400): (999.9999, 100, 10, 1, 1),
    ("recu", "tau", 600): (0.85, 0.8731415, 0.9028557, 0.9410095, 0.9896312),
    ("rbnn", "t", 1000): (0.01, 0.05623413, 0.3162278, 1.778279, 9.93116),
    ("rbnn", "k", 1000): (100, 17.78279, 3.162278, 1, 1),
    ("siman", "percent", 400): (15, 11.25, 7.5, 3.75, 0.0375),
    ("reste", "o", 1000): (1, 1.152241, 1.585786, 2.234633, 2.996859),
}


@pytest.mark.parametrize("key", SCHEDULES, ids=lambda k: f"{k[0]}-{k[1]}")
def test_schedules_have_the_official_values(key: tuple[str, str, int]) -> None:
    name, scalar, epochs = key
    schedule = methods.get(name).schedule
    got = [schedule(p)[scalar] for p in (*QUARTERS, 1 - 1 / epochs)]
    assert got == pytest.approx(SCHEDULES[key], rel=5e-7)


def test_recus_clamp_has_the_official_quantile() -> None:
    got = [-math.log(2 - 2 * methods.get("recu").schedule(p)["tau"]) for p in (*QUARTERS, 1 - 1 / 600)]
    assert got == pytest.approx((1.20397, 1.37154, 1.63841, 2.13723, 3.8758), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_only_methods_with_a_schedule_say_so(name: str) -> None:
    method = methods.get(name)
    assert method.scheduled == bool(method.schedule(0.5))
    assert all(math.isfinite(v) for p in (0.0, 1.0) for v in method.schedule(p).values())


# -- the registry --------------------------------------------------------------------------------------------------------------
def test_the_twelve_methods_are_there() -> None:
    wanted = "adabin bireal bnn dorefa irnet rbnn reactnet recu reste siman xnor xnorpp"
    assert set(wanted.split()) <= set(METHODS)
    assert sorted(METHODS) == METHODS
    assert set(PROJECTING) == {"rbnn", "siman", "xnor"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_itself_and_its_paper(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    assert method.title
    assert all((method.paper.title, method.paper.authors, method.paper.venue))
    assert method.paper.url.startswith("https://")
    assert hash(method) == hash(methods.get(name))
    assert type(method).__doc__


def test_an_unknown_method_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown method 'irnett' \(did you mean 'irnet'\?\); known: adabin, .*xnorpp"):
        methods.get("irnett")
    with pytest.raises(UserError, match=r"unknown method 'zzz'; known"):
        methods.get("zzz")


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_gets_the_nearest_name(name: str) -> None:
    for option in methods.get(name).options():
        with pytest.raises(UserError, match=rf"method '{name}' has no option '{option}x' \(did you mean '{option}'\?\)"):
            methods.get(name, **{option + "x": 1})
    with pytest.raises(UserError, match=rf"method '{name}' has no option 'q7'; known: \w+"):
        methods.get(name, q7=1)


def test_options_change_a_copy() -> None:
    changed = methods.get("irnet", t_min=0.1)
    assert changed.schedule(0.0)["t"] == pytest.approx(0.1)
    assert methods.get("irnet").options()["t_min"] == 1e-3
    assert methods.get(changed, t_max=1.0).options() == {"t_min": 0.1, "t_max": 1.0}


@pytest.mark.parametrize(("name", "option", "value"), [("siman", "sort", "bubble"), ("xnorpp", "scale", "layer")])
def test_a_value_that_an_option_cannot_have_is_refused(name: str, option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"not '{value}'"):
        methods.get(name, **{option: value})


def test_methods_import_neither_expansion_nor_modules() -> None:
    folder = Path(methods.__file__).parent
    for path in folder.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        named += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        assert named
        assert not [n for n in named if n.startswith(("esbnn_core.es", "esbnn_core.nn", "esbnn_cls"))], path.name
    script = "import sys; from esbnn_core import methods; [methods.get(n) for n in methods.names()]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "esbnn_core.methods.irnet" in loaded
    assert not [m for m in loaded if m == "esbnn_core.es" or m.startswith("esbnn_core.nn")]


# -- rules that only one method has ----------------------------------------------------------------------------------------------
def test_siman_gives_plus_one_to_the_larger_half_of_each_filter() -> None:
    made = layer("siman")
    made(some_input())
    bits, size = made.code().bits.flatten(1), made.weight.detach().flatten(1)
    size = (size - size.mean(1, keepdim=True)).abs()
    for b, s in zip(bits, size, strict=True):
        assert b.sum() <= b.numel() // 2
        assert s[b].min() >= s[~b].max()


def test_siman_sorts_agree_where_no_magnitudes_tie() -> None:
    w = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    topk, quick = (methods.get("siman", sort=s).weight_state(w)["B"] for s in ("topk", "quick"))
    assert torch.equal(topk, quick)
    assert topk.flatten(1).sum(1).tolist() == [27] * 4


def test_siman_clips_magnitudes_between_two_percentiles() -> None:
    w = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    centred = w - w.mean((1, 2, 3), keepdim=True)
    low, high = torch.quantile(centred.abs(), torch.tensor([0.15, 0.85]))
    want = centred.abs().clamp(low, high) * centred.sign()
    methods.get("siman").project(w, {}, {"percent": 15.0}, FIRST)
    assert torch.allclose(w, want, rtol=1e-6)


def test_rbnn_rotations_stay_orthogonal_and_bring_weights_nearer_to_their_signs() -> None:
    made = layer("rbnn", torch.float64, begun=False)
    u = made.weight.detach()
    u = (u - u.mean((1, 2, 3), keepdim=True)) / u.flatten(1).std(1).view(-1, 1, 1, 1)

    def distance() -> float:
        r = made.R1.T @ u.view(8, 6, 9) @ made.R2
        return float((r - r.sign()).square().sum())

    before = distance()
    begin_step(made, FIRST)
    assert distance() < before
    for r in (made.R1, made.R2):
        assert torch.allclose(r @ r.T, torch.eye(len(r), dtype=torch.float64), atol=1e-12)


def test_bnn_clips_latent_weights_when_asked() -> None:
    torch.manual_seed(0)
    made = BinaryConv2d(3, 4, 3, method=methods.get("bnn", clip_weights=True))
    with torch.no_grad():
        made.weight.mul_(20)
    begin_step(made, FIRST)
    assert made.weight.abs().max() == 1
    assert methods.get("bnn", clip_weights=True).projects
    assert not methods.get("bnn").projects


def test_xnor_centres_over_inputs_and_clips() -> None:
    made = layer("xnor", begun=False)
    want = (made.weight - made.weight.mean(1, keepdim=True)).clamp(-1, 1).detach()
    begin_step(made, FIRST)
    assert torch.equal(made.weight.detach(), want)
