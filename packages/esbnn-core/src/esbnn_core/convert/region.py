"""The part of a traced network that expanding-and-shrinking can reach.

Layers of the region are convolutions with a batch norm of their own behind them, which makes the copies. A batch norm on a tensor of one
block (behind a first convolution, or in front of a layer) can make copies too: a source. Between them stand operations that keep
channels apart, and sums. Whatever else reads a tensor of the region is a border: blocks are averaged in front of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from esbnn_core.convert.channelwise import (
    flattens,
    is_one_pixel,
    is_sum,
    is_whole_map_mean,
    keeps_channels,
    looks_at_size,
    module_of,
    shrinks_map,
)
from esbnn_core.convert.norms import is_batch_norm
from esbnn_core.es import Join, Layer

from torch import fx, nn

__all__ = ["Region", "Site", "find_region"]


@dataclass(frozen=True)
class Site:
    """A layer of the region. conv is none for a source; norm makes the copies; c_in, c_out: plain widths."""

    kind: Literal["binary", "shortcut", "source"]
    conv: fx.Node | None
    norm: fx.Node
    c_in: int
    c_out: int


@dataclass
class Region:
    """layers, joins: for `es.resolve`. sites: by the layers' names. plain: chosen convolutions outside, and why.

    edge: node -> name of the tensor that it gives. raw: of these, the nodes from outside, which hold one block and are tiled where
    they are read. width: channels of a block by edge. flat: node -> features of a block, for maps that have become vectors. wide: batch
    norms and PReLUs inside, which get a parameter for every channel of every block. neutral: nodes that only look at sizes.
    heads: classifiers: linear layers that read a vector of the region, with no convolution behind them.
    """

    layers: list[Layer] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    edge: dict[fx.Node, str] = field(default_factory=dict)
    raw: set[fx.Node] = field(default_factory=set)
    width: dict[str, int] = field(default_factory=dict)
    flat: dict[fx.Node, int] = field(default_factory=dict)
    wide: list[fx.Node] = field(default_factory=list)
    neutral: set[fx.Node] = field(default_factory=set)
    heads: set[fx.Node] = field(default_factory=set)

    def block(self, node: fx.Node) -> int:
        """Channels, or features, of one block of what `node` gives."""
        return self.flat.get(node) or self.width[self.edge[node]]


def find_region(traced: fx.GraphModule, binary: Iterable[str]) -> Region:
    """Walk the graph once; `binary`: names of the layers chosen."""
    return _Walk(traced, set(binary)).run()


class _Walk:
    def __init__(self, traced: fx.GraphModule, binary: set[str]) -> None:
        self.graph, self.binary = traced.graph, binary
        self.modules = dict(traced.named_modules())
        self.uses = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
        self.region = Region()
        self.claims = {node: norm for node in self.graph.nodes if (norm := self._own_norm(node)) is not None}
        self.channels: dict[fx.Node, int] = {}
        self.root: dict[fx.Node, fx.Node] = {}  # behind operations that keep channels: what they started from
        self.stage: dict[fx.Node, int] = {}
        self.one_pixel: set[fx.Node] = set()
        self.around: dict[fx.Node, str] = {}

    def run(self) -> Region:
        for node in self.graph.nodes:
            module = module_of(node, self.modules)
            before = max((self.stage[source] for source in node.all_input_nodes), default=0)
            self.stage[node] = before + shrinks_map(node, module)
            self.root[node] = node
            if node.args and isinstance(node.args[0], fx.Node) and keeps_channels(node, module):
                self.root[node] = self.root[node.args[0]]
        self.around = self._shortcuts()
        for node in self.graph.nodes:
            self._visit(node)
        self._close()
        return self.region

    def _own_norm(self, node: fx.Node) -> fx.Node | None:
        """The batch norm that alone reads this convolution, if the two can be a layer of the region."""
        conv = module_of(node, self.modules)
        if type(conv) is not nn.Conv2d:
            return None
        reason = None
        users = list(node.users)
        if self.uses[str(node.target)] > 1:
            reason = "it is called more than once"
        elif conv.groups > 1:
            reason = "it has groups of its own"
        elif not node.args or not isinstance(node.args[0], fx.Node):
            reason = "its input is not given by position"
        elif len(users) != 1 or not self._is_norm(users[0]):
            reason = "no BatchNorm2d alone reads its output, which would make the copies"
        if reason is None:
            return users[0]
        if str(node.target) in self.binary:
            self.region.plain[str(node.target)] = reason
        return None

    def _is_norm(self, node: fx.Node) -> bool:
        return is_batch_norm(module_of(node, self.modules)) and self.uses[str(node.target)] == 1 and bool(node.args)

    def _visit(self, node: fx.Node) -> None:
        region, module = self.region, module_of(node, self.modules)
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if isinstance(module, nn.Conv2d):
            self.channels[node] = module.out_channels
            if node in self.claims and source is not None:
                self._layer(node, module, source)
        elif isinstance(module, nn.BatchNorm2d):
            self.channels[node] = module.num_features
            if node not in region.edge and source is not None and self._is_norm(node):
                self._norm(node, source, module.num_features)
        elif source is not None and keeps_channels(node, module):
            self._pass(node, module, source)
        elif source is not None and is_whole_map_mean(node):
            if self._inside(source) and source not in region.flat:
                self._hold(node, source)
                self.one_pixel.add(node)
                keepdim = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
                if not keepdim:
                    region.flat[node] = region.block(source)
        elif is_sum(node):
            self._sum(node)
        elif source is not None and flattens(node, module):
            self._flatten(node, source)
        elif looks_at_size(node):
            region.neutral.add(node)

    def _inside(self, node: fx.Node) -> bool:
        """Whether a node gives a tensor that the plan may expand."""
        return node in self.region.edge and node not in self.region.raw

    def _hold(self, node: fx.Node, source: fx.Node) -> None:
        """`node` gives `source`'s tensor, as far as channels go."""
        region = self.region
        region.edge[node] = region.edge[source]
        if source in region.flat:
            region.flat[node] = region.flat[source]
        if source in self.one_pixel:
            self.one_pixel.add(node)
        if source in self.channels:
            self.channels[node] = self.channels[source]

    def _read(self, node: fx.Node, channels: int) -> str:
        """The edge that `node` gives; a tensor from outside becomes one that is tiled where it is read."""
        region = self.region
        if node not in region.edge:
            region.edge[node] = f"outside:{node.name}"
            region.width[region.edge[node]] = channels
            region.raw.add(node)
            # Written by something without a setting, so that `resolve` knows its width also where only sums read it.
            region.layers.append(Layer(f"in front of {node.name}", f"{node.name}.before", region.edge[node], channels, channels, real=True))
        return region.edge[node]

    def _layer(self, node: fx.Node, conv: nn.Conv2d, source: fx.Node) -> None:
        name, norm, region = str(node.target), self.claims[node], self.region
        around = self.around.get(node)
        if name not in self.binary and around is None:
            return  # a real layer: it reads one block, and its norm is a source
        reads, writes = self._read(source, conv.in_channels), f"{name}.out"
        real = name not in self.binary
        region.layers.append(
            Layer(name, reads, writes, conv.in_channels, conv.out_channels, conv.kernel_size[0], self.stage[node], real, around)
        )
        region.sites[name] = Site("shortcut" if real else "binary", node, norm, conv.in_channels, conv.out_channels)
        region.edge[norm] = writes
        region.width[writes] = conv.out_channels

    def _shortcuts(self) -> dict[fx.Node, str]:
        """1x1 convolutions that go around a binary layer, and its name: they read the same tensor, and meet in the next sum."""
        around: dict[fx.Node, str] = {}
        sums = [[a for a in node.args if isinstance(a, fx.Node)] for node in self.graph.nodes if is_sum(node)]
        for node, norm in self.claims.items():
            conv = module_of(node, self.modules)
            if not isinstance(conv, nn.Conv2d) or tuple(conv.kernel_size) != (1, 1):
                continue
            for parts in sums:
                mine = [part for part in parts if self.root[part] is norm]
                if len(mine) != 1:
                    continue
                (other,) = (part for part in parts if part is not mine[0])
                before = _ancestors(other)
                for candidate in self.claims:
                    # Of two that go around each other the second is the layer.
                    is_layer = candidate is not node and candidate not in around and str(candidate.target) in self.binary
                    if is_layer and candidate in before and self._same_input(candidate, node):
                        around[node] = str(candidate.target)
                        break
                break
        return around

    def _same_input(self, a: fx.Node, b: fx.Node) -> bool:
        x, y = a.args[0], b.args[0]
        return isinstance(x, fx.Node) and isinstance(y, fx.Node) and self.root[x] is self.root[y]

    def _norm(self, node: fx.Node, source: fx.Node, channels: int) -> None:
        region = self.region
        if self._inside(source):
            if source not in region.flat:
                self._hold(node, source)
                region.wide.append(node)
            return
        name, reads, writes = str(node.target), f"{node.target}.in", f"{node.target}.out"
        region.layers.append(Layer(name, reads, writes, channels, channels, 1, self.stage[node], real=True))
        region.sites[name] = Site("source", None, node, channels, channels)
        region.edge[node] = writes
        region.width[reads] = region.width[writes] = channels

    def _pass(self, node: fx.Node, module: nn.Module | None, source: fx.Node) -> None:
        region = self.region
        if source in self.channels:
            self.channels[node] = self.channels[source]
        if not self._inside(source):
            return
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            if self.uses[str(node.target)] > 1 or source in region.flat:
                return
            region.wide.append(node)
        self._hold(node, source)
        if is_one_pixel(node, module):
            self.one_pixel.add(node)

    def _sum(self, node: fx.Node) -> None:
        region = self.region
        parts = [a for a in node.args if isinstance(a, fx.Node)]
        inside = [part for part in parts if self._inside(part)]
        if not inside:
            if len({self.channels.get(part) for part in parts}) == 1 and parts[0] in self.channels:
                self.channels[node] = self.channels[parts[0]]
            return
        block = region.block(inside[0])
        flat = inside[0] in region.flat
        for part in parts:
            if self._inside(part):
                if region.block(part) != block or (part in region.flat) != flat:
                    return
            elif flat or self.channels.get(part) != block:
                return
        edges = tuple(self._read(part, block) for part in parts)
        region.edge[node] = f"{node.name}.sum"
        region.width[region.edge[node]] = region.width[region.edge[inside[0]]]
        region.joins.append(Join(edges, region.edge[node]))
        self.channels[node] = block
        if flat:
            region.flat[node] = block
        if all(part in self.one_pixel for part in parts):
            self.one_pixel.add(node)

    def _flatten(self, node: fx.Node, source: fx.Node) -> None:
        region = self.region
        if not self._inside(source) or source in region.flat:
            return
        if source in self.one_pixel:
            features: int | None = region.block(source)
        else:
            features = self._features(node, region.block(source))
        if features is not None:
            self._hold(node, source)
            region.flat[node] = features

    def _features(self, node: fx.Node, width: int) -> int | None:
        """Features of a block of a flattened map of several pixels, if only linear layers read it."""
        found = set()
        for user in node.users:
            module = module_of(user, self.modules)
            if isinstance(module, nn.Linear):
                found.add(module.in_features)
            elif isinstance(module, nn.Dropout | nn.Identity):
                found.add(self._features(user, width) or 0)
            else:
                return None
        features = found.pop() if len(found) == 1 else 0
        return features if features and features % width == 0 else None

    def _close(self) -> None:
        """Edges that end at a border hold one block, whatever the classifier is given."""
        region = self.region
        read = {layer.reads for layer in region.layers} | {edge for join in region.joins for edge in join.inputs}
        going_on: set[fx.Node] = set()  # from here a convolution is reached: a gate's linear layer is no classifier
        for node in reversed(self.graph.nodes):
            if any(user in going_on or isinstance(module_of(user, self.modules), nn.Conv2d) for user in node.users):
                going_on.add(node)
        for node in region.flat:
            for user in node.users:
                once = type(module_of(user, self.modules)) is nn.Linear and self.uses[str(user.target)] == 1
                if once and user not in going_on and user.args[:1] == (node,):
                    region.heads.add(user)
        heads = {region.edge[source] for user in region.heads for source in user.all_input_nodes}
        for edge in (*[layer.writes for layer in region.layers], *[join.output for join in region.joins]):
            if edge not in read and edge not in heads:
                width = region.width[edge]
                # A layer that reads and writes one edge fixes its number of blocks at 1 and asks for nothing else.
                region.layers.append(Layer(f"behind {edge}", edge, edge, width, width, real=True))


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found | {node}
