"""Records of runs and the page that is made from them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esbnn_cls.recipe import to_dict
from esbnn_cls.recipe_file import build, load_recipe
from esbnn_cls.record import dump_record, find_command, public_recipe, read_run
from esbnn_cls.train import train
from esbnn_core.errors import UserError

import collect_run
import pytest
import results

DOCS = Path(__file__).parents[2] / "docs"
NOTE = "These digits are small."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `plain` and `es` of two tiny runs."""
    base = tmp_path_factory.mktemp("runs")
    args: dict[str, Any] = {"widths": [8, 8, 16], "depths": [1, 1, 1], "in_chans": 1}
    tree: dict[str, Any] = {
        "model": "resnet20_cifar_irnet",
        "model_args": args,
        "epochs": 2,
        "threads": 1,
        "data": {"path": "digits", "img_size": 8, "mean": [0.3], "std": [0.4]},
        "augment": {"padding": 1, "flip": 0.0},
    }
    train(build(tree, "recipe"), base / "plain", shown=False)
    es = {**tree, "model": "es_resnet20_cifar_irnet", "model_args": {**args, "tau": 2}}
    train(build(es, "recipe"), base / "es", shown=False)
    return base


@pytest.fixture(scope="module")
def docs(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docs folder with both records, a bench's, and the page made from them."""
    docs = tmp_path_factory.mktemp("docs")
    for name in ("plain", "es"):
        assert collect_run.main([str(runs / name), str(docs / "runs" / f"{name}.json"), "--data", "Some digits", "--note", NOTE]) == 0
    bench = {
        "kind": "bench",
        "quick": True,
        "commit": None,
        "machine": json.loads((docs / "runs" / "es.json").read_text())["machine"],
        "benches": [
            {
                "name": "step",
                "title": "a step",
                "facts": {},
                "warmup": 1,
                "rounds": 2,
                "cases": {
                    "a": {"median": 0.2, "minimum": 0.1, "times": [0.1, 0.3]},
                    "b": {"median": 0.1, "minimum": 0.1, "times": [0.1, 0.1]},
                },
                "ratios": [{"case": "a", "against": "b", "median": 2.0, "minimum": 1.0, "target": 1.4, "why": ""}],
            }
        ],
    }
    (docs / "runs" / "bench.json").write_text(json.dumps(bench))
    assert results.main(["--docs", str(docs)]) == 0
    return docs


def record(docs: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((docs / "runs" / f"{name}.json").read_text())
    return found


def test_a_record_holds_the_whole_run(docs: Path, runs: Path) -> None:
    found = record(docs, "es")
    assert (found["kind"], found["name"], found["finished"]) == ("run", "es", True)
    assert found["data"] == {"title": "Some digits", "train_images": 1437, "test_images": 360}
    assert found["recipe"]["model_args"]["tau"] == 2
    assert found["machine"]["threads"] == 1
    lines = (runs / "es" / "metrics.csv").read_text().strip().split("\n")
    assert found["epochs"]["columns"] == lines[0].split(",")
    assert [[float(f"{float(v):.6g}") for v in line.split(",")] for line in lines[1:]] == found["epochs"]["rows"]
    assert found["final"]["eval_top1"] == found["epochs"]["rows"][-1][6]
    assert found["counted"]["totals"].keys() >= {"bops", "ops", "ops_plus", "params_binary", "params_real", "packed_bytes"}
    assert len(found["counted"]["capacities"]) == len(found["counted"]["layers"]) == 6
    assert found["file_bytes"] == (runs / "es" / "last" / "model.safetensors").stat().st_size


def test_a_record_holds_no_local_path(tmp_path: Path, runs: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(runs / "plain", moved, symlinks=True)
    text = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(
        text.replace("path: digits", "path: /somebody/secret/cifar10").replace("init: null", "init: /home/me/w")
    )
    found = read_run(moved)
    assert found["recipe"]["data"]["path"] == "cifar10"
    assert found["recipe"]["init"] == "w"
    assert found["data"] == {"title": "cifar10", "train_images": None, "test_images": None}
    assert not re.search(r"/somebody|/home|secret", json.dumps(found) + str(tmp_path in found.values()))
    assert str(tmp_path) not in json.dumps(found)


def test_records_are_one_line_a_row(docs: Path) -> None:
    text = (docs / "runs" / "plain.json").read_text()
    assert re.search(r"\n *\[1, 11, 0\.1, .*\],?\n", text)
    assert len(text) < 8000


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, 'b, [c] "d"'], "e": [[1], []]}, {"text": ["two  blanks", "1"], "x": {"y": ["ä"]}}])
def test_dumped_records_read_back_equal(value: dict[str, Any]) -> None:
    assert json.loads(dump_record(value)) == value


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        ("irnet_resnet20_cifar10_short", {}, "--config irnet_resnet20_cifar10_short"),
        ("es_recu_resnet20_cifar10", {"data.path": "/x/cifar10", "epochs": 10, "seed": 3}, "--data cifar10 --epochs 10 --seed 3"),
        ("demo_digits", {"optimizer.lr": 0.05, "augment.scale": [0.5, 1.0]}, "--set 'augment.scale=[0.5, 1.0]' --set optimizer.lr=0.05"),
        ("demo_digits", {"data.path": "hfds/some/digits", "model_args": {"in_chans": 1}}, "--data hfds/some/digits"),
        ("irnet_resnet20_cifar10", {"schedule.table": {0: 0.1, 5: 0.01}}, "--set 'schedule.table={0: 0.1, 5: 0.01}'"),
    ],
)
def test_the_found_command_gives_the_recipe_again(config: str, settings: dict[str, Any], words: str) -> None:
    import shlex

    recipe = load_recipe(config, settings)
    command = find_command(recipe)
    assert command is not None and words in command
    parts = shlex.split(command)
    assert parts[:3] == ["esbnn-cls", "train", "--config"]
    options = {"--data": "data.path", "--epochs": "epochs", "--seed": "seed", "--threads": "threads"}
    again = [v if o == "--set" else f"{options[o]}={v}" for o, v in zip(parts[4::2], parts[5::2], strict=True)]
    assert to_dict(load_recipe(parts[3], again)) == public_recipe(recipe)


