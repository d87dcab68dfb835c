"""Make docs/results.md and docs/images from the records in docs/runs.

    python tools/results.py            # `make results`
    python tools/results.py --check    # exit code 1 where docs/results.md is not what the records give

Records: of runs (`tools/collect_run.py`), of the demo (its results.json), of benches (`tools/bench.py --json`). Every figure comes from
them, every sentence about figures follows from them; only the table marked as the paper's does not.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esbnn_cls.comparison import Series

ROOT = Path(__file__).parents[1]

# Table 1 of the paper: (architecture, method) -> (baseline, ES-BNN), top-1 in percent on CIFAR-10.
PAPER = {
    ("resnet18", "bireal"): (89.7, 90.6),
    ("resnet18", "irnet"): (91.5, 92.9),
    ("resnet18", "recu"): (92.8, 93.9),
    ("resnet18", "rbnn"): (92.2, 93.4),
    ("resnet18", "siman"): (92.5, 92.8),
    ("resnet18", "adabin"): (93.1, 93.5),
    ("resnet20", "bireal"): (81.4, 85.9),
    ("resnet20", "irnet"): (86.5, 89.7),
    ("resnet20", "recu"): (87.4, 90.0),
    ("resnet20", "rbnn"): (87.8, 90.4),
    ("resnet20", "siman"): (87.4, 89.7),
    ("resnet20", "adabin"): (88.2, 89.6),
}

HEAD = """# Results

What was trained and timed for this project, on what, with which figures. Made from the records in [runs](runs) by `python tools/results.py`
(`make results`); not written by hand. Test accuracy is that of the last epoch: no epoch is chosen by its test result.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="results.py", description="Make docs/results.md from the records in docs/runs.")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder with runs/; results.md and images/ go there")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where results.md is not up to date")
    options = parser.parse_args(arguments)

    from esbnn_core.cli_support import run_main

    return run_main(lambda: _run(options.docs, options.check), "results.py")


def _run(docs: Path, check: bool) -> int:
    from esbnn_core.errors import RunError
    from esbnn_core.files import write_file

    records = read_records(docs / "runs")
    text, pictures = render(records, pictures=not check)
    target = docs / "results.md"
    if check:
        if not target.exists() or target.read_text() != text:
            raise RunError(f"{target}: is not what the records in {docs / 'runs'} give; run python tools/results.py")
        return 0
    for name, picture in pictures.items():
        write_file(docs / "images" / name, picture)
    write_file(target, text.encode())
    print(f"{os.path.relpath(target)}: {len(records)} records, {len(pictures)} pictures")
    return 0


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record by its file's name. Raises UserError where there is none, or one is of an unknown kind."""
    from esbnn_core.checkpoint import load_json
    from esbnn_core.errors import UserError

    records: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        record = load_json(file)
        if not isinstance(record, dict) or record.get("kind") not in ("run", "demo", "bench"):
            raise UserError(f"{file}: is no record; wanted is what collect_run.py, the demo or bench.py wrote")
        records[file.name] = record
    if not records:
        raise UserError(f"{folder}: holds no records; make them with python tools/collect_run.py RUN_FOLDER {folder}/NAME.json")
    return records


