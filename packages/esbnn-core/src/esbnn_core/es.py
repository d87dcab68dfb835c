"""The expanding-and-shrinking arithmetic (paper, sections 3.2 and 3.3): settings, plans, widths and copies.

A binary layer with widths c_i -> c_o and setting (tau, g) reads e = tau*g blocks of c_i channels, computes c_o/tau filters in g groups
and makes copies of their outputs so that the next reader finds its own number of blocks. Settings belong to layers; the number of
blocks of a tensor, its multiple m, belongs to the edge between them: it is the e of its readers, which must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias

from esbnn_core.errors import ESError

__all__ = ["ESPlan", "ExpandShrink", "Head", "Join", "Layer", "Slot", "Wiring", "representation_capacity", "resolve"]

Head: TypeAlias = Literal["full", "n", "one"]
"""What the last edge holds for the classifier (Table 9): `full` n*tau*g channels, `n` as many as plain, `one` n/tau: no copies."""


@dataclass(frozen=True, slots=True)
class ExpandShrink:
    """One layer's setting.

    tau: expansion of the input and shrinking of the kernels, >= 1 (section 3.2). groups: number g of groups, >= 1 (section 3.3).
    """

    tau: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("tau", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ESError(f"{name} must be an integer of at least 1, not {value!r}")

    @property
    def e(self) -> int:
        """Blocks that the layer reads: tau * groups."""
        return self.tau * self.groups

    def check(self, layer: Layer) -> None:
        """Raise `ESError` unless every group owns at least one filter of `layer`: tau*groups must divide c_out."""
        if layer.c_out % self.e == 0:
            return
        if layer.c_out % self.groups == 0:
            largest = f"tau={layer.c_out // self.groups} with groups={self.groups}"
        else:
            largest = f"tau=1 with groups={layer.c_out}, or tau={layer.c_out} with groups=1"
        raise ESError(
            f"layer {layer.name!r} ({layer.c_in} -> {layer.c_out} channels): tau={self.tau}, groups={self.groups} needs tau*groups="
            f"{self.e} to divide {layer.c_out}; largest possible: {largest}"
        )


PLAIN = ExpandShrink()


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer of a network, before expansion.

    reads, writes: names of edges. c_in, c_out: plain widths. kernel: spatial size. stage: for per-stage plans.
    real: not binary (first convolution, 1x1 shortcut). like: name of the layer whose setting it takes (shortcuts).
    """

    name: str
    reads: str
    writes: str
    c_in: int
    c_out: int
    kernel: int = 1
    stage: int = 0
    real: bool = False
    like: str | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """`output` is the sum of `inputs`; an input of another multiple is adapted (tiled, or its blocks averaged)."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Slot:
    """What one layer needs to know of the plan.

    tau, groups: its setting. m_in, m_out: multiples of the edges that it reads and writes (m_out is 1/tau for a last layer without
    copies). copies: of each filter's output, tau * m_out.
    """

    tau: int = 1
    groups: int = 1
    m_in: int = 1
    m_out: Fraction = Fraction(1)
    copies: int = 1

    @property
    def setting(self) -> ExpandShrink:
        return ExpandShrink(self.tau, self.groups)

    def channels_in(self, c_in: int) -> int:
        """Channels that the layer reads: c_in * m_in."""
        return c_in * self.m_in

    def filters(self, c_out: int) -> int:
        """Channels that the layer computes: c_out / tau."""
        return c_out // self.tau

    def channels_out(self, c_out: int) -> int:
        """Channels after the copies: c_out * m_out."""
        return self.filters(c_out) * self.copies


def representation_capacity(c_in: int, kernel: int, tau: int = 1) -> int:
    """Values that an output of a binary layer can take (section 3.1): c_in*tau*k*k + 1; each group sums c_in*tau inputs."""
    return c_in * tau * kernel * kernel + 1


_TABLE8_TAU = (2, 2, 2, 2, 4, 4, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4)
_TABLE8_GROUPS = (1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2)
# Two entries of Table 8 are lost in the text of the paper; with these the counts of Table 6 come out to every printed digit.
NAMED_PLANS: Mapping[str, tuple[ExpandShrink, ...]] = {
    "table8": tuple(ExpandShrink(t, g) for t, g in zip(_TABLE8_TAU, _TABLE8_GROUPS, strict=True))
}


@dataclass(frozen=True)
class ESPlan:
    """Settings for the binary layers of a network; make one with `uniform`, `stages`, `layers`, `none`, `named` or `of`."""

    kind: Literal["uniform", "stages", "layers"]
    settings: tuple[ExpandShrink, ...]
    name: str = ""

    @classmethod
    def none(cls) -> ESPlan:
        """The plain network."""
        return cls("uniform", (PLAIN,), "none")

    @classmethod
    def uniform(cls, tau: int, groups: int = 1) -> ESPlan:
        """The same setting everywhere (Table 5)."""
        return cls("uniform", (ExpandShrink(tau, groups),))

    @classmethod
    def stages(cls, settings: Sequence[ExpandShrink | tuple[int, int]]) -> ESPlan:
        """One setting a stage."""
        return cls("stages", _settings(settings))

    @classmethod
    def layers(cls, settings: Sequence[ExpandShrink | tuple[int, int]]) -> ESPlan:
        """One setting a binary layer, in the network's order (Table 8)."""
        return cls("layers", _settings(settings))

    @classmethod
    def named(cls, name: str) -> ESPlan:
        """A published plan: `table8` (ResNet-18), or `none`."""
        if name == "none":
            return cls.none()
        if name not in NAMED_PLANS:
            raise ESError(f"unknown plan {name!r}; known: none, {', '.join(NAMED_PLANS)}")
        return cls("layers", NAMED_PLANS[name], name)

    @classmethod
    def of(cls, tau: int | Sequence[int] = 1, groups: int | Sequence[int] = 1) -> ESPlan:
        """From numbers (uniform) or lists; a list's length says whether it is per stage or per layer when the plan is resolved."""
        if isinstance(tau, int) and isinstance(groups, int):
            return cls.uniform(tau, groups)
        length = len(tau) if not isinstance(tau, int) else len(groups)  # type: ignore[arg-type]
        taus = [tau] * length if isinstance(tau, int) else list(tau)
        groups_ = [groups] * length if isinstance(groups, int) else list(groups)
        if len(taus) != len(groups_):
            raise ESError(f"tau has {len(taus)} entries and groups has {len(groups_)}; give lists of one length, or one number")
        return cls("layers", _settings(list(zip(taus, groups_, strict=True))))

    def settings_for(self, layers: Sequence[Layer]) -> dict[str, ExpandShrink]:
        """The setting of every layer by name; the plan's list runs over the binary layers that have no `like`."""
        own = [layer for layer in layers if not layer.real and layer.like is None]
        stages = sorted({layer.stage for layer in own})
        n = len(self.settings)
        if self.kind == "uniform":
            chosen = {layer.name: self.settings[0] for layer in own}
        elif self.kind == "layers" and n == len(own):
            chosen = {layer.name: s for layer, s in zip(own, self.settings, strict=True)}
        elif n == len(stages):  # `stages`, or a list of numbers as long as there are stages
            chosen = {layer.name: self.settings[stages.index(layer.stage)] for layer in own}
        else:
            raise ESError(
                f"the plan has {n} settings for a network of {len(own)} binary layers in {len(stages)} stages; "
                f"give one a layer, one a stage, or one for all"
            )
        for layer in layers:
            if layer.like is not None:
                if layer.like not in chosen:
                    raise ESError(f"layer {layer.name!r} takes its setting from {layer.like!r}, which is no binary layer before it")
                chosen[layer.name] = chosen[layer.like]
            elif layer.real:
                chosen[layer.name] = PLAIN
        for layer in layers:
            chosen[layer.name].check(layer)
        return chosen


