"""What the packages declare: one version, equal pins, and exactly the dependencies that their code imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROBED = {"torchvision"}  # `python -m esbnn_core` says which one there is, if any
PACKAGES = ("esbnn-core", "esbnn-cls", "esbnn-det", "esbnn-sr")
DISTRIBUTION = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml", "mmcv": "mmcv-lite", "sklearn": "scikit-learn"}
# Declared for what they bring, not imported by name: what a detection or diffusion project stands on.
STANDS_ON = {
    "esbnn-core": set(),
    "esbnn-cls": set(),
    "esbnn-det": {"torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "setuptools"},
    "esbnn-sr": {"torch", "torchvision", "diffusers", "piq"},
}


def _project(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower()


def _imports(package: str) -> set[str]:
    """Top-level modules imported anywhere in a package's sources, inside functions too."""
    found: set[str] = set()
    for path in (ROOT / "packages" / package / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_all_packages_have_one_version_and_pin_each_other_to_it() -> None:
    versions = {package: _project(package)["version"] for package in PACKAGES}
    assert len(set(versions.values())) == 1
    version = versions["esbnn-core"]
    for package in PACKAGES[1:]:
        assert f"esbnn-core=={version}" in _project(package)["dependencies"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_version_script_writes_every_place(tmp_path: Path) -> None:
    for name in ("CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "set_version.py", tmp_path / "tools")
    for package in PACKAGES:
        (tmp_path / "packages" / package).mkdir(parents=True)
        shutil.copy(ROOT / "packages" / package / "pyproject.toml", tmp_path / "packages" / package)
    run = subprocess.run([sys.executable, str(tmp_path / "tools" / "set_version.py"), "7.8.9"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "no heading for 7.8.9" in run.stderr
    for package in PACKAGES:
        text = (tmp_path / "packages" / package / "pyproject.toml").read_text()
        assert 'version = "7.8.9"' in text
        assert package == "esbnn-core" or '"esbnn-core==7.8.9"' in text
    assert subprocess.run([sys.executable, str(tmp_path / "tools" / "set_version.py"), "new"], capture_output=True).returncode == 2


@pytest.mark.parametrize("package", PACKAGES)
def test_declared_dependencies_are_those_that_are_imported(package: str) -> None:
    project = _project(package)
    plain = {_name(r) for r in project["dependencies"]}
    optional = {_name(r) for group in project.get("optional-dependencies", {}).values() for r in group}
    homes = importlib.metadata.packages_distributions()
    needed = set()
    for module in _imports(package):
        if module.startswith("esbnn_"):
            owner = "esbnn-" + module.split("_")[1]
            if owner != package:
                needed.add(owner)
            continue
        if package == "esbnn-core" and module in PROBED:
            continue
        needed.add(DISTRIBUTION.get(module, homes.get(module, [module])[0].lower()))
    assert needed <= plain | optional, f"imported but not declared: {sorted(needed - plain - optional)}"
    unused = plain - needed - STANDS_ON[package]
    assert not unused, f"declared but never imported: {sorted(unused)}"


def test_task_packages_do_not_import_each_other() -> None:
    for package in PACKAGES[1:]:
        own = package.replace("-", "_")
        others = {m for m in _imports(package) if m.startswith("esbnn_") and not m.startswith((own, "esbnn_core"))}
        assert not others, f"{package} imports {others}"
    assert not {m for m in _imports("esbnn-core") if m.startswith("esbnn_") and m != "esbnn_core"}


def test_ranges_in_packages_and_exact_versions_in_the_constraints_only() -> None:
    for package in PACKAGES:
        for requirement in _project(package)["dependencies"]:
            if not requirement.startswith("esbnn-core"):
                assert re.search(r">=|==\d+\.\d+\.\*", requirement), f"{package}: {requirement} is no range"
        assert _project(package)["requires-python"] == ">=3.11,<3.14"
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
