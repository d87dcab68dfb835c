"""Model folders and atomic writes: round trips, errors that name the file, nothing half-written whenever something fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

from esbnn_core.checkpoint import load_model, save_model
from esbnn_core.errors import RunError, UserError
from esbnn_core.files import point, remove_folder, sweep, write_file, write_folder

import pytest
import torch

STATE = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7), "flag": torch.tensor([True, False])}


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    save_model(tmp_path / "m", STATE, {"arch": "a", "lr": 0.1})
    state, config = load_model(tmp_path / "m")
    assert config == {"arch": "a", "lr": 0.1}
    assert set(state) == set(STATE)
    assert all(torch.equal(state[k], STATE[k]) and state[k].dtype == STATE[k].dtype for k in STATE)


def test_views_and_tied_weights_are_stored_once_and_come_back(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    save_model(tmp_path / "m", {"a": weight, "b": weight, "t": weight.t(), "row": weight[3]}, {})
    state, _ = load_model(tmp_path / "m")
    assert torch.equal(state["b"], weight) and torch.equal(state["t"], weight.t()) and torch.equal(state["row"], weight[3])
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 2.5 * weight.numel() * 4


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    save_model(tmp_path / "m", STATE, {})
    state, _ = load_model(tmp_path / "m")
    remove_folder(tmp_path / "m")
    state["weight"].add_(1)
    assert state["weight"][0, 0] == 1


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _foreign(folder: Path) -> None:
    torch.save(STATE, folder / "model.safetensors")


def _no_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _half_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"arch": "res')


def _list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


@pytest.mark.parametrize(
    ("harm", "file"),
    [(_truncate, "model"), (_foreign, "model"), (_no_model, "model"), (_half_config, "config"), (_list_config, "config")],
)
def test_a_harmed_folder_is_one_line_that_names_the_file(tmp_path: Path, harm, file: str) -> None:
    save_model(tmp_path / "m", STATE, {"arch": "a"})
    harm(tmp_path / "m")
    with pytest.raises(UserError, match=f"m/{file}") as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value).strip()


def test_no_folder_and_a_file_instead_of_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "none")
    (tmp_path / "file.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="a checkpoint is a folder"):
        load_model(tmp_path / "file.pth")


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", STATE, {"n": 1})
    with pytest.raises(UserError, match="exists already"):
        save_model(tmp_path / "m", STATE, {"n": 2})
    assert load_model(tmp_path / "m")[1] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(("call", "at"), [("write", 1), ("fsync", 1), ("fsync", 3), ("fsync", 5), ("rename", 1), ("replace", 1)])
def test_a_disk_that_fills_up_leaves_the_old_and_nothing_else(tmp_path: Path, monkeypatch, call: str, at: int) -> None:
    write_file(tmp_path / "f", b"old")
    save_model(tmp_path / "m", STATE, {"n": 1})
    calls = 0
    real_open, real = open, getattr(os, call, None)

    def full(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    class Full:
        """A file whose write fails."""

        def __init__(self, *args) -> None:
            self.file = real_open(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args) -> None:
            self.file.__exit__(*args)

        def write(self, data: bytes) -> int:
            self.file.write(data[:1])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("builtins.open", Full)
        else:
            patch.setattr(os, call, full)
        messages: list[str] = []
        for attempt in (
            lambda: write_file(tmp_path / "f", b"new contents"),
            lambda: save_model(tmp_path / "other", STATE, {"n": 2}),
            lambda: point(tmp_path / "last", "m"),
        ):
            try:
                attempt()
            except RunError as error:
                messages.append(str(error))
    assert messages
    assert all("the disk is full" in text and "bytes are needed" in text and str(tmp_path) in text for text in messages)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp-")]
    assert (tmp_path / "f").read_bytes() in (b"old", b"new contents")
    assert load_model(tmp_path / "m")[1] == {"n": 1}
    if (tmp_path / "other").exists():
        assert load_model(tmp_path / "other")[1] == {"n": 2}


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(RunError, match=r"model.*disk is full, [\d,]+ bytes"):
        write_folder(tmp_path / "model", {"a": b"x" * 100})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "file" / "x", b"")


def test_links_move_and_never_hide_a_real_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point(tmp_path / "last", name)
        assert os.readlink(tmp_path / "last") == name
    with pytest.raises(UserError, match="in the way"):
        point(tmp_path / "a", "b")


def test_sweeping_removes_left_overs_only(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-3-99" / "inner").mkdir(parents=True)
    (tmp_path / ".del-step-1-99").mkdir()
    (tmp_path / ".tmp-file-1").write_text("")
    (tmp_path / "step-3").mkdir()
    (tmp_path / ".hidden").write_text("")
    sweep(tmp_path, ["file"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".del-step-1-99", ".hidden", ".tmp-step-3-99", "step-3"]
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "step-3"]


def test_nan_has_no_place_in_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_model(tmp_path / "m", STATE, {"x": float("nan")})
    assert not list(tmp_path.iterdir())