def _settings(items: Sequence[ExpandShrink | tuple[int, int]]) -> tuple[ExpandShrink, ...]:
    if not items:
        raise ESError("a plan needs at least one setting")
    return tuple(item if isinstance(item, ExpandShrink) else ExpandShrink(*item) for item in items)


@dataclass(frozen=True)
class Wiring:
    """A plan resolved for one network: `wiring[layer] -> Slot`, `wiring.edge(name) -> (c, m)`."""

    slots: Mapping[str, Slot]
    edges: Mapping[str, tuple[int, Fraction]] = field(repr=False)

    def __getitem__(self, layer: str) -> Slot:
        return self.slots[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def edge(self, name: str) -> tuple[int, Fraction]:
        """(c, m) of an edge: its plain width and the number of blocks; c*m channels."""
        return self.edges[name]

    def channels(self, name: str) -> int:
        """Channels of an edge, c*m."""
        c, m = self.edges[name]
        return int(c * m)


def resolve(layers: Sequence[Layer], joins: Sequence[Join] = (), plan: ESPlan | None = None, head: Head = "full") -> Wiring:
    """Give every layer its `Slot` and every edge its multiple.

    An edge's multiple is the e of the binary layers that read it; an edge that only joins read inherits from what they write; an
    edge that nothing binary reads in the end belongs to the `head`. Real layers without `like` read one block and write what is
    wanted (the first convolution is replicated after it has been computed).

    Raises `ESError`, naming the layer, for a setting that its widths forbid, for readers of one edge that disagree, and for a join
    whose multiples do not divide one another.
    """
    plan = plan or ESPlan.none()
    setting = plan.settings_for(layers)
    width: dict[str, int] = {}
    for layer in layers:
        width.setdefault(layer.reads, layer.c_in)
        width[layer.writes] = layer.c_out
    for join in joins:
        width[join.output] = width[join.inputs[0]]

    m: dict[str, Fraction] = {}
    reader: dict[str, str] = {}
    for layer in layers:
        if layer.real and layer.like is None:
            continue
        e = setting[layer.name].e
        if m.setdefault(layer.reads, Fraction(e)) != e:
            raise ESError(
                f"layers {reader[layer.reads]!r} and {layer.name!r} read the same tensor of {width[layer.reads]} channels, with "
                f"tau*groups = {m[layer.reads]} and {e}; they must be equal"
            )
        reader.setdefault(layer.reads, layer.name)
    last = _last_setting(layers, setting)
    head_m = {"full": Fraction(last.e), "n": Fraction(1), "one": Fraction(1, last.tau)}
    if head not in head_m:
        raise ESError(f"unknown head {head!r}; known: full (n*tau*g channels), n, one (n/tau)")
    for layer in layers:
        if layer.real and layer.like is None:
            m.setdefault(layer.reads, Fraction(1))
    for join in reversed(joins):
        m.setdefault(join.output, head_m[head])
        for edge in join.inputs:
            if edge not in m:
                m[edge] = m[join.output]
            elif not divides(m[edge], m[join.output]):
                raise ESError(
                    f"the tensor read by layer {reader.get(edge, edge)!r} has {m[edge]} blocks of {width[edge]} channels and is added to "
                    f"one of {m[join.output]}; neither divides the other"
                )
    for layer in layers:
        m.setdefault(layer.writes, head_m[head])

    slots = {}
    for layer in layers:
        own = setting[layer.name]
        copies = own.tau * m[layer.writes]
        if copies.denominator != 1:
            raise ESError(
                f"layer {layer.name!r} computes {layer.c_out // own.tau} filters for a tensor of {m[layer.writes]} blocks of "
                f"{layer.c_out} channels; head {head!r} is not possible there"
            )
        if layer.real and layer.like is None and m[layer.reads] != 1:
            raise ESError(f"layer {layer.name!r} is real and not expanded, but reads {m[layer.reads]} blocks")
        slots[layer.name] = Slot(own.tau, own.groups, int(m[layer.reads]), m[layer.writes], int(copies))
    return Wiring(slots, {edge: (width[edge], m[edge]) for edge in m})


def _last_setting(layers: Sequence[Layer], setting: Mapping[str, ExpandShrink]) -> ExpandShrink:
    own = [layer for layer in layers if not layer.real and layer.like is None]
    return setting[own[-1].name] if own else PLAIN


def divides(a: Fraction, b: Fraction) -> bool:
    """Whether blocks can be tiled or averaged from one number to the other."""
    return (a / b).denominator == 1 or (b / a).denominator == 1
