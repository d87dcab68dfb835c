"""The four wheels: what they are called, declare and contain; and each installed alone."""

from __future__ import annotations

import email
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"esbnn-core": "esbnn_core", "esbnn-cls": "esbnn_cls", "esbnn-det": "esbnn_det", "esbnn-sr": "esbnn_sr"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built without isolation, so without network."""
    out = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        command = [sys.executable, "-m", "build", "-n", "-w", "-o", str(out), str(ROOT / "packages" / package)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    return {package: next(out.glob(f"{module}-*.whl")) for package, module in PACKAGES.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_declares_and_contains_what_it_should(package: str, wheels: dict[str, Path]) -> None:
    module = PACKAGES[package]
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = wheel.namelist()
        info = next(n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(info))
        entry_points = next((wheel.read(n).decode() for n in names if n.endswith("entry_points.txt")), "")
    assert wheels[package].name.endswith("-py3-none-any.whl")
    assert f"{module}/__init__.py" in names
    assert f"{module}/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    requires = metadata.get_all("Requires-Dist") or []
    assert package == "esbnn-core" or f"esbnn-core=={metadata['Version']}" in requires
    assert not [r for r in requires if r.startswith("mmcv") and not r.startswith("mmcv-lite")], "mmcv itself has to be compiled"
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n}
    assert all(top.startswith(module) for top in tops), f"foreign files in {package}: {tops}"
    if package == "esbnn-core":
        assert "esbnn = esbnn_core.cli:main" in entry_points
    if package == "esbnn-cls":
        assert "esbnn_cls_catalog.py" in names
        assert "esbnn_cls = esbnn_cls_catalog:CATALOG" in entry_points
        assert "esbnn-cls = " in entry_points
        shipped = {p.name for p in (ROOT / "packages/esbnn-cls/src/esbnn_cls/recipes").glob("*.yaml")}
        assert shipped == {Path(n).name for n in names if n.endswith(".yaml")}
        assert len(shipped) > 12
    if package in ("esbnn-sr", "esbnn-cls"):
        assert not [r for r in requires if r.startswith("mm")]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_installs_and_imports_alone(package: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    find = ["--find-links", str(wheels["esbnn-core"].parent), "-c", str(ROOT / "constraints.txt")]
    quiet = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-cache-dir", *find]
    # A constraints file keeps pip from choosing another build of torch for any dependency.
    subprocess.run([*quiet, "torch"], check=True, timeout=500)
    subprocess.run([*quiet, str(wheels[package])], check=True, timeout=500)
    module = PACKAGES[package]
    code = f"import {module}, torch; print({module}.__version__)"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    others = [m for p, m in PACKAGES.items() if p not in (package, "esbnn-core")]
    code = f"import importlib.util as u; print([m for m in {others!r} if u.find_spec(m)])"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.stdout.strip() == "[]"
    subprocess.run([str(python), "-m", "pip", "check"], check=True, timeout=120)
