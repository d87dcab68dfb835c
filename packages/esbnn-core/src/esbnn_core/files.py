"""Files and folders that are either wholly there or not at all, whenever the process is killed or the disk fills up.

The order is always: write under a temporary name, fsync the contents, rename, fsync the parent. Left-overs of a killed process begin with
`.tmp-` or `.del-`; `sweep` removes them. Imports neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from esbnn_core.errors import EsbnnError, RunError, UserError

__all__ = ["point", "remove_folder", "sweep", "write_file", "write_folder"]

_LEFT_OVERS = (".tmp-", ".del-")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically; an old one stays until the new one is whole.

    Raises UserError where the path cannot be written, RunError (path, bytes needed) where the disk is full.
    """
    target = Path(path)
    part = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(part, data)
        os.replace(part, target)
        _fsync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _explain(error, target, len(data)) from error


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write a folder of files (names relative to it, `/` for sub-folders) atomically.

    Raises UserError where the folder exists already (a folder cannot be renamed over another one) or cannot be written, RunError
    (path, bytes needed) where the disk is full.
    """
    target = Path(path)
    size = sum(len(data) for data in files.values())
    part = _temporary(target)
    try:
        if os.path.lexists(target):
            raise UserError(f"{target}: exists already; give another folder, or remove it first")
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shutil.rmtree(part, ignore_errors=True)  # of a killed process that had our number
        part.mkdir()
        for name, data in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            _write(part / name, data)
        for inner in {(part / name).parent for name in files} | {part}:
            _fsync_folder(inner)
        os.rename(part, target)
        _fsync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _explain(error, target, size) from error


def point(link: str | os.PathLike[str], target: str) -> None:
    """Make `link` a symbolic link to `target` (relative to the link's folder), replacing an older link atomically."""
    path = Path(link)
    if os.path.lexists(path) and not path.is_symlink():
        raise UserError(f"{path}: is in the way; a link to a checkpoint belongs here, move it elsewhere")
    part = _temporary(path)
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        os.replace(part, path)
        _fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _explain(error, path, 0) from error


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder so that nobody ever sees half of it: rename first, then delete. One that is not there is no error."""
    folder = Path(path)
    old = folder.with_name(f".del-{folder.name}-{os.getpid()}")
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
    """Remove what killed processes left in a folder with one writer; names: only left-overs of these entries (a folder of the user's)."""
    base = Path(folder)
    begins = _LEFT_OVERS if names is None else tuple(f"{mark}{name}-" for mark in _LEFT_OVERS for name in names)
    for entry in base.iterdir() if base.is_dir() else ():
        if entry.name.startswith(begins):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".tmp-{target.name}-{os.getpid()}")


def _write(path: Path, data: bytes) -> None:
    # A full disk may be reported by write, by fsync or by close: all three raise here.
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path, size: int) -> EsbnnError:
    if error.errno in _FULL:
        return RunError(f"{path}: the disk is full, {size:,} bytes are needed; nothing old was changed")
    if error.errno in _REFUSED:
        return UserError(f"{path}: cannot be written ({error.strerror})")
    return RunError(f"{path}: writing {size:,} bytes failed ({error.strerror or error})")
