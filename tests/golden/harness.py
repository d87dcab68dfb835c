"""Reading golden vectors and measuring against them. Format and rules: tests/golden/README.md."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHIPPED = Path(__file__).parents[1] / "data" / "golden"


class NotBuilt(Exception):
    """The case is about something that this project does not have (yet)."""


@dataclass
class Case:
    """One case of a module file: metadata and arrays in groups (`in`, `param`, `buffer`, `out`, `grad_out`, ...)."""

    file: str
    name: str
    meta: dict[str, Any]
    groups: dict[str, dict[str, np.ndarray]] = field(repr=False)

    def tensors(self, group: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The arrays of a group; floating ones in `dtype`."""
        out = {}
        for key, array in self.groups.get(group, {}).items():
            t = torch.from_numpy(np.asarray(array))
            out[key] = t.to(dtype) if t.is_floating_point() else t
        return out

    def state(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {**self.tensors("param", dtype), **self.tensors("buffer", dtype)}


@dataclass(frozen=True)
class Tolerance:
    """Relative to the largest entry. outputs in float32, gradients in float64 and (for scales before a norm) float32."""

    out: float
    grad: float
    absolute_below_one: bool = False

    def check(self, what: str, got: Tensor, want: Tensor, kind: str = "out", floor: float = 0.0) -> None:
        got, want = got.detach().double().reshape(want.shape), want.double()
        assert torch.isfinite(got).all(), f"{what}: not finite"
        size = float(want.abs().max()) if want.numel() else 0.0
        scale = max(size, floor, 1.0 if self.absolute_below_one and kind == "out" else 0.0)
        error = float((got - want).abs().max()) if want.numel() else 0.0
        limit = self.out if kind == "out" else self.grad
        assert error <= limit * scale, f"{what}: differs by {error:.3g}, allowed {limit:g} of {scale:.3g}"


TOLERANCES = {
    "modules_resnet": Tolerance(1e-5, 1e-5),
    "modules_modern": Tolerance(1e-5, 1e-4, absolute_below_one=True),
    "modules_bidet": Tolerance(2e-5, 1e-4),
    "modules_bidiffsr": Tolerance(2e-5, 1e-4),
    "modules_es_bidiffsr": Tolerance(2e-5, 1e-4),
}
ALPHA_F32 = 5e-5
"""Gradients of a scale that batch statistics nearly cancel, judged in float32 (the order of reductions shows)."""


def folder() -> Path:
    """Where the vectors lie: ESBNN_GOLDEN, or the ones that the project ships."""
    named = os.environ.get("ESBNN_GOLDEN")
    return Path(named) if named else SHIPPED


def module_cases(root: Path) -> Iterator[Case]:
    """Every case of every module file directly under `root`."""
    for path in sorted(root.glob("*.npz")):
        with np.load(path) as data:
            grouped: dict[str, dict[str, dict[str, np.ndarray]]] = {}
            metas: dict[str, dict[str, Any]] = {}
            for key in data.files:
                if "|" not in key:
                    continue
                case, rest = key.split("|", 1)
                if rest == "meta":
                    metas[case] = json.loads(str(data[key]))
                else:
                    group, _, name = rest.partition(".")
                    grouped.setdefault(case, {}).setdefault(group, {})[name] = data[key]
            for case, meta in metas.items():
                yield Case(path.stem, case, meta, grouped.get(case, {}))


def model_files(root: Path) -> list[Path]:
    """Files of whole networks."""
    return sorted((root / "models").glob("*.npz"))


def synthesise(meta: dict[str, Any], key: str, shape: tuple[int, ...], rule: str, *args: float) -> np.ndarray:
    """A tensor made from its name, as the vectors' README defines."""
    g = np.random.Generator(np.random.PCG64(zlib.crc32(f"{meta['seed']}/{key}".encode())))
    if rule == "normal":
        return (g.standard_normal(shape) * args[0]).astype(np.float32)
    if rule == "uniform":
        return g.uniform(args[0], args[1], shape).astype(np.float32)
    if rule == "const":
        return np.full(shape, args[0], dtype=np.float32)
    if rule == "bits":
        return (g.uniform(0, 1, shape) < args[0]).astype(np.float32)
    if rule == "orthogonal":
        q, r = np.linalg.qr(g.standard_normal(shape))
        return (q * np.sign(np.diag(r))).astype(np.float32)
    raise NotBuilt(f"rule {rule!r}")
