"""What the property tests draw from: settings, networks with plans, geometries of convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from esbnn_core import methods
from esbnn_core.es import ESPlan, ExpandShrink, Head, Join, Layer, Wiring, resolve

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

torch.set_num_threads(1)  # for tensors as small as these, handing work to threads takes many times as long as the work

METHODS = methods.names()
PROJECTING = [name for name in METHODS if methods.get(name).projects]
HEADS: tuple[Head, ...] = ("full", "n", "one")

TINY = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
"""Few examples, the same in every run."""
MANY = settings(TINY, max_examples=100)


@dataclass(frozen=True)
class Net:
    """A declared network and what is asked of it."""

    layers: tuple[Layer, ...]
    joins: tuple[Join, ...]
    plan: ESPlan
    head: Head

    def wire(self) -> Wiring:
        return resolve(self.layers, self.joins, self.plan, self.head)

    def binary(self) -> list[Layer]:
        return [layer for layer in self.layers if not layer.real]


def settings_of(c_out: int, powers_of_two: bool = False) -> st.SearchStrategy[ExpandShrink]:
    """Every setting that a layer with `c_out` filters can have."""
    pairs = [(t, g) for t in range(1, c_out + 1) for g in range(1, c_out + 1) if c_out % (t * g) == 0]
    if powers_of_two:
        pairs = [(t, g) for t, g in pairs if (t * g).bit_count() == 1]
    return st.sampled_from(pairs).map(lambda pair: ExpandShrink(*pair))


@st.composite
def chains(draw: st.DrawFn, widths: tuple[int, ...] = (4, 6, 8, 12)) -> Net:
    """A stem and one to four binary layers, one after the other, with any possible setting each."""
    c = draw(st.lists(st.sampled_from(widths), min_size=2, max_size=5))
    layers = [Layer("stem", "image", "e0", 3, c[0], 3, real=True)]
    for i, (c_in, c_out) in enumerate(pairwise(c)):
        layers.append(Layer(f"l{i}", f"e{i}", f"e{i + 1}", c_in, c_out, draw(st.sampled_from((1, 3)))))
    plan = ESPlan.layers([draw(settings_of(width)) for width in c[1:]])
    return Net(tuple(layers), (), plan, draw(st.sampled_from(HEADS)))


@st.composite
def residual_nets(draw: st.DrawFn) -> Net:
    """Units with a shortcut each, where widths change a real 1x1 one; any setting each whose number of blocks is a power of two."""
    c = [draw(st.sampled_from((4, 8, 16)))]
    layers, joins, plan = [Layer("stem", "image", "x0", 3, c[0], 7, real=True)], [], []
    for i in range(draw(st.integers(1, 5))):
        c.append(draw(st.sampled_from((c[-1], c[-1], 8, 16))))
        layers.append(Layer(f"u{i}", f"x{i}", f"y{i}", c[i], c[i + 1], 3))
        plan.append(draw(settings_of(c[i + 1], powers_of_two=True)))
        tap = f"x{i}"
        if c[i] != c[i + 1]:
            tap = f"s{i}"
            layers.append(Layer(f"u{i}.shortcut", f"x{i}", tap, c[i], c[i + 1], 1, real=True, like=f"u{i}"))
        joins.append(Join((f"y{i}", tap), f"x{i + 1}"))
    return Net(tuple(layers), tuple(joins), ESPlan.layers(plan), draw(st.sampled_from(HEADS)))


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a convolution, and a size of map that it can work on."""
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel, dilation = draw(pair(1, 3)), draw(pair(1, 2))
    padding = draw(pair(0, 2))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(max(span - 2 * p, 1) + draw(st.integers(0, 4)) for span, p in zip(spans, padding, strict=True))
    return {
        "in_channels": groups * draw(st.integers(1, 4)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": draw(pair(1, 3)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "size": size,
    }
