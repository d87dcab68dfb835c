"""The demo: train the plain and the expanded network on scikit-learn's digits with the real trainer, compare, report.

`python -m esbnn_cls.demo` (or `make demo`). Every figure in its table comes from this very run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import esbnn_cls.models  # noqa: F401  (registers our models with timm)
from esbnn_cls.comparison import Series, figures, reading
from esbnn_cls.recipe import Recipe
from esbnn_cls.recipe_file import load_recipe
from esbnn_cls.record import dump_record, read_run
from esbnn_cls.train import train
from esbnn_core.checkpoint import load_json, load_model, save_model
from esbnn_core.errors import RunError, UserError
from esbnn_core.files import remove_folder, write_file
from esbnn_core.machine import cores, describe_machine, git_commit
from esbnn_core.progress import Bar, say

__all__ = ["VARIANTS", "export", "run"]

VARIANTS = {"plain": "demo_digits", "es": "es_demo_digits"}
"""What is compared: short name -> shipped recipe. The recipes differ in the network alone."""

_DATA = "digits of scikit-learn (8x8, grey)"
_RESULTS, _PAGE = "results.json", "index.html"
_PLOTS = ("accuracy.png", "capacity.png", "loss.png", "flips.png")


def run(out: Path, seeds: Sequence[int] = (0, 1, 2), epochs: int | None = None, jobs: int | None = None) -> list[Series]:
    """Train every variant with every seed into `out`; write results.json, four plots and index.html there.

    epochs: instead of the recipes' own. jobs: runs at a time (None: one a core). What an earlier demo left in `out` is replaced.
    Raises UserError where `out` holds files of these names that are not a demo's.
    """
    began = time.monotonic()
    changes = {} if epochs is None else {"epochs": epochs}
    # One thread a run: the result does not depend on the number of cores. The longer runs come first, the last ones end together.
    plan = [
        (load_recipe(name, {"seed": seed, "threads": 1, **changes}), out / "runs" / f"{name}-{seed}")
        for name in reversed(VARIANTS.values())
        for seed in seeds
    ]
    _make_room(out)
    _train_all(plan, min(len(plan), jobs or cores()))
    commit = git_commit(Path(__file__).parent)
    records = {name: [] for name in VARIANTS.values()}  # type: dict[str, list[dict[str, Any]]]
    for recipe, folder in plan:
        name = folder.name.rpartition("-")[0]
        records[name].append(read_run(folder, name=f"{name}, seed {recipe.seed}", data=_DATA, commit=commit))
    compared = [Series(tuple(runs)) for runs in records.values()]
    _report(out, compared, time.monotonic() - began)
    return compared


def export(out: Path, target: Path, seed: int) -> None:
    """Copy the trained networks of one seed from a demo's folder to target/plain and target/es, with their test figures in config.json.

    An earlier export is replaced; a folder that is something else is a UserError.
    """
    from esbnn_cls.evaluate import evaluate

    for short, name in VARIANTS.items():
        folder, place = out / "runs" / f"{name}-{seed}" / "last", target / short
        if place.exists() and "demo" not in _json_or_nothing(place / "config.json"):
            raise UserError(f"{place}: exists and is not a checkpoint of the demo; give another folder to --export")
        measured = evaluate(folder, "digits", shown=False)
        weights, config = load_model(folder)
        config["demo"] = {
            "recipe": name,
            "seed": seed,
            "test": {key: measured[key] for key in ("top1", "top5", "loss", "images")},
        }
        config.pop("training")
        remove_folder(place)
        save_model(place, weights, config)


def _make_room(out: Path) -> None:
    """Remove an earlier demo's runs; files are replaced one by one when there is something to put in their place."""
    if _json_or_nothing(out / _RESULTS).get("kind") != "demo":
        for name in (_RESULTS, _PAGE, *_PLOTS):
            if (out / name).exists():
                raise UserError(f"{out / name}: exists and is not the demo's; give another folder to --out")
    for name in VARIANTS.values():
        for folder in sorted((out / "runs").glob(f"{name}-*")):
            if any(folder.iterdir()) and not (folder / "recipe.yaml").exists():
                raise UserError(f"{folder}: exists and is not a run of the demo; give another folder to --out")
            remove_folder(folder)


def _train_all(plan: Sequence[tuple[Recipe, Path]], jobs: int) -> None:
    """Train by every recipe. Networks of this size gain nothing from threads, so every core takes a run of its own."""
    if jobs == 1:
        for recipe, folder in plan:
            _say(recipe, train(recipe, folder, shown=False))
        return
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
        Bar(sum(recipe.epochs for recipe, _ in plan), f"{len(plan)} runs, {jobs} at a time", unit="epoch") as bar,
    ):
        recipes = {pool.submit(train, recipe, folder, shown=False): recipe for recipe, folder in plan}
        waiting = set(recipes)
        while waiting:
            done, waiting = wait(waiting, timeout=2, return_when=FIRST_COMPLETED)
            bar.advance(sum(_epochs_done(folder) for _, folder in plan) - bar.done)
            for future in done:
                try:
                    _say(recipes[future], future.result())
                except BaseException as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    if isinstance(error, BrokenProcessPool):
                        raise RunError("a training process was killed, perhaps for want of memory; try --jobs 1") from error
                    raise


def _epochs_done(folder: Path) -> int:
    try:
        return max(0, (folder / "metrics.csv").read_text().count("\n") - 1)
    except OSError:
        return 0


def _say(recipe: Recipe, last: dict[str, Any]) -> None:
    network = "ES" if recipe.model.startswith("es_") else "plain"
    say(f"{network}, seed {recipe.seed}: {last['eval_top1']:.2f} % of the test digits are right after {recipe.epochs} epochs")


def _report(out: Path, compared: Sequence[Series], seconds: float) -> None:
    from esbnn_cls.demo.page import write_page
    from esbnn_cls.plots import plot_capacity, plot_curves

    results = {
        "kind": "demo",
        "title": "plain and expanded binary networks on handwritten digits",
        "machine": describe_machine(1),
        "seconds": round(seconds, 1),
        "reading": reading(compared[0], compared[1]),
        "networks": [{"label": s.label, "test_top1": list(s.accuracies), "figures": figures(s)} for s in compared],
        "runs": [record for series in compared for record in series.records],
    }
    pictures = (
        plot_curves(compared),
        plot_capacity(compared),
        plot_curves(compared, "train_loss"),
        plot_curves(compared, "flip_rate"),
    )
    plots = dict(zip(_PLOTS, pictures, strict=True))
    write_file(out / _RESULTS, dump_record(results))  # first: it marks the other files as the demo's
    for name, picture in plots.items():
        write_file(out / name, picture)
    write_file(out / _PAGE, write_page(compared, results, plots).encode())


def _json_or_nothing(path: Path) -> dict[str, Any]:
    try:
        found = load_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
