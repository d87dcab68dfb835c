"""Binary super-resolution in diffusers style. So far the package only installs, with everything that it will need; it holds no network."""

from __future__ import annotations

from typing import Any

import esbnn_core  # noqa: F401  (first: it makes torchvision importable where its compiled operators do not load)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("esbnn-sr")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
