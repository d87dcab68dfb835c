"""Golden module vectors: outputs, gradients, state after a forward, evaluation after training, of every case found."""

from __future__ import annotations

import pytest
import torch
from harness import ALPHA_F32, TOLERANCES, Case, NotBuilt, Tolerance, folder, module_cases
from runners import Ready, begin, prepare

pytestmark = pytest.mark.golden

CASES = [case for case in module_cases(folder()) if case.file.startswith("modules_")]


@pytest.fixture(params=CASES, ids=lambda c: f"{c.file}:{c.name}")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def _ready(case: Case, dtype: torch.dtype) -> Ready:
    try:
        ready = prepare(case, dtype)
    except NotBuilt as what:
        pytest.skip(f"not built: {what}")
    begin(ready.module, case.meta)
    return ready


def _forward(case: Case, ready: Ready, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = case.tensors("in", dtype)["x"].requires_grad_(case.meta["mode"] == "train")
    if case.meta["mode"] == "train":
        return x, ready.run(x)
    with torch.no_grad():
        return x, ready.run(x)


def test_case(case: Case) -> None:
    tolerance = TOLERANCES[case.file]
    _check(case, torch.float32, tolerance, Tolerance(tolerance.out, max(tolerance.grad, ALPHA_F32)))
    _check(case, torch.float64, tolerance, tolerance)


def _check(case: Case, dtype: torch.dtype, tolerance: Tolerance, gradient: Tolerance) -> None:
    ready = _ready(case, dtype)
    x, out = _forward(case, ready, dtype)
    want = case.tensors("out", torch.float64)
    assert set(want) <= set(out)
    for name, expected in want.items():
        tolerance.check(f"out.{name} ({dtype})", out[name], expected)

    state = ready.module.state_dict()
    for name, expected in case.tensors("after", torch.float64).items():
        if not name.endswith("num_batches_tracked"):
            tolerance.check(f"after.{name} ({dtype})", state[ready.names[name]], expected)

    cotangents = case.tensors("grad_out", dtype)
    if cotangents:
        sum((out[name] * cotangents[name]).sum() for name in cotangents).backward()  # type: ignore[union-attr]
        expected_in, expected_param = case.tensors("grad_in", torch.float64), case.tensors("grad_param", torch.float64)
        largest = max((float(g.abs().max()) for g in (*expected_in.values(), *expected_param.values()) if g.numel()), default=0.0)
        parameters = dict(ready.module.named_parameters())
        for name, expected in expected_in.items():
            assert name == "x" and x.grad is not None
            gradient.check(f"grad_in.{name} ({dtype})", x.grad, expected, "grad", 0.05 * largest)
        for name, expected in expected_param.items():
            grad = parameters[ready.names[name]].grad
            assert grad is not None, f"no gradient of {name}"
            gradient.check(f"grad_param.{name} ({dtype})", grad, expected, "grad", 0.05 * largest)

    want_eval = case.tensors("out_eval", torch.float64)
    if not want_eval and case.meta.get("eval_equals_train"):
        want_eval = want
    if want_eval and case.meta["mode"] == "train":
        ready.module.eval()
        with torch.no_grad():
            again = ready.run(case.tensors("in", dtype)["x"])
        for name, expected in want_eval.items():
            tolerance.check(f"out_eval.{name} ({dtype})", again[name], expected)
