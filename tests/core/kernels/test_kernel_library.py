"""Finding the library, choosing a path, and doing without either."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

from esbnn_core.errors import UserError
from esbnn_core.kernels import library

import pytest


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "ESBNN_PATH"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


_ACTIVE = "from esbnn_core.kernels import library; print(library.active())"


def test_the_path_of_the_environment_is_taken(path: str) -> None:
    assert _run(_ACTIVE, ESBNN_PATH=path).stdout.strip() == path


def test_torch_can_be_asked_for_and_says_nothing(native: ctypes.CDLL) -> None:
    run = _run(_ACTIVE, ESBNN_PATH="torch")
    assert (run.stdout.strip(), run.stderr) == ("torch", "")


def test_an_unknown_path_is_refused_with_the_known_names(native: ctypes.CDLL) -> None:
    run = _run(_ACTIVE, ESBNN_PATH="abacus")
    assert run.returncode != 0 and "ESBNN_PATH=abacus: unknown path" in run.stderr
    for known in library.paths():
        assert known.name in run.stderr
    with pytest.raises(UserError, match="unknown path; known: scalar"):
        library.force_path("abacus")


def test_a_path_of_another_cpu_is_refused(native: ctypes.CDLL) -> None:
    missing = [p for p in library.paths() if not p.supported]
    if not missing:
        pytest.skip("this CPU can run every path of the library")
    with pytest.raises(UserError, match="cannot run the path"):
        library.force_path(missing[0].name)


def test_the_best_supported_path_is_the_choice_of_the_library(native: ctypes.CDLL) -> None:
    library.force_path("scalar")
    assert library.active() == "scalar"
    library.force_path(None)
    assert library.active() == [p.name for p in library.paths() if p.supported][-1]


def test_paths_that_need_features_name_known_ones(native: ctypes.CDLL) -> None:
    known = library.features()
    for info in library.paths():
        assert info.supported == all(known[name] for name in info.needs)
    assert library.paths()[0].needs == ()


def test_features_agree_with_what_the_system_reports(native: ctypes.CDLL) -> None:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    spelled = {"avx512vpopcntdq": "avx512_vpopcntdq", "neon": "asimd"}
    assert library.features() == {name: spelled.get(name, name) in flags for name in library.features()}


_FALLBACK = """
import warnings, torch
from esbnn_core.kernels import library, layout, ops
library.library_file = lambda: None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        words = ops.pack_sign(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1), torch.zeros(1, 1), None, 1)
    out = ops.bconv2d_sums(words, layout.prepare_weights(torch.ones(1, 2, 1, 1, dtype=torch.bool)), None, None,
                           2, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1, "skip", False)
print(words.item(), out.item(), library.active(), library.paths(), [str(w.message)[:35] for w in caught])
"""


def test_without_a_library_torch_computes_the_same_and_it_is_said_once() -> None:
    run = _run(_FALLBACK)
    assert run.stdout.startswith("1 0 torch []")
    assert run.stdout.count("esbnn_core has no native library") == 1


def test_a_path_cannot_be_forced_without_a_library() -> None:
    code = "from esbnn_core.kernels import library; library.library_file = lambda: None; print(library.active())"
    run = _run(code, ESBNN_PATH="avx2")
    assert run.returncode != 0 and "there is no native library; only 'torch' is left" in run.stderr


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    run = _run(_ACTIVE, ESBNN_LIBRARY=str(tmp_path / "none.so"))
    assert "no such file" in run.stderr
    text = tmp_path / "text.so"
    text.write_text("not a library")
    run = _run(_ACTIVE, ESBNN_LIBRARY=str(text))
    assert "is no library of ES-BNN" in run.stderr


def test_the_module_does_not_import_torch(native: ctypes.CDLL) -> None:
    run = _run(_ACTIVE + "; import sys; print('torch' in sys.modules)")
    assert run.stdout.split()[-1] == "False"


def test_what_describes_a_path_can_be_copied_and_pickled(native: ctypes.CDLL) -> None:
    info = library.paths()[0]
    assert copy.deepcopy(info) == pickle.loads(pickle.dumps(info)) == info


def test_only_the_c_interface_is_exported(native: ctypes.CDLL) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    file = library.library_file()
    assert file is not None
    names = subprocess.run(["nm", "-D", "--defined-only", str(file)], capture_output=True, text=True, check=True).stdout.split("\n")
    exported = {line.split()[-1] for line in names if line}
    assert exported and all(name.startswith("esbnn_") for name in exported), exported
