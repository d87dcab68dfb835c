"""Official checkpoints: imported, they answer as their authors' code does."""

from __future__ import annotations

import os
from pathlib import Path

from esbnn_cls.evaluate import evaluate
from esbnn_cls.importers import import_checkpoint, load_official, read_tensors
from esbnn_core.errors import UserError

import numpy as np
import pytest
import timm
import torch

DATA = Path(__file__).parents[1] / "data"
CHECKPOINTS = {"adabin": "adabin_resnet20_cifar10.pth", "fp": "resnet20_cifar10_fp.pth"}
LOGITS = {"adabin": "adabin_resnet20", "fp": "resnet20_fp"}
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def _images() -> torch.Tensor:
    pixels = np.load(DATA / "cifar10_exact_64.npz")["images"]
    return torch.from_numpy(((pixels / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("source", ["adabin", "fp"])
def test_imported_network_gives_the_official_logits(source: str) -> None:
    model = timm.create_model(f"resnet20_cifar_{source}").eval()
    report = load_official(model, read_tensors(DATA / "checkpoints" / CHECKPOINTS[source]), source)
    assert not report.ignored
    want = torch.from_numpy(np.load(DATA / "cifar10_exact_64.npz")[LOGITS[source]])
    with torch.no_grad():
        got = model(_images())
    assert torch.equal(got.argmax(1), want.argmax(1))
    # A binary network amplifies rounding: an activation next to its threshold may land on the other side (measured: 3 % of images).
    near = ((got - want).abs().amax(1) <= 1e-3).float().mean()
    assert near >= (0.9 if source == "adabin" else 1.0)


@pytest.mark.parametrize(("source", "right"), [("adabin", 905), ("fp", 932)])
def test_imported_checkpoint_answers_as_many_exact_images_right(source: str, right: int, tmp_path: Path) -> None:
    data = os.environ.get("ESBNN_DATA")
    if data is None:
        pytest.skip("ESBNN_DATA is not set: the 1,017 exact CIFAR-10 test images were left out")
    import_checkpoint(DATA / "checkpoints" / CHECKPOINTS[source], source, "resnet20_cifar", tmp_path / "model")
    figures = evaluate(tmp_path / "model", Path(data) / "cifar10_exact", shown=False)
    assert figures["images"] == 1017
    assert round(figures["top1"] * 1017 / 100) == right


def test_names_without_a_place_are_an_error_that_leaves_the_model_alone() -> None:
    tensors = read_tensors(DATA / "checkpoints" / CHECKPOINTS["adabin"])
    model = timm.create_model("resnet20_cifar_adabin")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"layer9\.0\.conv1\.weight has no place"):
        load_official(model, {**tensors, "layer9.0.conv1.weight": torch.zeros(1)}, "adabin")
    tensors.pop("layer1.0.conv1.weight")
    with pytest.raises(UserError, match=r"nothing for stages\.0\.0\.unit1\.conv\.weight"):
        load_official(model, tensors, "adabin")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_methods_file_is_refused() -> None:
    tensors = read_tensors(DATA / "checkpoints" / CHECKPOINTS["adabin"])
    with pytest.raises(UserError, match="not a recu checkpoint"):
        load_official(timm.create_model("resnet20_cifar_recu"), tensors, "recu")


@pytest.mark.parametrize("nested", ["state_dict", "model", None])
def test_layouts_of_files_are_recognised(nested: str | None, tmp_path: Path) -> None:
    tensors = {f"module.{k}": v for k, v in read_tensors(DATA / "checkpoints" / CHECKPOINTS["adabin"]).items()}
    torch.save({nested: tensors, "epoch": 3} if nested else tensors, tmp_path / "file.pth")
    assert set(read_tensors(tmp_path / "file.pth")) == {k.removeprefix("module.") for k in tensors}


def test_truncated_foreign_and_missing_files_are_one_line_errors(tmp_path: Path) -> None:
    whole = (DATA / "checkpoints" / CHECKPOINTS["adabin"]).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name in ("half.pth", "text.pth", "half.safetensors", "empty.pth", "absent.pth"):
        with pytest.raises(UserError) as caught:
            read_tensors(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": Path}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth"):
        read_tensors(tmp_path / "code.pth")


def test_unknown_sources_and_architectures_name_the_known_ones(tmp_path: Path) -> None:
    file = DATA / "checkpoints" / CHECKPOINTS["adabin"]
    with pytest.raises(UserError, match="known: adabin"):
        import_checkpoint(file, "nobody", "resnet20_cifar", tmp_path / "out")
    with pytest.raises(UserError, match="resnet20_cifar"):
        import_checkpoint(file, "adabin", "vgg", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_says_what_matched_and_what_was_left_out() -> None:
    tensors = {**read_tensors(DATA / "checkpoints" / CHECKPOINTS["adabin"]), "bn3.weight": torch.ones(3)}
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].clone()
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = 0
    text = load_official(timm.create_model("resnet20_cifar_adabin"), tensors, "adabin").describe()
    assert "195 tensors of the adabin checkpoint matched" in text
    assert "1 left out, such as bn3.weight" in text
    assert "1 latent weights are exactly at their threshold" in text
