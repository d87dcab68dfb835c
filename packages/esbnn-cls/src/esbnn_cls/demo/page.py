"""The demo's HTML page: one file, no scripts, nothing loaded from elsewhere. Its text is page.html beside this file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from esbnn_cls.comparison import Series, table

__all__ = ["write_page"]


def write_page(compared: Sequence[Series], results: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page.

    results: contents of results.json. plots: `accuracy.png`, `capacity.png`, `loss.png`, `flips.png` -> PNG; embedded in the page.
    """
    first, machine = compared[0].records[0], results["machine"]
    seeds, epochs = len(compared[0].records), first["recipe"]["epochs"]
    versions = [f"{name} {first['versions'][name]}" for name in ("torch", "esbnn-core", "esbnn-cls")]
    commit = [f"commit {first['commit']}"] if first["commit"] else []
    fields = {
        "seeds": _count(seeds, "seed"),
        "epochs": _count(epochs, "epoch"),
        "train_images": f"{first['data']['train_images']:,}",
        "test_images": f"{first['data']['test_images']:,}",
        "reading": escape(results["reading"]),
        "main_table": _main_table(compared),
        "seed_table": _seeds(compared),
        "layer_table": _layers(compared),
        "command": f"python -m esbnn_cls.demo --seeds {seeds} --epochs {epochs}",
        "runs": "\n".join(f"<p><code>{escape(series.records[0]['command'] or '')}</code></p>" for series in compared),
        "machine": escape(f"{machine['cpu']}, {_count(machine['cores'], 'core')}, one thread a run"),
        "versions": escape(", ".join((*versions, *commit))),
        "date": escape(machine["date"]),
        "seconds": f"{results['seconds']:,.0f}",
        **{name.removesuffix(".png"): f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in plots.items()},
    }
    return Template((Path(__file__).parent / "page.html").read_text()).substitute(fields)


def _main_table(compared: Sequence[Series]) -> str:
    head, *lines = table(compared)
    body = []
    for i, (title, *cells) in enumerate(lines):
        row, sub = (' class="main"' if i == 0 else ""), (' class="sub"' if title.startswith(" ") else "")
        body.append(f'<tr{row}><th scope="row"{sub}>{escape(title.strip())}</th>{_cells(cells)}</tr>')
    return _table(head, body)


def _seeds(compared: Sequence[Series]) -> str:
    """Test accuracy of every seed."""
    body = []
    for i, record in enumerate(compared[0].records):
        cells = [f"{series.accuracies[i]:.2f}" for series in compared]
        body.append(f'<tr><th scope="row">seed {record["recipe"]["seed"]}</th>{_cells(cells)}</tr>')
    return _table(["test top-1, %", *(series.label for series in compared)], body)


def _layers(compared: Sequence[Series]) -> str:
    """Capacity of every layer."""
    body = []
    for i, name in enumerate(compared[0].layers):
        cells = [f"{series.capacities[i]:,}" for series in compared]
        body.append(f'<tr><th scope="row">{i + 1}. {escape(name)}</th>{_cells(cells)}</tr>')
    return _table(["capacity of layer", *(series.label for series in compared)], body)


def _table(head: Sequence[str], body: Sequence[str]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
