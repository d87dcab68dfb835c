"""Shared by the classifiers' tests: a recipe that trains in less than a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_TINY: dict[str, Any] = {
    "model": "resnet20_cifar_irnet",
    "model_args": {"widths": [8, 8, 16], "depths": [1, 1, 1], "in_chans": 1},
    "epochs": 2,
    "batch_size": 128,
    "threads": 1,
    "data": {"path": "digits", "img_size": 8, "mean": [0.3], "std": [0.4]},
    "augment": {"padding": 1, "flip": 0.0},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """A recipe's tree for scikit-learn's digits and a tiny binary ResNet, with some keys changed (sections are merged)."""

    def make(**changes: Any) -> dict[str, Any]:
        merged = dict(_TINY)
        for key, value in changes.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
        return merged

    return make