def test_collect_refuses_what_is_no_run_and_what_is_no_record(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect_run.main([str(tmp_path), str(tmp_path / "x.json")]) == 2
    assert "wanted is the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
    foreign = tmp_path / "package.json"
    foreign.write_text("{}")
    assert collect_run.main([str(runs / "es"), str(foreign)]) == 2
    assert foreign.read_text() == "{}"
    mine = tmp_path / "es.json"
    assert [collect_run.main([str(runs / "es"), str(mine)]) for _ in range(2)] == [0, 0], "an older record is replaced"


def test_a_run_without_an_epoch_is_refused(tmp_path: Path, runs: Path) -> None:
    shutil.copytree(runs / "plain", tmp_path / "run", symlinks=True)
    table = tmp_path / "run" / "metrics.csv"
    table.write_text(table.read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match="has no epoch yet"):
        read_run(tmp_path / "run")
    table.write_text("epoch,step\n1,what\n")
    with pytest.raises(UserError, match="not the metrics of a run"):
        read_run(tmp_path / "run")


def test_the_page_has_the_figures_of_the_records(docs: Path) -> None:
    page = (docs / "results.md").read_text()
    plain, es = record(docs, "plain"), record(docs, "es")
    assert "## IR-Net ResNet-8 of widths 8, 8, 16 on Some digits, 2 epochs" in page
    for key, form in (("eval_top1", ".2f"), ("train_top1", ".2f")):
        assert f"| {plain['final'][key]:{form}} | {es['final'][key]:{form}} |" in page
    for key in ("bops", "params_binary", "params_real", "packed_bytes"):
        assert f"| {plain['counted']['totals'][key]:,} | {es['counted']['totals'][key]:,} |" in page
    for found in (plain, es):
        assert found["command"] in page
        assert f"(runs/{found['name']}.json)" in page
    assert page.count(NOTE) == 1
    assert "with one seed each" in page
    assert "| a / b | 2.00 | 1.00 | 1.40 |" in page
    assert "paper" not in page.split("## Time of steps")[1], "digits have no figures in the paper"


def test_every_picture_of_the_page_exists(docs: Path) -> None:
    named = re.findall(r'src="(images/[^"]+)"', (docs / "results.md").read_text())
    assert len(named) == 4
    assert {docs / name for name in named} == set((docs / "images").iterdir())


def test_check_tells_a_page_that_is_out_of_date(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--docs", str(docs), "--check"]) == 0
    page = docs / "results.md"
    kept = page.read_text()
    page.write_text(kept.replace("Reading", "Praise"))
    assert results.main(["--docs", str(docs), "--check"]) == 1
    assert "run python tools/results.py" in capsys.readouterr().err
    page.write_text(kept)


@pytest.fixture
def changed(docs: Path) -> Callable[..., str]:
    """The page after changes to the `es` record."""

    def make(change: Callable[[dict[str, Any]], None], both: bool = False) -> str:
        records = results.read_records(docs / "runs")
        for name in ("plain.json", "es.json") if both else ("es.json",):
            change(records[name])
        return str(results.render(records, pictures=False)[0])

    return make


def test_an_unfinished_run_is_said_and_not_compared(changed: Callable[..., str]) -> None:
    page = changed(lambda r: r.update(finished=False))
    assert "es has only 2 of 2 epochs" in page
    assert "with one seed each" not in page


def test_a_short_schedule_and_the_papers_figures_are_said(changed: Callable[..., str]) -> None:
    def on_cifar(found: dict[str, Any]) -> None:
        found["recipe"]["data"]["path"] = "cifar10"
        found["recipe"]["model_args"] = {"tau": 2} if found["recipe"]["model"].startswith("es_") else {}

    page = changed(on_cifar, both=True)
    assert "2 epochs of training; the method's own recipe has 400." in page
    assert "| IR-Net ResNet-20 | 86.5 | 89.7 |" in page
    assert "reported by the paper, not measured here" in page


@pytest.mark.parametrize("text", ["{}", "[]", '{"kind": "recipe"}', "{"])
def test_a_foreign_json_among_the_records_is_an_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert results.main(["--docs", str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err
    (tmp_path / "runs" / "x.json").write_text(text)
    assert results.main(["--docs", str(tmp_path)]) == 2
    assert "x.json" in capsys.readouterr().err


def test_the_projects_page_is_what_its_records_give() -> None:
    assert results.main(["--check"]) == 0


def test_the_projects_records_hold_no_local_path() -> None:
    for file in (DOCS / "runs").glob("*.json"):
        assert not re.search(r'["\s=]/[\w.-]+/', file.read_text()), f"{file.name} names an absolute path"
