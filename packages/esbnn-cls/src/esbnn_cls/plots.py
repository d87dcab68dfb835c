"""Pictures of comparisons, as PNG bytes: curves over epochs, capacity of every layer."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from esbnn_cls.comparison import Series
from esbnn_core.errors import UserError

import numpy as np

__all__ = ["COLOURS", "plot_capacity", "plot_curves"]

COLOURS = ("#5b6675", "#c2410c", "#0f766e", "#6d28d9")
"""A network's colour by its place; the first two differ in lightness too, for readers who see no colours."""

_UNITS = {
    "eval_top1": "test top-1, %",
    "train_top1": "training top-1, %",
    "eval_loss": "test loss",
    "train_loss": "training loss",
    "flip_rate": "binary weights that change sign in an epoch, %",
    "lr": "learning rate",
}


def plot_curves(compared: Sequence[Series], column: str = "eval_top1") -> bytes:
    """A column of metrics.csv over epochs: the mean over seeds, shaded from the lowest to the highest of them."""
    figure, axes = _figure()
    scale = 100.0 if column == "flip_rate" else 1.0
    for i, series in enumerate(compared):
        colour = COLOURS[i % len(COLOURS)]
        curves = series.curves(column)
        shortest = min(map(len, curves))
        values = scale * np.array([curve[:shortest] for curve in curves])
        epochs = np.arange(1, shortest + 1)
        there = ~np.isnan(values).any(0)  # some epochs may not have been evaluated
        epochs, values = epochs[there], values[:, there]
        axes.plot(epochs, values.mean(0), color=colour, label=series.label, linewidth=1.8, marker="o" if shortest < 4 else None)
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    if column == "flip_rate":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif column.endswith("top1"):
        _zoom(axes, [curve for series in compared for curve in series.curves(column)])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(_UNITS.get(column, column))
    axes.legend(frameon=False, loc="lower right" if column.endswith("top1") else "upper right")
    return _png(figure)


def plot_capacity(compared: Sequence[Series]) -> bytes:
    """Representation capacity of every binary layer, as in Figure 4 of the paper."""
    layers = max(len(series.capacities) for series in compared)
    figure, axes = _figure()
    width = 0.8 / len(compared)
    for i, series in enumerate(compared):
        at = np.arange(1, len(series.capacities) + 1) + (i - (len(compared) - 1) / 2) * width
        bars = axes.bar(at, series.capacities, width, color=COLOURS[i % len(COLOURS)], label=series.label)
        if layers * len(compared) <= 16:  # more would overlap
            axes.bar_label(bars, [f"{c:,}" for c in series.capacities], fontsize=7.5, padding=2, color="#374151")
    axes.set_xlabel("binary layer, in the order of running")
    axes.set_ylabel("values that an output can take")
    axes.set_xticks(np.arange(1, layers + 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, loc="upper left")
    return _png(figure)


def _zoom(axes: Any, curves: Sequence[Sequence[float]]) -> None:
    """Where the first epochs lie far below the rest, leave their depth out: what is compared is at the top."""
    later = sorted(value for curve in curves for value in curve[len(curve) // 8 :] if not math.isnan(value))
    low, high = later[0], later[-1]
    if high - low > 0 and len(curves[0]) >= 16:
        axes.set_ylim(max(0.0, low - 0.08 * (high - low)), high + 0.08 * (high - low))


def _figure(width: float = 6.2, height: float = 3.9) -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UserError("the plots need matplotlib: pip install 'esbnn-cls[demo]'") from error
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: no global state, no window system.
    mpl.rcParams["font.family"] = "DejaVu Sans"  # it comes with matplotlib, so pictures are the same everywhere
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(colors="#4b5563", labelsize=9)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
