"""Records: what a training run's folder says, as one small JSON object without local paths, to be kept after the run itself is gone."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from esbnn_cls.data import open_source
from esbnn_cls.history import COLUMNS
from esbnn_cls.modelfolder import load_classifier
from esbnn_cls.recipe import Recipe, to_dict
from esbnn_cls.recipe_file import build, load_recipe, shipped
from esbnn_core.accounting import count_ops
from esbnn_core.checkpoint import load_json
from esbnn_core.errors import UserError
from esbnn_core.machine import describe_machine
from esbnn_core.training import binary_layers

import yaml

__all__ = ["dump_record", "find_command", "public_recipe", "read_run"]

_OPTIONS = {"data.path": "--data", "epochs": "--epochs", "seed": "--seed", "threads": "--threads"}
_PATHS = (("data", "path"), ("init",), ("loss", "teacher_weights"))


def read_run(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    data: str | None = None,
    notes: Sequence[str] = (),
    commit: str | None = None,
) -> dict[str, Any]:
    """A run's record, JSON values only.

    folder: a run of the trainer. name: of the run (default: the folder's). data: what the data set is called in print (default: the
    last part of its path). notes: sentences that a reader of the figures has to know. commit: of the code.

    Keys: kind `run`, name, command, data {title, train_images, test_images}, notes, recipe (resolved, paths reduced to their last
    part), machine (this one; threads as the run had them), versions, commit, date (of the last epoch, UTC), finished, epochs {columns,
    rows} as in metrics.csv, final (last row's figures, best test top-1, hours), counted {input, totals, layers
    (names of the binary ones), capacities}, file_bytes.
    Raises UserError where the folder is not a run, or has no whole epoch yet.
    """
    base = Path(folder)
    table = base / "metrics.csv"
    for file in (table, base / "recipe.yaml", base / "last"):
        if not file.exists():
            raise UserError(f"{file}: is missing; wanted is the folder of a run of `esbnn-cls train` with at least one whole epoch")
    recipe = load_recipe(base / "recipe.yaml")
    rows = _read_csv(table)
    if not rows:
        raise UserError(f"{table}: has no epoch yet")
    state = load_json(base / "last" / "training_state" / "state.json")
    public = public_recipe(recipe)
    model, config = load_classifier(base / "last")
    for _, layer in binary_layers(model):
        layer.weight_mode = recipe.weight_mode
    size = tuple(config["preprocessing"]["input_size"])
    counted = count_ops(model, size)
    layers = [row.name for row in counted.rows if row.capacity is not None]
    tests = [row["eval_top1"] for row in rows if row["eval_top1"] is not None]
    return {
        "kind": "run",
        "name": name or base.resolve().name,
        "command": find_command(recipe),
        "data": {"title": data or public["data"]["path"], **_images(recipe)},
        "notes": list(notes),
        "recipe": public,
        "machine": describe_machine(state["threads"]),
        "versions": config["versions"],
        "commit": commit,
        "date": datetime.fromtimestamp(table.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "finished": len(rows) == recipe.epochs,
        "epochs": {"columns": list(COLUMNS), "rows": [[_short(row[column]) for column in COLUMNS] for row in rows]},
        "final": {
            **{column: _short(rows[-1][column]) for column in COLUMNS if column not in ("epoch", "step", "lr", "seconds")},
            "best_top1": _short(max(tests)) if tests else None,
            "hours": round(sum(row["seconds"] or 0.0 for row in rows) / 3600, 4),
        },
        "counted": {"input": list(size), "totals": counted.totals, "layers": layers, "capacities": counted.capacities},
        "file_bytes": (base / "last" / "model.safetensors").stat().st_size,
    }


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain values, every path reduced to its last part: where somebody keeps data is nobody else's concern."""
    tree = to_dict(recipe)
    for *sections, key in _PATHS:
        inner = tree
        for section in sections:
            inner = inner[section]
        value = inner[key]
        if value and not str(value).startswith("hfds/"):  # a name on the hub, not a path
            inner[key] = PurePath(value).name
    return tree


def find_command(recipe: Recipe) -> str | None:
    """A command that trains by this very recipe: the nearest shipped recipe and what differs from it. None where no command can say it."""
    recipe = build(public_recipe(recipe), "recipe")
    wanted = dict(_leaves(to_dict(recipe)))
    best: tuple[tuple[int, int], str, dict[str, Any]] | None = None
    for name in shipped():
        other = load_recipe(name)
        there = dict(_leaves(to_dict(other)))
        differing = {key: value for key, value in wanted.items() if there.get(key) != value}
        # Options that every command has weigh less than a network that is changed by hand.
        weight = (sum(1 if key in _OPTIONS else 10 for key in differing), abs(other.epochs - recipe.epochs))
        if best is None or weight < best[0]:
            best = (weight, name, differing)
    if best is None:
        return None
    _, name, differing = best
    if load_recipe(name, differing) != recipe:
        return None
    words = ["esbnn-cls", "train", "--config", name]
    for key, option in _OPTIONS.items():
        if key in differing:
            words += [option, str(differing[key])]
    for key, value in differing.items():
        if key not in _OPTIONS:
            words += ["--set", f"{key}={_flow(value)}"]
    return shlex.join(words)


def dump_record(value: Mapping[str, Any]) -> bytes:
    """A record (or an object with records in it) as JSON for version control: indented, a row of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    # Lists without lists or objects inside; the lines of one are joined, and nothing inside a line is touched.
    joined = re.sub(r"\[\n[^\[\]{}]*?\n\s*\]", lambda m: "".join(f"{line.strip()} " for line in m[0].split("\n")).strip(), text)
    return (joined.replace("[ ", "[").replace(" ]", "]") + "\n").encode()


def _images(recipe: Recipe) -> dict[str, int | None]:
    """How many images both splits have; None where the data set is not there (any more)."""
    counts: dict[str, int | None] = {}
    for key, split in (("train_images", recipe.data.train), ("test_images", recipe.data.test)):
        try:
            counts[key] = len(open_source(recipe.data.path, split))
        except UserError:
            counts[key] = None
    return counts


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {column: int(row[column]) if column in ("epoch", "step") else float(row[column]) if row[column] else None for column in COLUMNS}
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the metrics of a run ({error})") from error


def _short(value: Any) -> Any:
    """Six significant digits are more than anybody reads, and keep the files small."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; what a recipe keeps as free mappings (model_args, optimizer.args, schedule.table) is one value."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" in ("data", "augment", "optimizer", "schedule", "loss", "ema", "output"):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
