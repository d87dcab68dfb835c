"""The demo's HTML page: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from esbnn_cls.comparison import Series, table

__all__ = ["write_page"]

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2933; background: #f7f7f5; margin: 0 }
main { max-width: 1120px; margin: 0 auto; padding: 2.4rem 1.5rem 4rem }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem }
p { max-width: 50rem; margin: .5rem 0 }
.say { border-left: 4px solid #c2410c; background: #fff; padding: .7rem 1rem; max-width: 49rem; margin: 1rem 0 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; background: #fff; border: 1px solid #e3e3df; font-variant-numeric: tabular-nums }
th, td { padding: .34rem 1.1rem; text-align: right; border-bottom: 1px solid #ececea; font-weight: 400; white-space: nowrap }
thead th { background: #efeeeb; font-weight: 600 }
th:first-child { text-align: left }
tbody th.sub { padding-left: 2.3rem; color: #5b6675 }
tbody tr.main th, tbody tr.main td { font-weight: 600 }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1.3rem; margin-top: 1.1rem }
.tables { display: flex; flex-wrap: wrap; gap: 2.2rem; align-items: flex-start }
figure { margin: 0; background: #fff; padding: 1rem; border: 1px solid #e3e3df }
figure img { width: 100%; height: auto; display: block }
figcaption { font-size: .9rem; color: #4b5563; margin-top: .6rem }
code { background: #efeeeb; padding: .1rem .3rem; font-size: .88rem; overflow-wrap: anywhere }
.small { font-size: .9rem; color: #4b5563 }
"""

_CAPTIONS = {
    "accuracy.png": (
        "test accuracy over epochs",
        "Share of the test digits answered right after each epoch: mean over seeds, shaded from the lowest to the highest seed. The very "
        "first epochs lie below the frame.",
    ),
    "capacity.png": (
        "representation capacity of each binary layer",
        "Representation capacity: how many different values an output of each binary layer can take before batch norm, "
        "c_in &middot; tau &middot; k &middot; k + 1 for a k x k kernel.",
    ),
    "loss.png": ("training loss over epochs", "Cross-entropy on the training digits as they were seen (shifted by up to one pixel)."),
    "flips.png": (
        "share of binary weights that change sign",
        "Share of the binary weights whose sign differs from the end of the epoch before; it falls as the learning rate does (cosine).",
    ),
}


def write_page(compared: Sequence[Series], results: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page.

    results: contents of results.json. plots: `accuracy.png`, `capacity.png`, `loss.png`, `flips.png` -> PNG; embedded in the page.
    """
    first = compared[0].records[0]
    seeds, epochs, data = len(compared[0].records), first["recipe"]["epochs"], first["data"]
    figures = {name: _figure(plots[name], *_CAPTIONS[name]) for name in _CAPTIONS}
    machine = results["machine"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ES-BNN demo</title><style>{_STYLE}</style></head>
<body><main>
<h1>Plain and expanded binary networks on handwritten digits</h1>
<p>Two small ResNets with one-bit weights and activations (IR-Net's binarization), trained alike: {_count(seeds, "seed")}, {_count(epochs, "epoch")},
{data["train_images"]:,} digits of 8 x 8 pixels; tested on {data["test_images"]:,} others. The expanded network has as many binary operations
and binary weights as the plain one. Every figure on this page was measured in this run.</p>
<p class="say">{escape(results["reading"])}</p>
<h2>Figures</h2>
<div class="wide">{_main_table(compared)}</div>
<p class="small">BOPs are binary multiply-accumulates for one image. OPs are the real ones plus BOPs/64. OPs+ adds one operation for every element that
batch norm writes, which is where the expansion costs. Packed bytes are counted from the network's structure: one bit a binary weight, four bytes a
real number.</p>
<h2>Training and capacity</h2>
<div class="pair">{figures["accuracy.png"]}{figures["capacity.png"]}</div>
<div class="pair">{figures["loss.png"]}{figures["flips.png"]}</div>
<h2>Every seed, every layer</h2>
<div class="tables wide">{_seeds(compared)}{_layers(compared)}</div>
<h2>How to repeat this</h2>
<p><code>python -m esbnn_cls.demo --seeds {seeds} --epochs {epochs}</code>, or one run of it:</p>
{"".join(f"<p><code>{escape(series.records[0]['command'] or '')}</code></p>" for series in compared)}
<p class="small">{escape(machine["cpu"])}, {_count(machine["cores"], "core")}, one thread a run; torch {escape(machine["torch"])}, esbnn-core
{escape(first["versions"]["esbnn-core"])}, esbnn-cls {escape(first["versions"]["esbnn-cls"])}{_commit(first)}; {escape(machine["date"])};
{results["seconds"]:,} s in all. One small data set and a few seeds say little about which network is better in general; they show that the whole road
works.</p>
</main></body></html>
"""


def _main_table(compared: Sequence[Series]) -> str:
    head, *lines = table(compared)
    body = []
    for i, (title, *cells) in enumerate(lines):
        sub = ' class="sub"' if title.startswith(" ") else ""
        body.append(f"<tr{' class=main' if i == 0 else ''}><th scope=row{sub}>{escape(title.strip())}</th>{_cells(cells)}</tr>")
    return _table(head, body)


def _seeds(compared: Sequence[Series]) -> str:
    """Test accuracy of every seed."""
    body = []
    for i, record in enumerate(compared[0].records):
        cells = [f"{series.accuracies[i]:.2f}" for series in compared]
        body.append(f"<tr><th scope=row>seed {record['recipe']['seed']}</th>{_cells(cells)}</tr>")
    return _table(["test top-1, %", *(series.label for series in compared)], body)


def _layers(compared: Sequence[Series]) -> str:
    """Capacity of every layer."""
    body = []
    for i, name in enumerate(compared[0].layers):
        cells = [f"{series.capacities[i]:,}" for series in compared]
        body.append(f"<tr><th scope=row>{i + 1}. {escape(name)}</th>{_cells(cells)}</tr>")
    return _table(["capacity of layer", *(series.label for series in compared)], body)


def _table(head: Sequence[str], body: Sequence[str]) -> str:
    top = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _figure(png: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">\n<figcaption>{caption}</figcaption></figure>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _commit(record: Mapping[str, Any]) -> str:
    return f", commit {escape(record['commit'])}" if record["commit"] else ""
