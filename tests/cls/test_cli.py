"""The command: quick help, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import esbnn_cls_cli
from esbnn_core.errors import RunError, UserError

import pytest
import torch
import yaml


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., dict[str, Any]]) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny(epochs=1)))
    return str(file)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that ends with 2; returns its one line."""
    assert esbnn_cls_cli.main(arguments) == 2
    return one_line(capsys.readouterr().err)


def one_line(text: str) -> str:
    lines = [line for line in text.strip().split("\n") if not line.startswith(("note", "decoding"))]
    assert len(lines) == 1 and lines[0].startswith("esbnn-cls: error: "), text
    return lines[0]


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, esbnn_cls_cli\ntry: esbnn_cls_cli.main(['train', '--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--config" in done.stdout
    assert time.perf_counter() - began < 5  # half a second on a quiet machine; the import is what matters


def test_train_resume_and_evaluate(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, answer = tmp_path / "run", tmp_path / "new" / "train.json"
    command = ["train", "--config", recipe, "--out", str(out), "--seed", "3", "--threads", "1", "--epochs", "2", "--set", "lr=0.05"]
    assert esbnn_cls_cli.main([*command, "--json", str(answer)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["epoch"] == 2 and json.loads(answer.read_text())["best_top1"] == pytest.approx(printed["best_top1"], abs=1e-3)
    resolved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (resolved["seed"], resolved["epochs"], resolved["optimizer"]["lr"]) == (3, 2, 0.05)
    assert esbnn_cls_cli.main([*command, "--resume"]) == 0
    assert esbnn_cls_cli.main(["train", "--resume", "--out", str(out)]) == 0
    capsys.readouterr()
    scores = tmp_path / "scores.json"
    assert esbnn_cls_cli.main(["eval", str(out / "best"), "--data", "digits", "--json", str(scores)]) == 0
    found = json.loads(scores.read_text())
    assert found["top1"] == pytest.approx(printed["best_top1"], abs=1e-3) and found["images"] == 360


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert esbnn_cls_cli.main(["train", "--list"]) == 0
    assert "es_recu_resnet20_cifar10_short" in capsys.readouterr().out.split()


def test_mistakes_of_train(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert "--config" in fails(capsys, "train", *out)
    assert "did you mean" in fails(capsys, "train", "--config", "irnet_resnet20_cifar100", *out)
    assert "unknown key 'learning'" in fails(capsys, "train", "--config", recipe, "--set", "learning=3", *out)
    assert "no such dataset" in fails(capsys, "train", "--config", recipe, "--data", "/nowhere", *out)
    assert "wants 16x16" in fails(capsys, "train", "--config", recipe, "--set", "data.img_size=16", *out)
    assert "largest" in fails(
        capsys, "train", "--config", recipe, "--set", "model=es_resnet20_cifar_irnet", "--set", "model_args.tau=64", *out
    )
    assert "no model is called" in fails(capsys, "train", "--config", recipe, "--set", "model=resnet20_cifar_irnetto", *out)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(capsys, "train", "--config", recipe, "--out", str(tmp_path / "file"))


def test_mistakes_of_eval(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert esbnn_cls_cli.main(["train", "--config", recipe, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    good = str(tmp_path / "run/last")
    assert "no split 'exam'" in fails(capsys, "eval", good, "--data", "digits", "--split", "exam")
    assert "no such folder" in fails(capsys, "eval", str(tmp_path / "none"), "--data", "digits")
    file = tmp_path / "run/last/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: not a whole safetensors file" in fails(capsys, "eval", good, "--data", "digits")
    torch.save({"a": torch.zeros(3)}, file)
    assert "model.safetensors: not a whole safetensors file" in fails(capsys, "eval", good, "--data", "digits")
    file.write_bytes(whole)
    (tmp_path / "other.json").mkdir()
    assert "cannot be written" in fails(capsys, "eval", good, "--data", "digits", "--json", str(tmp_path / "other.json"))


def test_a_loss_that_is_not_finite_ends_with_1(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert esbnn_cls_cli.main(["train", "--config", recipe, "--set", "lr=1e30", "--out", str(tmp_path / "run")]) == 1
    assert "the loss is" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, recipe: str) -> None:
    """A small file system of its own, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = (
        f"mount -t tmpfs -o size=100k none {disk} && {sys.executable} -m esbnn_cls_cli train --config {recipe} --out {disk}/run; code=$?; "
    )
    inside += f"find {disk} -name '.tmp*'; exit $code"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, env=dict(os.environ))
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 1 and "the disk is full" in done.stderr and "bytes are needed" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_exit_codes_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    from esbnn_core.cli_support import run_main

    def raising(error: BaseException) -> Callable[[], int]:
        def body() -> int:
            raise error

        return body

    assert run_main(raising(UserError("two\nlines")), "p") == 2
    assert run_main(raising(RunError("x")), "p") == 1
    assert run_main(raising(KeyboardInterrupt()), "p") == 130
    assert capsys.readouterr().err == "p: error: two lines\np: error: x\np: interrupted\n"
    with pytest.raises(ZeroDivisionError):
        run_main(raising(ZeroDivisionError()), "p")
