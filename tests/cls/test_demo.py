"""The demo: its results, its page, what it may replace, the checkpoints that ship with the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from esbnn_cls import demo
from esbnn_cls.comparison import Series, compare, reading, table, to_text
from esbnn_cls.demo.__main__ import main
from esbnn_cls.evaluate import evaluate
from esbnn_cls.recipe import to_dict
from esbnn_cls.recipe_file import load_recipe, shipped
from esbnn_core.checkpoint import load_json
from esbnn_core.cli_support import run_main
from esbnn_core.errors import UserError

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo_checkpoint"
PLOTS = ("accuracy.png", "capacity.png", "loss.png", "flips.png")
# Another processor sums floats in another order, and a value near a threshold may fall on its other side: two of 360 images.
TOP1_ATOL = 100 * 2 / 360


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of one seed and one epoch, with its checkpoints exported."""
    out = tmp_path_factory.mktemp("demo")
    assert main(["--quick", "--epochs", "1", "--out", str(out), "--export", str(out / "exported")]) == 0
    return out


@pytest.fixture(scope="module")
def results(quick: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_json(quick / "results.json")
    return found


def test_quick_demo_writes_results_plots_and_page(quick: Path) -> None:
    for name in PLOTS:
        pixels = np.asarray(Image.open(quick / name).convert("L"))
        assert pixels.shape[1] > 800
        assert pixels.std() > 5, f"{name} is blank"
    assert (quick / "index.html").stat().st_size < 2_000_000


def test_the_page_shows_every_number_of_the_results(quick: Path, results: dict[str, Any]) -> None:
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", (quick / "index.html").read_text())
    forms = {"test_top1": ".2f", "train_top1": ".2f", "ops": ",.0f", "ops_plus": ",.0f"}
    for network in results["networks"]:
        assert network["label"] in text
        for key, value in network["figures"].items():
            assert value is None or f">{format(value, forms.get(key, ',d'))}<" in text, f"{key} is not on the page"
        assert all(f">{accuracy:.2f}<" in text for accuracy in network["test_top1"])
    for run in results["runs"]:
        assert all(f">{capacity:,}<" in text for capacity in run["counted"]["capacities"])
    assert results["reading"] in text
    assert results["machine"]["cpu"] in text


def test_the_page_needs_nothing_from_elsewhere(quick: Path) -> None:
    page = (quick / "index.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img") == len(PLOTS)


def test_both_networks_have_the_same_budget(results: dict[str, Any]) -> None:
    plain, es = (to_dict(load_recipe(name)) for name in ("demo_digits", "es_demo_digits"))
    assert es["model_args"] == {**plain["model_args"], "tau": 2, "groups": 1}
    assert {**es, "model": "", "model_args": {}} == {**plain, "model": "", "model_args": {}}
    first, second = (network["figures"] for network in results["networks"])
    assert first["bops"] == second["bops"]
    assert first["params_binary"] == second["params_binary"]
    assert second["capacity_first"] == 2 * (first["capacity_first"] - 1) + 1


def test_the_results_hold_no_local_path(quick: Path) -> None:
    assert str(quick) not in (quick / "results.json").read_text()
    assert str(quick) not in (quick / "index.html").read_text()


def test_a_demo_replaces_an_earlier_one_and_leaves_other_files_alone(quick: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(quick, out, symlinks=True)
    (out / "notes.txt").write_text("mine")
    stale = out / "runs" / "demo_digits-7"
    shutil.copytree(out / "runs" / "demo_digits-0", stale, symlinks=True)
    before = load_json(out / "results.json")
    assert main(["--quick", "--epochs", "1", "--out", str(out), "--export", str(out / "exported")]) == 0
    assert not stale.exists()
    assert (out / "notes.txt").read_text() == "mine"
    after = load_json(out / "results.json")
    assert [n["test_top1"] for n in after["networks"]] == [n["test_top1"] for n in before["networks"]], "the same seed, another result"


@pytest.mark.parametrize("name", ["index.html", "results.json", "runs/demo_digits-0/thesis.tex"])
def test_what_is_not_the_demos_is_never_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert main(["--quick", "--out", str(tmp_path)]) == 2
    assert "give another folder to --out" in capsys.readouterr().err
    assert file.read_text() == "{}"


def test_export_refuses_a_foreign_folder(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text('{"arch": "resnet18"}')
    assert run_main(lambda: demo.export(quick, tmp_path, 0), "demo") == 2
    assert "is not a checkpoint of the demo" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["plain", "config.json"]


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--jobs", "0"], ["--epochs", "-1"]])
def test_impossible_numbers_are_refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), *arguments]) == 2
    assert f"{arguments[0]} {arguments[1]}: at least 1 is needed" in capsys.readouterr().err


