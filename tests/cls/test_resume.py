"""Killed by SIGKILL, at random points and inside a checkpoint's write, a run resumes to the same end bit for bit (on the CPU)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = Path(__file__).parent / "resume_runs.py"
# Everything that has a state or draws random numbers, in one run.
FULL = {
    "accumulation": 2,
    "clip_grad": 5.0,
    "ema": {"decay": 0.9},
    "augment": {"padding": 1, "flip": 0.5, "mixup": 0.2, "cutmix": 1.0, "auto_augment": "rand-m5-mstd0.5", "erasing": 0.2},
    "optimizer": {"name": "adamw", "lr": 1e-3},
}


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., dict[str, Any]]) -> Run:
    """Let the script kill and resume trainings of the tiny recipe with some keys changed."""

    def make(mode: str, kills: int, **changes: Any) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tiny(output={"save_steps": 4}, **changes)))
        command = [sys.executable, str(SCRIPT), mode, str(tmp_path), str(recipe), str(kills)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr

    return make


def test_ten_kills_at_random_points(run: Run) -> None:
    run("random", 10)


def test_kills_inside_the_write_of_a_checkpoint(run: Run) -> None:
    run("write", 8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["random", "write"])
@pytest.mark.parametrize("model", ["es_resnet20_cifar_irnet", "resnet20_cifar_rbnn", "resnet20_cifar_siman", "es_resnet20_cifar_recu"])
def test_everything_with_a_state(run: Run, model: str, mode: str) -> None:
    own = {"tau": 2, "groups": 1} if model.startswith("es_") else {}
    run(mode, 10, model=model, model_args=own, **FULL, data={"workers": 2 if mode == "random" else 0})
