"""Comparisons: runs of the same recipe that differ in the network alone, over their seeds; the table and the sentences about it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Series", "compare", "figures", "reading", "table", "to_text"]


@dataclass(frozen=True)
class Series:
    """One network's runs, one a seed. records: see `esbnn_cls.record.read_run`; at least one."""

    records: tuple[dict[str, Any], ...]

    @property
    def recipe(self) -> dict[str, Any]:
        """Of the first run."""
        found: dict[str, Any] = self.records[0]["recipe"]
        return found

    @property
    def label(self) -> str:
        """`plain`, or what the expansion is, from the recipe."""
        if not self.recipe["model"].startswith("es_"):
            return "plain"
        args = self.recipe["model_args"]
        given = [f"{key} = {args[key]}" for key in ("tau", "groups", "plan", "head") if args.get(key) not in (None, 1)]
        return "ES, " + ", ".join(given or ["default plan"])

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Test top-1 in percent after the last epoch: no epoch is chosen by its test result."""
        return tuple(record["final"]["eval_top1"] for record in self.records)

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Sample standard deviation over seeds, 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.records) > 1 else 0.0

    @property
    def totals(self) -> dict[str, int | float]:
        found: dict[str, int | float] = self.records[0]["counted"]["totals"]
        return found

    @property
    def capacities(self) -> list[int]:
        """Of every binary layer in the order of running."""
        found: list[int] = self.records[0]["counted"]["capacities"]
        return found

    @property
    def layers(self) -> list[str]:
        """Names of the binary layers, as `capacities`."""
        found: list[str] = self.records[0]["counted"]["layers"]
        return found

    def curves(self, column: str) -> list[list[float]]:
        """A column of metrics.csv for every seed, [seeds][epochs]; epochs without a value are nan."""
        at = self.records[0]["epochs"]["columns"].index(column)
        return [[math.nan if row[at] is None else row[at] for row in record["epochs"]["rows"]] for record in self.records]


def compare(records: Sequence[dict[str, Any]]) -> list[list[Series]]:
    """Records in comparisons: equal recipes but for network and seed; the plain network stands first, then by name."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        recipe = {key: value for key, value in record["recipe"].items() if key not in ("seed", "threads", "output")}
        network = json.dumps([recipe.pop("model"), recipe.pop("model_args")], sort_keys=True)
        # Architectures and methods are compared among themselves: each method has its authors' recipe.
        base = record["recipe"]["model"].removeprefix("es_")
        key = json.dumps([base, record["data"], recipe], sort_keys=True)
        groups.setdefault(key, {}).setdefault(network, []).append(record)
    return [
        sorted(
            (Series(tuple(sorted(runs, key=lambda r: r["recipe"]["seed"]))) for runs in group.values()),
            key=lambda s: (s.recipe["model"].startswith("es_"), s.recipe["model"], s.label),
        )
        for group in groups.values()
    ]


_FIGURES: tuple[tuple[str, str, Callable[[Series], Any], str], ...] = (
    ("test_top1", "test top-1 after the last epoch, %", lambda s: s.mean, ".2f"),
    ("test_top1_sd", "  standard deviation over seeds", lambda s: s.spread if len(s.records) > 1 else None, ".2f"),
    ("test_top1_lowest", "  lowest seed", lambda s: min(s.accuracies) if len(s.records) > 1 else None, ".2f"),
    ("test_top1_highest", "  highest seed", lambda s: max(s.accuracies) if len(s.records) > 1 else None, ".2f"),
    ("train_top1", "training top-1 in the last epoch, %", lambda s: statistics.mean(r["final"]["train_top1"] for r in s.records), ".2f"),
    ("capacity_smallest", "representation capacity, smallest layer", lambda s: min(s.capacities, default=None), ",d"),
    ("capacity_largest", "  largest layer", lambda s: max(s.capacities, default=None), ",d"),
    ("capacity_first", "  first binary layer", lambda s: s.capacities[0] if s.capacities else None, ",d"),
    ("capacity_last", "  last binary layer", lambda s: s.capacities[-1] if s.capacities else None, ",d"),
    ("capacity_sum", "  sum over layers", lambda s: sum(s.capacities) or None, ",d"),
    ("bops", "BOPs", lambda s: s.totals["bops"], ",d"),
    ("ops", "OPs", lambda s: s.totals["ops"], ",.0f"),
    ("ops_plus", "OPs+", lambda s: s.totals["ops_plus"], ",.0f"),
    ("params_binary", "parameters, binary", lambda s: s.totals["params_binary"], ",d"),
    ("params_real", "parameters, real", lambda s: s.totals["params_real"], ",d"),
    ("packed_bytes", "bytes packed for inference (counted)", lambda s: s.totals["packed_bytes"], ",d"),
    ("file_bytes", "bytes of the float checkpoint", lambda s: s.records[0]["file_bytes"], ",d"),
)


def figures(series: Series) -> dict[str, int | float | None]:
    """Everything in a network's column of the table; None where there is no such figure (spread of one seed, no binary layers)."""
    return {key: get(series) for key, _, get, _ in _FIGURES}


def table(compared: Sequence[Series]) -> list[list[str]]:
    """The table as text cells: a head, then a line a figure, a column a network. Indented names belong to the line above."""
    columns = [figures(series) for series in compared]
    lines = [["", *(series.label for series in compared)]]
    for key, title, _, form in _FIGURES:
        values = [column[key] for column in columns]
        if any(value is not None for value in values):
            lines.append([title, *("-" if value is None else format(value, form) for value in values)])
    return lines


def to_text(lines: Sequence[Sequence[str]]) -> str:
    """Cells as aligned plain text, a rule below the head."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in ruled
    )


def reading(plain: Series, other: Series) -> str:
    """What the accuracies of two networks allow to say, in sentences that follow from the numbers alone."""
    difference = other.mean - plain.mean
    where = "above" if difference > 0 else "below"
    seeds = min(len(plain.records), len(other.records))
    images = plain.records[0]["data"]["test_images"]
    text = f"{other.label}: {abs(difference):.2f} points {where} {plain.label}" if difference else f"{other.label}: equal to {plain.label}"
    if seeds > 1:
        error = math.sqrt(plain.spread**2 / len(plain.records) + other.spread**2 / len(other.records))
        text += f" in the mean of {seeds} seeds; the standard error of that difference over seeds is {error:.2f} points. "
        # Two standard errors with few seeds is a rule of thumb, not a test; the wording claims no more.
        certain = abs(difference) > 2 * error
        return text + (
            "It is more than twice that error: seeds alone are an unlikely cause."
            if certain
            else "That is less than twice the error: with these seeds neither network can be called better."
        )
    text += " with one seed each. "
    if images:
        error = math.sqrt(sum(a * (100 - a) / images for a in (plain.mean, other.mean)))
        text += f"The {images:,} test images alone give that difference a standard error of about {error:.2f} points; "
        return text + "what another seed would change comes on top and was not measured."
    return text + "What another seed would change was not measured."