def test_an_exported_network_answers_as_its_config_says(quick: Path) -> None:
    said = load_json(quick / "exported" / "es" / "config.json")["demo"]["test"]
    measured = evaluate(quick / "exported" / "es", "digits", shown=False)
    assert {key: measured[key] for key in said} == said


@pytest.mark.parametrize("name", ["plain", "es"])
def test_the_shipped_checkpoint_answers_as_its_config_says(name: str) -> None:
    config = load_json(EXAMPLES / name / "config.json")
    assert config["demo"]["recipe"] in shipped()
    said, measured = config["demo"]["test"], evaluate(EXAMPLES / name, "digits", shown=False)
    assert measured["images"] == said["images"]
    assert abs(measured["top1"] - said["top1"]) <= TOP1_ATOL
    assert said["top1"] > 90
    assert sum(file.stat().st_size for file in (EXAMPLES / name).iterdir()) < 300_000


def _record(model: str, seed: int, top1: float, images: int | None = 360) -> dict[str, Any]:
    return {
        "recipe": {"model": model, "model_args": {"tau": 2} if model.startswith("es_") else {}, "seed": seed},
        "data": {"title": "digits", "test_images": images},
        "final": {"eval_top1": top1, "train_top1": 99.0},
        "counted": {
            "totals": dict.fromkeys(("bops", "ops", "ops_plus", "params_binary", "params_real", "packed_bytes"), 0),
            "capacities": [],
        },
        "file_bytes": 1,
    }


def _series(model: str, *accuracies: float) -> Series:
    return Series(tuple(_record(model, seed, top1) for seed, top1 in enumerate(accuracies)))


def test_reading_says_no_more_than_the_seeds_allow() -> None:
    plain = _series("resnet20_cifar_irnet", 95.0, 96.0, 97.0)
    assert "neither network can be called better" in reading(plain, _series("es_resnet20_cifar_irnet", 95.5, 96.5, 97.5))
    assert "3.00 points above plain" in reading(plain, _series("es_resnet20_cifar_irnet", 98.0, 99.0, 100.0))
    assert "more than twice" in reading(plain, _series("es_resnet20_cifar_irnet", 98.0, 99.0, 100.0))
    assert "3.00 points below plain" in reading(plain, _series("es_resnet20_cifar_irnet", 92.0, 93.0, 94.0))


def test_reading_of_one_seed_says_what_the_test_images_allow() -> None:
    text = reading(_series("resnet20_cifar_irnet", 50.0), _series("es_resnet20_cifar_irnet", 52.0))
    # sqrt(2 * 50 * 50 / 360) = 3.73 points
    assert "one seed each" in text and "about 3.7" in text and "was not measured" in text


def test_compare_joins_seeds_and_keeps_recipes_apart() -> None:
    runs = [_record("es_resnet20_cifar_irnet", 1, 1.0), _record("resnet20_cifar_irnet", 0, 2.0), _record("es_resnet20_cifar_irnet", 0, 3.0)]
    other = _record("resnet20_cifar_irnet", 0, 4.0)
    other["recipe"]["epochs"] = 99
    groups = compare([*runs, other, _record("resnet20_cifar_recu", 0, 5.0)])
    assert [[s.label for s in group] for group in groups] == [["plain", "ES, tau = 2"], ["plain"], ["plain"]]
    assert groups[0][1].accuracies == (3.0, 1.0)


def test_a_network_without_binary_layers_has_no_capacity_in_the_table() -> None:
    text = to_text(table([_series("resnet20_cifar_fp", 90.0)]))
    assert "capacity" not in text and "90.00" in text


@pytest.mark.slow
def test_the_page_opens_in_a_browser(quick: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    picture = tmp_path / "page.png"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,2400"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", (quick / "index.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L")).astype(float)
    assert pixels.shape == (2400, 1280)
    # Heading and table, first pair of plots, second pair: a blank or half-loaded page has a band without structure.
    for band in np.split(pixels[:2100], 7):
        assert band.std() > 5
    assert (pixels < 100).mean() > 0.005, "no text"


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    one, two = (demo.run(tmp_path / str(jobs), (0, 1), epochs=2, jobs=jobs) for jobs in (1, 2))
    assert [s.accuracies for s in one] == [s.accuracies for s in two]
    histories = [[json.dumps(_without_seconds(r)) for s in found for r in s.records] for found in (one, two)]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_a_failure_in_another_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.VARIANTS, "plain", "irnet_resnet20_cifar10_short")  # has no data
    with pytest.raises(UserError, match="no dataset is given"):
        demo.run(tmp_path, (0,), epochs=1, jobs=2)


def _without_seconds(record: dict[str, Any]) -> Any:
    return [row[:-1] for row in record["epochs"]["rows"]]
