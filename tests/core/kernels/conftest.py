"""Fixtures of the kernels' tests: the library, its paths, and what puts the choice of a path back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

from esbnn_core.kernels import library

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # kernel_cases, which the tests share

NATIVE = library.library_file() is not None
PATHS = [path.name for path in library.paths()] if NATIVE else ["scalar"]


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    """The native library, or a skip that says what is missing."""
    if not NATIVE:
        pytest.skip("no native library: build packages/esbnn-core/csrc and name it with ESBNN_LIBRARY")
    found = library.native()
    if found is None:
        pytest.skip("ESBNN_PATH=torch switches the native library off")
    return found


@pytest.fixture(scope="module", params=PATHS)
def path(request: pytest.FixtureRequest, native: ctypes.CDLL) -> Iterator[str]:
    """Every path of the library in turn, forced; one that this CPU lacks is skipped by name."""
    info = {p.name: p for p in library.paths()}[request.param]
    if not info.supported:
        pytest.skip(f"path {info.name}: this CPU has not all of {', '.join(info.needs)}")
    library.force_path(info.name)
    yield info.name
    library.force_path(None)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
