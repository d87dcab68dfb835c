"""The command `esbnn`: what it answers, what it refuses in one line, and that asking for help costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import esbnn_core  # noqa: F401  (before timm)
from esbnn_core import methods
from esbnn_core.catalogs import catalogs, create_model, model_names
from esbnn_core.cli import main
from esbnn_core.errors import UserError

import pytest

pytest.importorskip("esbnn_cls.models")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def imported_by(code: str) -> set[str]:
    """Top-level modules in a fresh process after running `code`."""
    quiet = "import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    script = f"{quiet}\n    {code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {"torch", "numpy", "timm", "torchvision", "esbnn_cls"}


@pytest.mark.parametrize("arguments", [["--help"], ["ops", "--help"], ["models"], ["models", "es_*"]])
def test_help_and_listing_models_import_nothing_heavy(arguments: list[str]) -> None:
    assert not imported_by(f"from esbnn_core.cli import main; main({arguments!r})") & HEAVY


def test_listing_methods_needs_no_task_package() -> None:
    assert not imported_by("from esbnn_core.cli import main; main(['methods'])") & {"timm", "torchvision", "esbnn_cls"}


def test_methods_are_listed_with_title_and_paper(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "methods", "--json", str(tmp_path / "m.json"))
    written = json.loads((tmp_path / "m.json").read_text())["methods"]
    assert code == 0
    assert [entry["name"] for entry in written] == methods.names()
    for name, entry in zip(methods.names(), written, strict=True):
        method = methods.get(name)
        for text in (name, method.title, method.paper.title, method.paper.venue, method.paper.url):
            assert text in out
        assert (entry["paper"]["title"], entry["options"]) == (method.paper.title, method.options())


def test_models_are_listed_by_pattern_and_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    everything = run(capsys, "models")[1].split()
    assert everything == model_names() == sorted(everything)
    assert {"es_resnet18_recu", "resnet20_cifar_irnet"} <= set(everything)
    assert run(capsys, "models", "es_*_irnet")[1].split() == [n for n in everything if n.startswith("es_") and n.endswith("_irnet")]
    assert run(capsys, "models", "nin")[1].split() == [n for n in everything if "nin" in n]
    code, out, err = run(capsys, "models", "vgg")
    assert (code, out) == (2, "")
    assert err == "esbnn: error: no model's name matches '*vgg*'; `esbnn models` without a pattern lists all of them\n"


def test_ops_writes_table_6(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "ops", "es_resnet18_recu", "--input", "3x224x224", "--json", str(tmp_path / "out.json"))
    value = json.loads((tmp_path / "out.json").read_text())
    totals = value["totals"]
    assert code == 0
    assert (totals["conv_flops"], totals["fc_flops"], totals["bops"]) == (137281536, 4096000, 1676279808)
    assert (totals["ops"], totals["bn_flops"], totals["ops_plus"]) == (167569408, 8232960, 175802368)
    assert {"params_binary", "params_real", "packed_bytes"} <= totals.keys()
    assert (value["model"], value["input_size"], value["model_args"]) == ("es_resnet18_recu", [3, 224, 224], {})
    assert [layer["capacity"] for layer in value["layers"] if layer["kind"] == "binary_conv"][:1] == [64 * 2 * 9 + 1]
    for text in ("es_resnet18_recu\n", "1.3728e8", "1.6763e9", "1.6757e8", "1.7580e8"):
        assert text in out


def test_model_arguments_and_the_models_own_input_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    arguments = ["--model-args", "tau=2", "groups=[1,1,2]", "head=n", "--model-args", "num_classes=7"]
    code, _, _ = run(capsys, "ops", "es_resnet20_cifar_irnet", *arguments, "--json", str(file))
    value = json.loads(file.read_text())
    assert code == 0
    assert (value["input_size"], value["model_args"]) == ([3, 32, 32], {"tau": 2, "groups": [1, 1, 2], "head": "n", "num_classes": 7})
    assert (value["totals"]["bops"], value["totals"]["fc_flops"]) == (40108032, 64 * 7)


def checkpoint(folder: Path, **changes: Any) -> Path:
    config = {"arch": "es_resnet20_cifar_recu", "model_args": {"tau": 4}, "preprocessing": {"input_size": [3, 24, 24]}, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_says_what_to_count(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, file = checkpoint(tmp_path / "run"), tmp_path / "out.json"
    code, _, _ = run(capsys, "ops", "--checkpoint", str(folder), "--json", str(file))
    value = json.loads(file.read_text())
    assert (code, value["model"], value["input_size"]) == (0, "es_resnet20_cifar_recu", [3, 24, 24])
    assert value["totals"]["bops"] == 40108032 * 9 // 16  # 24x24 instead of 32x32 pixels
    code, _, err = run(capsys, "ops", "resnet20_cifar_recu", "--checkpoint", str(folder))
    assert (code, "holds 'es_resnet20_cifar_recu', not 'resnet20_cifar_recu'" in err) == (2, True)
    code, _, err = run(capsys, "ops", "--checkpoint", str(folder), "--model-args", "tau=2")
    assert (code, "leave out --model-args" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["es_resnet18_recuu"], "no model is called 'es_resnet18_recuu'; the closest is 'es_resnet18_recu'"),
        ([], "ops needs a model's NAME or --checkpoint FOLDER"),
        (["resnet18_recu", "--input", "3x224"], "--input '3x224': wanted is channels x height x width"),
        (["resnet18_recu", "--input", "3x224x0"], "wanted is channels x height x width"),
        (["resnet20_cifar_irnet", "--input", "4x32x32"], "BinaryResNet cannot be run on an input of 1x4x32x32"),
        (["es_resnet20_cifar_irnet", "--model-args", "tau"], "--model-args 'tau': wanted is KEY=VALUE"),
        (["es_resnet20_cifar_irnet", "--model-args", "tau=3"], "layer 'stages.0.0.unit1' (16 -> 16 channels): tau=3, groups=1"),
        (["resnet20_cifar_irnet", "--model-args", "tau=2"], "is the plain network"),
        (["es_resnet20_cifar_irnet", "--model-args", "tao=2"], "es_resnet20_cifar_irnet cannot be built with {'tao': 2}"),
        (["--checkpoint", "nowhere"], "config.json: no such file"),
        (["--checkpoint", "{foreign}"], "not a checkpoint of these packages"),
        (["--checkpoint", "{renamed}"], "no model is called 'resnet99'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    foreign, renamed = checkpoint(tmp_path / "foreign", arch=None), checkpoint(tmp_path / "renamed", arch="resnet99")
    arguments = [a.format(foreign=foreign, renamed=renamed) for a in arguments]
    code, out, err = run(capsys, "ops", *arguments, "--json", str(tmp_path / "out.json"))
    assert (code, out) == (2, "")
    assert err.startswith("esbnn: error: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out.json").exists()


def test_an_unknown_command_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["opps"])
    assert stop.value.code == 2


def test_without_a_package_of_models_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esbnn_core.catalogs.entry_points", lambda **_: [])
    assert catalogs() == []
    with pytest.raises(UserError, match="no package with models is installed"):
        create_model("resnet18_recu")


def test_the_module_prints_versions() -> None:
    done = subprocess.run([sys.executable, "-m", "esbnn_core"], capture_output=True, text=True, check=True)
    first = [line.split()[0] for line in done.stdout.splitlines()]
    assert first == ["python", "torch", "torchvision", "numpy", "timm", "esbnn-core", "esbnn-cls", "esbnn-det", "esbnn-sr"]
    assert "(operators: " in done.stdout
