"""torchvision's stand-in operators: against the compiled ones' results, and in every order of imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from esbnn_core import _torchvision, _torchvision_ops

import numpy as np
import pytest
import torch
import torchvision

SHIPPED = Path(__file__).parents[1] / "data" / "torchvision_ops.npz"
NAMED = Path(os.environ.get("ESBNN_GOLDEN") or SHIPPED.parent) / "torchvision_ops.npz"
FILE = NAMED if NAMED.is_file() else SHIPPED
GRADIENT_ATOL = 6e-5  # the compiled kernel sums in another order; unit-normal maps


def _cases() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with np.load(FILE) as data:
        for key in data.files:
            case, _, rest = key.partition("|")
            found.setdefault(case, {})[rest] = json.loads(str(data[key])) if rest == "meta" else torch.from_numpy(np.asarray(data[key]))
    return found


CASES = _cases()
ROI = [c for c, d in CASES.items() if d["meta"]["method"] in ("roi_align", "roi_pool")]
ABSENT = [c for c, d in CASES.items() if d["meta"]["method"] in ("ps_roi_align", "ps_roi_pool", "deform_conv2d")]


def test_every_case_of_the_file_is_tested_below() -> None:
    nms = [c for c, d in CASES.items() if d["meta"]["method"] in ("nms", "batched_nms")]
    assert len(nms) + len(ROI) + len(ABSENT) == len(CASES) > 0


@pytest.mark.golden
@pytest.mark.parametrize("case", [c for c, d in CASES.items() if d["meta"]["method"] in ("nms", "batched_nms")])
def test_nms_keeps_the_same_boxes_in_the_same_order(case: str) -> None:
    d = CASES[case]
    if d["meta"]["method"] == "nms":
        kept = _torchvision_ops.nms(d["in.boxes"], d["in.scores"], d["meta"]["iou_threshold"], block=16)
        assert torch.equal(kept, _torchvision_ops.nms(d["in.boxes"], d["in.scores"], d["meta"]["iou_threshold"]))
    else:
        kept = torchvision.ops.batched_nms(d["in.boxes"], d["in.scores"], d["in.idxs"], d["meta"]["iou_threshold"])
    assert torch.equal(kept, d["out.keep"])


@pytest.mark.golden
@pytest.mark.parametrize("case", ROI)
def test_pooling_of_boxes_agrees_with_its_gradient(case: str) -> None:
    d, m = CASES[case], CASES[case]["meta"]
    (ph, pw), (n, c, h, w) = m["output_size"], d["in.x"].shape
    if m["method"] == "roi_align":
        args = (m["spatial_scale"], ph, pw)
        y = _torchvision_ops.roi_align(d["in.x"], d["in.rois"], *args, m["sampling_ratio"], m["aligned"])
        grad = _torchvision_ops.roi_align_backward(d["grad_out.y"], d["in.rois"], *args, n, c, h, w, m["sampling_ratio"], m["aligned"])
        torch.testing.assert_close(y, d["out.y"], atol=2e-5, rtol=0)
    else:
        y, where = _torchvision_ops.roi_pool(d["in.x"], d["in.rois"], m["spatial_scale"], ph, pw)
        grad = _torchvision_ops.roi_pool_backward(d["grad_out.y"], d["in.rois"], where, m["spatial_scale"], ph, pw, n, c, h, w)
        assert torch.equal(y, d["out.y"])
    torch.testing.assert_close(grad, d["grad_in.x"], atol=GRADIENT_ATOL, rtol=0)


def test_the_number_of_samples_is_decided_in_the_precision_of_the_boxes() -> None:
    # (63 - 3) * 0.1 / 3 is 2 in float32, so two samples a bin; in float64 it is 2.0000000000000004, which would be three.
    x = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0.0, 3, 3, 63, 63]])
    adaptive = _torchvision_ops.roi_align(x, rois, 0.1, 3, 3, 0, True)
    assert torch.equal(adaptive, _torchvision_ops.roi_align(x, rois, 0.1, 3, 3, 2, True))
    double = _torchvision_ops.roi_align(x.double(), rois.double(), 0.1, 3, 3, 0, True)
    assert torch.equal(double, _torchvision_ops.roi_align(x.double(), rois.double(), 0.1, 3, 3, 3, True))


def test_roi_pool_rounds_the_largest_number_below_one_half_down() -> None:
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    y, where = _torchvision_ops.roi_pool(x, torch.tensor([[0, 0, 0, below, 0]]), 1.0, 1, 1)
    assert (y.item(), where.item()) == (1.0, 0)


def test_nms_keeps_double_boxes_double() -> None:
    wider = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1 + 1e-9]], dtype=torch.float64)  # IoU 1 - 1e-9
    scores = torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert _torchvision_ops.nms(wider, scores, 1 - 5e-10).tolist() == [0, 1]
    assert _torchvision_ops.nms(wider, scores, 1 - 2e-9).tolist() == [0]


@pytest.mark.skipif(not _torchvision.active(), reason="torchvision's own operators are loaded here")
def test_gradients_pass_through_torchvisions_own_functions() -> None:
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.2, 4.1, 5.2], [0, -3, 1, 2, 9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: torchvision.ops.roi_align(t, rois, (3, 2), 1.0, 2, True), x)
    assert torch.autograd.gradcheck(lambda t: torchvision.ops.roi_pool(t, rois, (2, 2), 1.0), x)


@pytest.mark.skipif(not _torchvision.active(), reason="torchvision's own operators are loaded here")
@pytest.mark.parametrize("case", ABSENT)
def test_operators_without_a_stand_in_say_what_to_install(case: str) -> None:
    d, m = CASES[case], CASES[case]["meta"]
    with pytest.raises(NotImplementedError, match="install torch and torchvision builds"):
        if m["method"] == "deform_conv2d":
            torchvision.ops.deform_conv2d(
                d["in.x"], d["in.offset"], d["param.weight"], d["param.bias"], (2, 2), (1, 1), mask=d.get("in.mask")
            )
        else:
            getattr(torchvision.ops, m["method"])(d["in.x"], d["in.rois"], m["output_size"], m["spatial_scale"])


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def _broken() -> bool:
    return _python("import torchvision", ESBNN_TORCHVISION_STANDIN="0").returncode != 0


def test_importing_the_core_imports_no_torch() -> None:
    run = _python("import sys, esbnn_core; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert run.stdout.split() == ["False", "False"], run.stderr


def test_import_order_and_switch() -> None:
    if not _broken():
        run = _python("import esbnn_core, torchvision; from esbnn_core import _torchvision as t; print(t.active())")
        assert run.stdout.strip() == "False", "a whole torchvision must be left alone"
        return
    first = "import esbnn_core, torchvision; print(torchvision.ops.nms.__name__)"
    assert _python(first).returncode == 0
    # timm before us fails with torchvision's own error; afterwards the left-over module is mended.
    late = "try:\n import torchvision\nexcept RuntimeError: pass\nimport esbnn_core, torchvision; print('whole')"
    assert _python(late).stdout.strip() == "whole"
    off = _python(first, ESBNN_TORCHVISION_STANDIN="0")
    assert "torchvision::nms does not exist" in off.stderr
    logged = _python("import logging; logging.basicConfig(level=20); " + first)
    assert logged.stderr.count("stand-ins answer") == 1


def test_nothing_is_patched_where_torchvision_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    monkeypatch.setattr(_torchvision, "_libraries", [])
    whole = types.ModuleType("torchvision.extension")
    whole._has_ops = lambda: True  # type: ignore[attr-defined]
    before = whole._has_ops
    _torchvision._complete(whole)
    assert whole._has_ops is before
    assert not _torchvision.active()
