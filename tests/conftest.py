"""Settings of the whole test suite. Imports esbnn_core before anything else, so that torchvision and timm can be imported."""

from __future__ import annotations

import os

# Tiny tensors gain nothing from threads, and lose much where two workers share two cores. Said before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import esbnn_core  # noqa: F401  (before anything that imports torchvision)

import pytest

STRICT = os.environ.get("ESBNN_STRICT") == "1"


def _folder(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set")
    path = Path(named)
    if not path.is_dir():
        pytest.fail(f"{variable}={named}: no such folder")
    return path


@pytest.fixture(scope="session")
def esbnn_data() -> Path:
    """The folder of real data sets, or a skip that the summary names."""
    return _folder("ESBNN_DATA")


@pytest.fixture(scope="session")
def esbnn_golden() -> Path:
    """The folder of all golden vectors, or a skip that the summary names."""
    return _folder("ESBNN_GOLDEN")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data sets go to a temporary cache unless one is named."""
    with pytest.MonkeyPatch.context() as patch:
        if "ESBNN_CACHE" not in os.environ:
            patch.setenv("ESBNN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """ESBNN_STRICT=1: a golden case that skips has failed."""
    outcome: Any = yield
    report = outcome.get_result()
    if STRICT and report.skipped and item.get_closest_marker("golden") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"ESBNN_STRICT=1: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say by name what was left out, and how many golden cases ran."""
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = [(r.nodeid, str(r.longrepr[2] if isinstance(r.longrepr, tuple) else r.longrepr)) for r in skipped]
    for variable in ("ESBNN_DATA", "ESBNN_GOLDEN"):
        names = [name for name, why in left_out if variable in why]
        if names:
            terminalreporter.section(f"left out without {variable} ({len(names)})")
            terminalreporter.line("\n".join(names))
    unbuilt = [(name.split("[")[-1].rstrip("]"), why) for name, why in left_out if "not built: " in why]
    if unbuilt:
        terminalreporter.section(f"golden cases of things not built yet ({len(unbuilt)})")
        for what, count in Counter(why.split("not built: ")[-1] for _, why in unbuilt).most_common():
            terminalreporter.line(f"{count:4}  {what}: {', '.join(name for name, why in unbuilt if why.endswith(what))}")
    if not os.environ.get("ESBNN_GOLDEN"):
        terminalreporter.line(
            "ESBNN_GOLDEN is not set: golden vectors are those that the project ships (tests/data/golden), no whole networks"
        )
