"""`python -m esbnn_core`: versions of everything that decides a number."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("esbnn-core", "esbnn-cls", "esbnn-det", "esbnn-sr")


def main() -> None:
    print(f"{'python':<13}{platform.python_version()} ({platform.system()} {platform.machine()})")
    for name in ("torch", "torchvision", "numpy", "timm"):
        print(f"{name:<13}{_version(name)}" + (_operators() if name == "torchvision" else ""))
    for name in PACKAGES:
        print(f"{name:<13}{_version(name)}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _operators() -> str:
    """Whose operators torchvision works with: its compiled ones, or our stand-ins."""
    from esbnn_core import _torchvision

    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        return "" if _version("torchvision") == "not installed" else f" (cannot be imported: {error})"
    except RuntimeError as error:  # its operators did not load, and the stand-ins are switched off
        return f" (cannot be imported: {str(error).splitlines()[0]})"
    return " (operators: stand-ins of esbnn-core)" if _torchvision.active() else " (operators: compiled)"


if __name__ == "__main__":
    main()
