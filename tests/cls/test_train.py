"""The trainer: it learns, reports, keeps what it should, and refuses what it cannot do."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esbnn_cls import train as trainer
from esbnn_cls.modelfolder import load_classifier
from esbnn_cls.recipe_file import build, load_recipe
from esbnn_cls.train import train
from esbnn_core.checkpoint import load_json, load_tensors
from esbnn_core.errors import RunError, UserError
from esbnn_core.training import Progress, binary_layers

import pytest
import torch
import yaml

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tiny: Callable[..., dict[str, Any]]) -> Run:
    """Train the tiny recipe, with some keys changed, into a folder."""

    def make(out: Path, resume: bool = False, **changes: Any) -> dict[str, Any]:
        return train(build(tiny(**changes), "test"), out, resume=resume, shown=False)

    return make


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_tensors(out / "last/model.safetensors")


def test_it_learns_and_leaves_what_is_needed(tmp_path: Path, run: Run, tiny: Callable[..., dict[str, Any]]) -> None:
    figures = run(tmp_path / "run", epochs=6, batch_size=64)
    assert figures["best_top1"] > 60
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert all(0 < float(row["flip_rate"]) < 0.5 for row in table)
    assert float(table[-1]["eval_top5"]) > float(table[-1]["eval_top1"])
    assert load_recipe(tmp_path / "run/recipe.yaml") == build(tiny(epochs=6, batch_size=64), "test")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"recipe.yaml", "metrics.csv", "checkpoints", "last", "best"}
    best = max(table, key=lambda row: float(row["eval_top1"]))
    model, config = load_classifier(tmp_path / "run/best")
    assert config["arch"] == "resnet20_cifar_irnet" and config["class_names"][3] == "3"
    assert config["preprocessing"]["input_size"] == [1, 8, 8] and config["training"]["step"] == int(best["step"])
    assert not model.training
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == [f"best-{best['step']}", f"step-{table[-1]['step']}"]
    assert not (tmp_path / "run/best/training_state").exists()


def test_two_runs_are_equal_and_another_seed_is_not(tmp_path: Path, run: Run) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed, epochs=1)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["fc.weight"], c["fc.weight"])


def test_the_order_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """begin_step once an optimizer step before its first micro-batch, with the right progress; the optimizer once after its last."""
    events: list[Any] = []

    def begin(model: torch.nn.Module, progress: Progress) -> None:
        events.append(progress)
        real(model, progress)

    real = trainer.begin_step
    monkeypatch.setattr(trainer, "begin_step", begin)
    backward = trainer.Accelerator.backward
    monkeypatch.setattr(trainer.Accelerator, "backward", lambda self, loss: (events.append("micro"), backward(self, loss)))
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (events.append("step"), step(self, *a))[1])
    run(tmp_path / "run", accumulation=2)
    assert len(events) == 22 * 4
    for number in range(22):
        progress, *rest = events[4 * number : 4 * number + 4]
        assert (progress.step, progress.epoch, progress.step_in_epoch) == (number, number // 11, number % 11)
        assert rest == ["micro", "micro", "step"]


def test_accumulated_parts_are_the_whole_batch(tmp_path: Path, run: Run) -> None:
    """The loss of an epoch without learning: the same images, though batch norm sees them in halves."""
    for parts in (1, 2):
        run(tmp_path / str(parts), accumulation=parts, epochs=1, optimizer={"lr": 0.0}, model="resnet18_cifar_irnet")
    one, two = (rows(tmp_path / str(parts))[0] for parts in (1, 2))
    assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=0.02)


def test_the_average_is_what_is_evaluated_and_saved(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "run", ema={"decay": 0.9}, epochs=2)
    averaged, state = weights(tmp_path / "run"), load_tensors(tmp_path / "run/last/training_state/tensors.safetensors")
    assert not torch.equal(averaged["fc.weight"], state["weights/fc.weight"])
    assert run(tmp_path / "run", resume=True, ema={"decay": 0.9}, epochs=2)["epoch"] == 2


def test_simans_stored_code_belongs_to_the_averaged_weights(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "run", model="resnet20_cifar_siman", ema={"decay": 0.8}, epochs=2)
    saved = weights(tmp_path / "run")
    model, _ = load_classifier(tmp_path / "run/last")
    for module in model.modules():
        if hasattr(module, "refresh"):
            module.refresh()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items() if name.endswith(".B"))


def test_mixed_labels_smoothing_clipping_and_adamw(tmp_path: Path, run: Run) -> None:
    figures = run(
        tmp_path / "run",
        augment={"mixup": 0.2, "cutmix": 1.0},
        loss={"label_smoothing": 0.1},
        clip_grad=1.0,
        optimizer={"name": "adamw", "lr": 1e-3},
        precision="bf16",
    )
    assert figures["train_loss"] > 1


def test_a_first_stage_with_real_weights_and_a_second_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    model = {"model": "resnet20_cifar_reactnet"}
    run(tmp_path / "one", weight_mode="real", epochs=1, **model)
    run(tmp_path / "two", init=str(tmp_path / "one/last"), epochs=1, optimizer={"lr": 0.0}, **model)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one if "running" not in name and "num_batches" not in name)
    for name, mode in (("one", "real"), ("two", "binary")):
        loaded, _ = load_classifier(tmp_path / name / "last")
        assert {layer.weight_mode for _, layer in binary_layers(loaded)} == {mode}
    with pytest.raises(UserError, match="do not fit the model"):
        run(tmp_path / "three", init=str(tmp_path / "one/last"), model="resnet20_cifar_irnet")


def test_a_teacher_may_take_the_labels_place(tmp_path: Path, run: Run, tiny: Callable[..., dict[str, Any]]) -> None:
    import timm
    from safetensors.torch import save_file

    teacher = timm.create_model("resnet20_cifar_irnet", num_classes=10, **tiny()["model_args"])
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    # The teacher is built by timm's name alone, so it has to have the default widths; a wrong file is one line.
    loss = {"name": "distribution", "teacher": "resnet20_cifar_irnet", "teacher_weights": str(tmp_path / "teacher.safetensors")}
    with pytest.raises(UserError, match=r"teacher\.safetensors: not weights of resnet20_cifar_irnet"):
        run(tmp_path / "run", loss=loss)


def test_nothing_is_evaluated_between_unless_asked_but_the_end_is(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "run", epochs=3, output={"eval_every": 5})
    assert [bool(row["eval_top1"]) for row in rows(tmp_path / "run")] == [False, False, True]


def test_tensorboard_on_request(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path / "run", epochs=1, output={"tensorboard": True})
    assert list((tmp_path / "run/tensorboard").glob("events*"))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    run(tmp_path / "run", epochs=1)
    before = weights(tmp_path / "run")
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1\)"):
        run(tmp_path / "other", optimizer={"lr": 1e30})
    assert not (tmp_path / "other/checkpoints").exists() or not list((tmp_path / "other/checkpoints").glob("step-*"))
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    import errno

    from esbnn_core import files

    run(tmp_path / "run", epochs=1, output={"save_steps": 4})
    real, written = files._write, []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if "step-" in str(path) and len(written) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(RunError, match=r"step-\d+: the disk is full, [\d,]+ bytes are needed"):
        run(tmp_path / "full", epochs=1, output={"save_steps": 4})
    monkeypatch.undo()
    left = [p.name for p in (tmp_path / "full/checkpoints").iterdir()]
    assert left == ["step-4"]
    run(tmp_path / "full", resume=True, epochs=1, output={"save_steps": 4})
    assert all(torch.equal(value, weights(tmp_path / "full")[key]) for key, value in weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 2000}, "more than the 1437 training images"),
        ({"model": "resnet20_cifar_irnets"}, "no model is called.*resnet20_cifar_irnet"),
        ({"model_args": {"tau": 2}}, "tau"),
        ({"model": "es_resnet20_cifar_irnet", "model_args": {"tau": 3}}, "tau"),
        ({"model_args": {"colour": 2}}, "cannot be built"),
        ({"model_args": {"num_classes": 4}}, "num_classes=4, but digits has 10"),
        ({"data": {"img_size": 32}}, "the image is 8x8, the model wants 32x32"),
        ({"data": {"path": "/nowhere"}}, "/nowhere: no such dataset"),
        ({"data": {"test": "exam"}}, "no split 'exam'"),
        ({"init": "/nowhere"}, "/nowhere: no such folder"),
        ({"schedule": {"warmup_epochs": 5, "warmup_prefix": True}}, "warmup_epochs=5 leaves none"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(tmp_path: Path, changes: dict[str, Any], words: str, run: Run) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_continued_with_another_recipe(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="holds a run already"):
        run(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match=r"was trained with optimizer\.lr=0\.1, now it is 0\.2"):
        run(tmp_path / "run", resume=True, epochs=1, optimizer={"lr": 0.2})
    with pytest.raises(UserError, match="epochs=1, now it is 3"):
        run(tmp_path / "run", resume=True, epochs=3)
    assert run(tmp_path / "run", resume=True, epochs=1, output={"tensorboard": False})["epoch"] == 1


@pytest.mark.parametrize("file", ["model.safetensors", "training_state/tensors.safetensors", "training_state/state.json"])
def test_a_harmed_checkpoint_is_named(tmp_path: Path, file: str, run: Run) -> None:
    run(tmp_path / "run", epochs=1)
    path = tmp_path / "run/last" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=file.rpartition("/")[2]):
        run(tmp_path / "run", resume=True, epochs=1)


def test_the_state_is_readable_json_without_pickles(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "run", epochs=1)
    state = load_json(tmp_path / "run/last/training_state/state.json")
    assert state["step"] == 11 and state["threads"] == 1 and state["recipe"]["model"] == "resnet20_cifar_irnet"
    names = load_tensors(tmp_path / "run/last/training_state/tensors.safetensors")
    assert any(name.startswith("optimizer/stages.0.0.unit1.conv.weight/momentum_buffer") for name in names)
    assert {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()} == {".json", ".safetensors", ".yaml", ".csv"}
    json.dumps(state, allow_nan=False)


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(tmp_path: Path, run: Run, tiny: Callable[..., dict[str, Any]]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny(accumulation=2)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(29600 + os.getpid() % 100)]
    command += ["-m", "esbnn_cls_cli", "train", "--config", str(recipe), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env={**os.environ, "ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best_top1") == 1
    run(tmp_path / "one", accumulation=2)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    # Batch statistics are each process's own, so the runs are alike, not equal.
    assert float(one[0]["train_loss"]) == pytest.approx(float(two[0]["train_loss"]), rel=0.1)
