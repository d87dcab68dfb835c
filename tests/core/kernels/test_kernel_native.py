"""The library's own C++ tests, under sanitizers and on NEON. Slow: they compile the library again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "packages" / "esbnn-core" / "csrc"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def _run(command: list[str], **environment: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=1400)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize(("sanitizers", "cases"), [("address,undefined", 200), ("thread", 50)])
def test_native_tests_run_clean_under_sanitizers(sanitizers: str, cases: int, tmp_path: Path) -> None:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path), "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DESBNN_TESTS=ON"]
    _run([*configure, f"-DESBNN_SANITIZE={sanitizers}"])
    _run(["cmake", "--build", str(tmp_path), "--target", "esbnn_native_tests"])
    out = _run([str(tmp_path / "esbnn_native_tests"), str(cases)])
    assert "path scalar: " in out and "\n0 failures" in out


def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    if os.environ.get("ESBNN_FUZZ") != "1":
        pytest.skip("ESBNN_FUZZ=1 runs the fuzzer: what it finds is a matter of chance")
    for tool in ("cmake", "clang++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    probe = tmp_path / "probe.cpp"
    probe.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }')
    if subprocess.run(["clang++", "-fsanitize=fuzzer", str(probe), "-o", str(tmp_path / "probe")], capture_output=True).returncode != 0:
        pytest.skip("clang++ has no libFuzzer here (Debian: libclang-rt-14-dev)")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path / "build"), "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DESBNN_FUZZ=ON"]
    _run([*configure, "-DCMAKE_CXX_COMPILER=clang++", "-DESBNN_SANITIZE=fuzzer-no-link,address,undefined"])
    _run(["cmake", "--build", str(tmp_path / "build"), "--target", "esbnn_fuzz_conv"])
    fuzzer = str(tmp_path / "build" / "esbnn_fuzz_conv")
    _run([fuzzer, "-max_total_time=60", "-max_len=400", f"-artifact_prefix={tmp_path}/"])


def test_neon_kernels_are_exact_under_an_emulator() -> None:
    script = ROOT / "tools" / "native_neon.sh"
    run = subprocess.run([str(script), "300"], capture_output=True, text=True, timeout=1400)
    if run.returncode == 77:
        pytest.skip(run.stdout.strip().splitlines()[-1])
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "path neon: 300 cases" in run.stdout
