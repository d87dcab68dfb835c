"""The result of counting: rows, totals, JSON, a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["COLUMNS", "Report", "Row"]

COLUMNS = ("conv_flops", "fc_flops", "bn_flops", "bops", "elementwise", "params_binary", "params_real", "packed_bytes")
"""What a row counts. Sums over rows are the totals; `ops` and `ops_plus` follow from them."""
BITS = 64  # a machine word's worth of binary operations is one operation (paper, section 4.5)


@dataclass(frozen=True)
class Row:
    """One module's work of one kind.

    name: the module's, empty for the model itself. kind: binary_conv, binary_linear, conv, fc, matmul, norm or other. in_shape,
    out_shape: of the module's first call (None if it was never called). calls: of the module. capacity: representation capacity of a
    binary layer (section 3.1), else None. The numbers are sums over calls; see `count_ops` for what each column holds.
    """

    name: str
    kind: str
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    calls: int = 0
    capacity: int | None = None
    conv_flops: int = 0
    fc_flops: int = 0
    bn_flops: int = 0
    bops: int = 0
    elementwise: int = 0
    params_binary: int = 0
    params_real: int = 0
    packed_bytes: int = 0

    @property
    def ops(self) -> int | float:
        """conv_flops + fc_flops + bops/64 (section 4.5)."""
        return _ops(self.conv_flops + self.fc_flops, self.bops)

    @property
    def ops_plus(self) -> int | float:
        """ops + bn_flops (section 4.5)."""
        return self.ops + self.bn_flops

    @property
    def weighs(self) -> bool:
        """Whether there is more to it than elementwise work."""
        return any(getattr(self, column) for column in COLUMNS if column != "elementwise")

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `ops` and `ops_plus` included."""
        values = asdict(self)
        for shape in ("in_shape", "out_shape"):
            values[shape] = None if values[shape] is None else list(values[shape])
        return {**values, "ops": self.ops, "ops_plus": self.ops_plus}


@dataclass(frozen=True)
class Report:
    """Rows in the order in which modules first did work, then those that did none.

    input_shapes: of the model's inputs, batch included; all numbers are for that whole batch.
    """

    rows: tuple[Row, ...]
    input_shapes: tuple[tuple[int, ...], ...]

    @property
    def totals(self) -> dict[str, int | float]:
        """Sums over rows, and ops = conv + fc + bops/64, ops_plus = ops + bn; integers where that is exact."""
        sums = {column: sum(getattr(row, column) for row in self.rows) for column in COLUMNS}
        ops = _ops(sums["conv_flops"] + sums["fc_flops"], sums["bops"])
        order = ("conv_flops", "fc_flops", "bn_flops", "bops")
        return {
            **{column: sums[column] for column in order},
            "ops": ops,
            "ops_plus": ops + sums["bn_flops"],
            **{column: sums[column] for column in COLUMNS if column not in order},
        }

    @property
    def capacities(self) -> list[int]:
        """Representation capacity of every binary layer, in the order of running (Figure 4)."""
        return [row.capacity for row in self.rows if row.capacity is not None]

    def as_dict(self) -> dict[str, Any]:
        """{"input_shapes", "totals", "layers"}, JSON values only."""
        return {
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "totals": self.totals,
            "layers": [row.as_dict() for row in self.rows],
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2)

    def to_table(self) -> str:
        """Plain text: a line for every row with products, a norm or parameters, one for all others together, totals below."""
        head = ("layer", "kind", "output", "conv", "fc", "BN", "BOPs", "elementwise", "binary", "real", "bytes", "capacity")
        shown = [row for row in self.rows if row.weighs]
        lines = [
            (row.name or "(model)", row.kind, _shape(row.out_shape), *(_short(getattr(row, c)) for c in COLUMNS), _short(row.capacity or 0))
            for row in shown
        ]
        rest = sum(row.elementwise for row in self.rows if not row.weighs)
        if rest:
            lines.append(("other elementwise", "other", "", *(_short(rest if c == "elementwise" else 0) for c in COLUMNS), _short(0)))
        totals = self.totals
        lines.append(("total", "", "", *(_short(totals[c]) for c in COLUMNS), _short(0)))
        inputs = ", ".join(_shape(shape) for shape in self.input_shapes)
        return "\n".join((*_aligned(head, lines), "", f"for an input of {inputs}:", *_summary(totals)))


def _ops(flops: int, bops: int) -> int | float:
    return flops + (bops // BITS if bops % BITS == 0 else bops / BITS)


def _summary(totals: dict[str, int | float]) -> list[str]:
    unit = {"conv_flops": "conv FLOPs", "fc_flops": "FC FLOPs", "bops": "BOPs", "ops": "OPs", "bn_flops": "BN FLOPs", "ops_plus": "OPs+"}
    lines = [f"  {label:<12}{totals[key]:>20,}   {_scaled(totals[key], key)}" for key, label in unit.items()]
    kept = f"{totals['params_binary']:>20,} binary, {totals['params_real']:,} real; packed {totals['packed_bytes']:,} bytes"
    return [*lines, f"  {'parameters':<12}{kept}"]


def _scaled(value: int | float, key: str) -> str:
    power = 9 if key == "bops" else 8  # the paper's units
    return f"{value / 10**power:.4f}e{power}"


def _short(value: int | float) -> str:
    if value == 0:
        return "-"
    if value < 100_000:
        return f"{value:,.0f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G")):
        if value < limit:
            return f"{value / limit * 1000:.4g}{unit}"
    return f"{value / 1e12:.4g}T"


def _shape(shape: Sequence[int] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    ruled = (head, ["-" * w for w in widths], *lines)
    left = 3  # text columns
    return [
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in ruled
    ]
