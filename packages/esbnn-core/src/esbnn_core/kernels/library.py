"""The native library: where it is found, what it can do here, which path runs. No torch is imported.

Variables, read when the library is first wanted:
    ESBNN_LIBRARY   the library's file; without it libesbnn.so is looked for beside the package
    ESBNN_PATH      the path to use: one of `paths()`, or `torch` for the exact form in PyTorch, without the library

Without a library (no compiler at the installation) everything works in PyTorch, exactly and slowly, and says so once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import esbnn_core
from esbnn_core.errors import RunError, UserError
from esbnn_core.kernels import abi

__all__ = ["PathInfo", "active", "check", "features", "force_path", "library_file", "native", "paths"]

_lock = threading.Lock()
_forced_torch = False
_warned = False


@dataclass(frozen=True)
class PathInfo:
    """A set of kernels: its name, the CPU features it needs, whether they are here, convolutions that ran on it in this process."""

    name: str
    needs: tuple[str, ...]
    supported: bool
    runs: int


def library_file() -> Path | None:
    """The library's file, or None where there is none. A `UserError` if ESBNN_LIBRARY names something that is no file."""
    named = os.environ.get("ESBNN_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise UserError(f"ESBNN_LIBRARY={named}: no such file; unset it, or name a built libesbnn.so")
        return Path(named)
    # An editable installation has two entries: sources, and what was built.
    for folder in esbnn_core.__path__:
        file = Path(folder) / "libesbnn.so"
        if file.is_file():
            return file
    return None


@functools.cache
def _load() -> ctypes.CDLL | None:
    file = library_file()
    if file is None:
        return None
    try:
        library = ctypes.CDLL(str(file))
        version = library.esbnn_abi_version
    except (OSError, AttributeError) as error:
        raise RunError(f"{file} is no library of ES-BNN that this machine can load ({error}); build it again") from error
    if version() != abi.ABI_VERSION:
        raise RunError(f"{file} has version {version()} of the interface, this package speaks {abi.ABI_VERSION}: build it again")
    abi.declare(library)
    return library


@functools.cache
def _start() -> ctypes.CDLL | None:
    """The library with ESBNN_PATH obeyed, once."""
    wanted = os.environ.get("ESBNN_PATH")
    if wanted == "torch":
        global _forced_torch
        _forced_torch = True
        return None
    library = _load()
    if wanted:
        if library is None:
            raise UserError(f"ESBNN_PATH={wanted}, but there is no native library; only 'torch' is left")
        _force(library, wanted, f"ESBNN_PATH={wanted}")
    return library


def native() -> ctypes.CDLL | None:
    """The library if kernels are to use it, None for the form in PyTorch. Warns once where that is for want of a library.

    Never keep what it returns in a module or a data set: it can be neither copied nor pickled.
    """
    if _forced_torch:
        return None
    library = _start()
    if library is None and not _forced_torch:
        _warn()
    return library


def _warn() -> None:
    global _warned
    with _lock:
        if _warned:
            return
        _warned = True
    warnings.warn(
        "esbnn_core has no native library (was there a C++ compiler when it was installed?): packed kernels run in PyTorch, "
        "exactly but slowly. ESBNN_PATH=torch silences this.",
        RuntimeWarning,
        stacklevel=3,
    )


def _names(library: ctypes.CDLL) -> list[str]:
    return [library.esbnn_path_name(i).decode() for i in range(library.esbnn_path_count())]


def _force(library: ctypes.CDLL, name: str, what: str) -> None:
    status = library.esbnn_force_path(name.encode())
    if status == abi.ERROR_UNKNOWN_PATH:
        raise UserError(f"{what}: unknown path; known: {', '.join([*_names(library), 'torch'])}")
    if status == abi.ERROR_UNSUPPORTED_PATH:
        usable = [path.name for path in _paths(library) if path.supported]
        raise UserError(f"{what}: {library.esbnn_error().decode()}; usable here: {', '.join([*usable, 'torch'])}")
    check(library, status)


def force_path(name: str | None) -> None:
    """Use this path from now on, in all threads; None: the best one again. A `UserError` for one that is unknown or not for this CPU."""
    global _forced_torch
    library = _load()
    if name == "torch":
        _forced_torch = True
        return
    if library is None:
        if name is not None:
            raise UserError(f"path {name!r}: there is no native library; only 'torch' is left")
    elif name is None:
        check(library, library.esbnn_force_path(None))
    else:
        _force(library, name, f"path {name!r}")
    _forced_torch = False


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise what a status of the library means, with its text."""
    if status == 0:
        return
    text = library.esbnn_error().decode(errors="replace")
    if status in (1, abi.ERROR_UNKNOWN_PATH, abi.ERROR_UNSUPPORTED_PATH):
        raise UserError(f"packed kernels: {text}")
    raise MemoryError(f"packed kernels: {text}") if status == 4 else RunError(f"packed kernels: {text}")


def active() -> str:
    """Name of the path that runs now, `torch` without the library."""
    library = None if _forced_torch else _start()
    return "torch" if library is None else library.esbnn_path_name(library.esbnn_path_active()).decode()


def _paths(library: ctypes.CDLL) -> list[PathInfo]:
    return [
        PathInfo(
            name,
            tuple(library.esbnn_path_needs(i).decode().split()),
            library.esbnn_path_supported(i) == 1,
            library.esbnn_path_runs(i),
        )
        for i, name in enumerate(_names(library))
    ]


def paths() -> list[PathInfo]:
    """The library's paths, slowest first; empty without a library."""
    library = _load()
    return [] if library is None else _paths(library)


def features() -> dict[str, bool]:
    """CPU features that paths ask for, and whether this machine offers them; empty without a library."""
    library = _load()
    if library is None:
        return {}
    return {library.esbnn_feature_name(i).decode(): library.esbnn_feature_present(i) == 1 for i in range(library.esbnn_feature_count())}