def render(records: dict[str, dict[str, Any]], pictures: bool = True) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by file name (none where they are not asked for; the page names them all the same)."""
    from esbnn_cls.comparison import compare

    parts, drawn = [HEAD], {}
    runs = [(name, record) for name, record in records.items() if record["kind"] == "run"]
    origin = {id(record): name for name, record in runs}
    for compared in compare([record for _, record in runs]):
        files = sorted({origin[id(r)] for series in compared for r in series.records})
        part, images = _comparison(compared, files, pictures)
        parts.append(part)
        drawn |= images
    for name, record in records.items():
        if record["kind"] == "demo":
            for compared in compare(record["runs"]):
                part, images = _comparison(compared, [name], pictures, "The demo: ")
                parts.append(part)
                drawn |= images
    parts += [_bench(name, record) for name, record in records.items() if record["kind"] == "bench"]
    parts += list(_paper(record for _, record in runs))
    return "\n".join(parts), drawn


def _comparison(compared: list[Series], files: Sequence[str], pictures: bool, title: str = "") -> tuple[str, dict[str, bytes]]:
    """One section: runs that differ in network and seed alone."""
    from esbnn_cls.comparison import reading, table
    from esbnn_cls.plots import plot_capacity, plot_curves

    first = compared[0].records[0]
    recipe = first["recipe"]
    name = f"{_method(recipe['model'])} {_arch(recipe['model'], recipe['model_args'])}"
    slug = "demo" if title else _slug(f"{name} {recipe['data']['path']} {recipe['epochs']} epochs")
    images = {f"{slug}-{what}.png": what for what in ("accuracy", "capacity", "loss", "flips")}
    lines = [f"## {title}{name} on {first['data']['title']}, {recipe['epochs']} epochs\n"]
    lines += [_what(compared, files), ""]
    lines += [_markdown([*table(compared), *_more_rows(compared)]), ""]
    lines += [f'<img src="images/{image}" alt="{_ALT[what]}" width="49%">' for image, what in images.items()]
    lines += ["\nReading:\n"]
    if all(record["finished"] for series in compared for record in series.records):
        lines += [f"- {reading(compared[0], series)}" for series in compared[1:]]
    lines += [f"- {sentence}" for sentence in _caveats(compared)]
    lines += ["", "Commands:\n"]
    if title:
        lines.append("    python -m esbnn_cls.demo")
    for series in compared:
        seeds = [str(record["recipe"]["seed"]) for record in series.records[1:]]
        more = f"  # and with --seed {', '.join(seeds)}" if seeds else ""
        lines.append(f"    {series.records[0]['command'] or '(no command says this recipe: see the record)'}{more}")
    drawn: dict[str, bytes] = {}
    if pictures:
        columns = {"accuracy": "eval_top1", "loss": "train_loss", "flips": "flip_rate"}
        drawn = {
            image: plot_capacity(compared) if what == "capacity" else plot_curves(compared, columns[what]) for image, what in images.items()
        }
    return "\n".join(lines) + "\n", drawn


_ALT = {
    "accuracy": "test top-1 over epochs",
    "loss": "training loss over epochs",
    "flips": "share of binary weights that change sign, over epochs",
    "capacity": "representation capacity of every binary layer",
}


def _what(compared: Sequence[Series], files: Sequence[str]) -> str:
    """What was trained, how and on what machine."""
    records = [record for series in compared for record in series.records]
    first = records[0]
    recipe, data, optimizer, machine = first["recipe"], first["data"], first["recipe"]["optimizer"], first["machine"]
    seeds = sorted({record["recipe"]["seed"] for record in records})
    images = f"{data['train_images']:,} training and {data['test_images']:,} test images, " if data["test_images"] else ""
    threads = sorted({record["machine"]["threads"] for record in records})
    commits = sorted({record["commit"] for record in records if record["commit"]})
    hours = sum(record["final"]["hours"] for record in records)
    links = ", ".join(f"[{name}](runs/{name})" for name in files)
    sentences = [
        f"Data: {data['title']}; {images}input {'x'.join(map(str, first['counted']['input']))}.",
        f"Training: {optimizer['name']}, learning rate {optimizer['lr']:g} ({recipe['schedule']['name']}), "
        f"momentum {optimizer['momentum']:g}, weight decay {optimizer['weight_decay']:g}, batch {recipe['batch_size']}, {_crop(recipe['augment'])}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; the same for all networks.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {'/'.join(map(str, threads))} thread{'s' if threads != [1] else ''} a run, "
        f"torch {first['versions']['torch']}; {', '.join(sorted({r['date'][:10] for r in records}))}; "
        f"{_hours(hours)} of training in all" + (f"; commit {', '.join(commits)}." if commits else "."),
        f"Records: {links}.",
    ]
    return "\n".join(sentences)


def _more_rows(compared: Sequence[Series]) -> list[list[str]]:
    """Rows that only this page has."""
    import statistics

    rows = []
    for title, get in (
        ("test top-5, %", lambda r: f"{r['final']['eval_top5']:.2f}"),
        ("highest test top-1 of any epoch, % (chosen by the test set)", lambda r: f"{r['final']['best_top1']:.2f}"),
    ):
        if all(len(series.records) == 1 for series in compared):
            rows.append([title, *(get(series.records[0]) for series in compared)])
    hours = [statistics.mean(record["final"]["hours"] for record in series.records) for series in compared]
    return [*rows, ["training and testing, a run", *map(_hours, hours)]]


def _caveats(compared: Sequence[Series]) -> Iterator[str]:
    """What keeps the figures from meaning more than they do."""
    from esbnn_cls.recipe_file import load_recipe, shipped

    records = [record for series in compared for record in series.records]
    recipe = compared[0].recipe
    same = [load_recipe(name) for name in shipped()]
    longest = max((r.epochs for r in same if r.model == recipe["model"]), default=0)
    if longest > recipe["epochs"] and recipe["data"]["path"] != "digits":
        yield (
            f"{recipe['epochs']} epochs of training; the method's own recipe has {longest}. A short schedule can rank networks differently."
        )
    for record in records:
        done = len(record["epochs"]["rows"])
        if not record["finished"]:
            yield (
                f"{record['name']} has only {done} of {record['recipe']['epochs']} epochs: its figures are not those of the recipe, "
                "and nothing is compared."
            )
    bops = {series.totals["bops"] for series in compared}
    weights = {series.totals["params_binary"] for series in compared}
    if len(compared) > 1 and len(bops) == len(weights) == 1:
        most = max(series.totals["ops_plus"] / compared[0].totals["ops_plus"] for series in compared)
        yield f"All networks have the same BOPs and binary weights; OPs+ of the largest are {most:.2f} times those of {compared[0].label}."
    yield from dict.fromkeys(note for record in records for note in record["notes"])


def _bench(name: str, record: dict[str, Any]) -> str:
    """A section of benches."""
    machine = record["machine"]
    parts = ["## Time of steps\n"]
    parts.append(
        f"`python tools/bench.py{' --quick' if record['quick'] else ''}`: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, torch {machine['torch']}, {machine['date'][:10]}, commit {record['commit']}. Record: [{name}](runs/{name}).\n"
        f"Instruction sets: {' '.join(machine['features']) or 'unknown'}.\n"
    )
    for bench in record["benches"]:
        parts.append(f"{bench['title']}; {bench['rounds']} rounds after {bench['warmup']} for warming up, cases interleaved:\n")
        rows = [["", "median, ms", "minimum, ms"]]
        rows += [[case, f"{1e3 * c['median']:.1f}", f"{1e3 * c['minimum']:.1f}"] for case, c in bench["cases"].items()]
        parts.append(_markdown(rows) + "\n")
        rows = [["ratio", "of medians", "of minima", "target, at most"]]
        rows += [
            [f"{r['case']} / {r['against']}", f"{r['median']:.2f}", f"{r['minimum']:.2f}", f"{r['target']:.2f}"] for r in bench["ratios"]
        ]
        parts.append(_markdown(rows) + "\n")
    return "\n".join(parts)


def _paper(records: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The paper's own figures for the networks that were trained here on CIFAR-10."""
    keys = []
    for record in records:
        arch, _, method = record["recipe"]["model"].removeprefix("es_").rpartition("_")
        key = (arch.removesuffix("_cifar"), method)
        own_size = {"widths", "depths"} & record["recipe"]["model_args"].keys()
        cifar10 = "cifar10" in _slug(record["data"]["title"] + record["recipe"]["data"]["path"]).replace("-", "")
        if arch.endswith("_cifar") and cifar10 and not own_size and key in PAPER and key not in keys:
            keys.append(key)
    if keys:
        rows = [["reported by the paper, not measured here", "baseline", "ES-BNN"]]
        rows += [[f"{_method(f'{a}_{m}')} {_arch(a)}", *(f"{figure:.1f}" for figure in PAPER[a, m])] for a, m in keys]
        yield (
            "## The paper's figures\n\nTop-1 in percent on the original CIFAR-10, by the methods' full schedules (Table 1 of the paper). "
            f"For orientation only: other images and another budget than above.\n\n{_markdown(rows)}\n"
        )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("  ", "&emsp;", 1) if cell.startswith("  ") else cell for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _crop(augment: dict[str, Any]) -> str:
    crop = {"pad": f"random crop after padding by {augment['padding']}", "resized": "random resized crop", "none": "no crop"}[
        augment["crop"]
    ]
    return crop + (", random mirroring" if augment["flip"] else ", no mirroring")


def _method(model: str) -> str:
    from esbnn_core import methods

    name = model.rpartition("_")[2]
    return methods.get(name).title if name in methods.names() else name


def _arch(model: str, args: dict[str, Any] | None = None) -> str:
    """In print; a CIFAR ResNet of another depth is named by its layers, as usual."""
    found = re.search(r"resnet(\d+)", model)
    if found is None:
        return model
    depths, widths = (args or {}).get("depths"), (args or {}).get("widths")
    layers = 2 * sum(depths) + 2 if depths else found[1]
    return f"ResNet-{layers}" + (f" of widths {', '.join(map(str, widths))}" if widths else "")


def _hours(hours: float) -> str:
    """A time in the unit that suits it."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{hours:.1f} hours" if hours >= 1.5 else f"{60 * hours:.{0 if hours > 1 / 6 else 1}f} minutes"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
