"""Benches: what is reported, and how; never how fast anything is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from esbnn_cls.bench import BENCHES, TRAINING_STEP, training_step
from esbnn_core.bench import Bench, Target, format_bench, run_bench, select
from esbnn_core.errors import UserError
from esbnn_core.machine import describe_machine, git_commit

import bench as tool
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _same_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The training step on images so small that it is timed in milliseconds."""
    small = {"batch": 2, "size": (3, 8, 8)}
    cases = {
        "fp": training_step("resnet20_cifar_fp", **small),
        "irnet": training_step("resnet20_cifar_irnet", **small),
        "es": training_step("es_resnet20_cifar_irnet", tau=2, **small),
    }
    bench = Bench("tiny", "a tiny step", cases, (Target("irnet", "fp", 1.4), Target("es", "irnet", 1.9, "tau=2")), {"batch": 2})
    monkeypatch.setattr("esbnn_cls.bench.BENCHES", (bench,))
    return bench


def test_the_tool_writes_machine_commit_times_and_ratios(tiny: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert tool.main(["--rounds", "3", "--threads", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["kind"] == "bench"
    assert {"cpu", "cores", "features", "threads", "torch", "python", "date"} <= found["machine"].keys()
    assert found["machine"]["threads"] == 1
    assert "commit" in found
    (result,) = found["benches"]
    assert (result["name"], result["rounds"], result["facts"]) == ("tiny", 3, {"batch": 2})
    assert result["cases"].keys() == tiny.cases.keys()
    for case in result["cases"].values():
        assert len(case["times"]) == 3
        assert 0 < case["minimum"] <= case["median"]
    ratio = result["ratios"][1]
    assert (ratio["case"], ratio["against"], ratio["target"]) == ("es", "irnet", 1.9)
    assert ratio["median"] == result["cases"]["es"]["median"] / result["cases"]["irnet"]["median"]
    printed = capsys.readouterr().out
    assert "es / irnet" in printed and "target at most 1.90 (tau=2)" in printed
    assert str(found["machine"]["cpu"]) in printed


def test_the_training_bench_has_the_networks_and_targets_that_are_promised() -> None:
    assert TRAINING_STEP in BENCHES
    assert list(TRAINING_STEP.cases) == ["resnet20_cifar_fp", "resnet20_cifar_irnet", "resnet20_cifar_recu", "es_resnet20_cifar_irnet"]
    assert {(t.case, t.against): t.at_most for t in TRAINING_STEP.targets} == {
        ("resnet20_cifar_irnet", "resnet20_cifar_fp"): 1.4,
        ("resnet20_cifar_recu", "resnet20_cifar_fp"): 2.0,
        ("es_resnet20_cifar_irnet", "resnet20_cifar_irnet"): 1.9,
    }
    assert TRAINING_STEP.facts["batch"] == 128


def test_steps_of_all_cases_are_interleaved() -> None:
    order: list[str] = []
    cases = {name: lambda name=name: lambda: order.append(name) for name in "ab"}
    run_bench(Bench("x", "x", cases), rounds=2, warmup=1)
    assert order == list("ababab")


def test_a_time_limit_ends_the_rounds_but_measures_one() -> None:
    result = run_bench(Bench("x", "x", {"a": lambda: lambda: None}), rounds=1000, warmup=1, seconds=0.0)
    assert result["rounds"] == len(result["cases"]["a"]["times"]) == 1


def test_a_missed_target_is_printed_and_no_error() -> None:
    slow = Bench("x", "x", {"a": lambda: lambda: sum(range(2000)), "b": lambda: lambda: None}, (Target("a", "b", 1e-9),))
    assert "target at most 0.00" in format_bench(run_bench(slow, rounds=3))


def test_a_training_step_trains() -> None:
    # Seeds are set when a case is built, so both have the same weights and images; one of them makes two steps.
    torch.manual_seed(1)
    step = training_step("resnet20_cifar_irnet", batch=4, size=(3, 8, 8))()
    before = torch.random.get_rng_state()
    step()
    step()
    assert torch.equal(torch.random.get_rng_state(), before), "a step draws random numbers: cases would disturb each other"


def test_unknown_benches_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="no bench is called 'nope'; there are training_step"):
        select(BENCHES, ["nope"])
    assert tool.main(["--only", "nope"]) == 2


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_impossible_numbers_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([option, "0"]) == 2
    assert f"{option} 0: at least 1" in capsys.readouterr().err


def test_list_names_the_benches(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("training_step: ")


def test_the_machine_is_described_without_names_of_hosts_or_people() -> None:
    machine = describe_machine(3)
    assert machine["threads"] == 3
    assert machine["cores"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", machine["date"])
    import getpass
    import socket

    text = json.dumps(machine)
    assert not [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4 and name in text]


def test_the_commit_is_none_outside_a_repository(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", git_commit(ROOT) or "")
