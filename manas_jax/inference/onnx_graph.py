"""The derived network as an ONNX model, for any number and any size of images.

    images (N, H, W, 3) in [0, 1] -> restored (N, H, W, 3), clipped to [0, 1]

Written node by node: converters of the traced network make ten times as many nodes, for one size.
Functions mirror the modules of `manas_jax.models` with their names. Inside, arrays are NCHW,
BatchNorm is folded into the convolutions, and a separable convolution is two. Needs neither JAX nor
Flax, so that a short command need not load them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from manas_jax import space as spaces
from manas_jax.errors import UserError
from manas_jax.files import first_few
from manas_jax.inference.fold_batch_norm import fold
from manas_jax.inference.tiling import multiple
from manas_jax.registry import registered
from manas_jax.space import Genotype, SearchSpace
from manas_jax.workdir.weights import flatten

PRODUCER = "manas_jax"
OPSET = 21  # of 2024; runtimes refuse what is newer than they are
INPUT, OUTPUT = "images", "restored"
LAYOUT = "nhwc"
LAYOUTS = ("nhwc", "nchw")
"""Orders of the axes of input and output."""


class Map(NamedTuple):
    """A feature map (N, channels, H, W), or a gate that is broadcast to one."""

    name: str
    channels: int


class Graph:
    """The nodes and constants so far, and the parameters that they are made of."""

    def __init__(self, params: Mapping[str, np.ndarray]):
        """Args:
        params: of the network with folded BatchNorm, see `manas_jax.workdir.weights.flatten`."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._params, self._used = params, set[str]()

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its only output."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Adds a constant; returns its name."""
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def param(self, name: str, *shape: int) -> np.ndarray:
        """A parameter of the network.

        Raises:
          UserError: it is missing or has another shape.
        """
        if (value := self._params.get(name)) is None:
            raise UserError(f"missing tensors: {name}")
        if value.shape != shape:
            raise UserError(f"{name}: shape {value.shape}, but the network has {shape}")
        self._used.add(name)
        return value

    def check_all_used(self) -> None:
        """Raises UserError if there are parameters that the network does not have."""
        if extra := sorted(self._params.keys() - self._used):
            raise UserError(f"tensors that the network does not have: {first_few(extra)}")

    def conv(
        self,
        x: Map,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
        stride: int = 1,
        dilation: int = 1,
    ) -> Map:
        """Convolution by a kernel (k, k, C, F), or depthwise by (k, k, 1, C), zero padded."""
        inputs = [x.name, self.constant(kernel.transpose(3, 2, 0, 1), np.float32)]
        if bias is not None:
            inputs.append(self.constant(bias, np.float32))
        attributes = {
            "kernel_shape": kernel.shape[:2],
            "pads": [dilation * (kernel.shape[0] // 2)] * 4,
            "strides": [stride] * 2,
            "dilations": [dilation] * 2,
            "group": x.channels // kernel.shape[2],
        }
        return Map(self.node("Conv", *inputs, **attributes), kernel.shape[3])

    def apply(self, op: str, x: Map, *others: Map, **attributes: Any) -> Map:
        """Adds an elementwise node."""
        name = self.node(op, x.name, *(y.name for y in others), **attributes)
        return Map(name, max(y.channels for y in (x, *others)))

    def sum(self, maps: Sequence[Map]) -> Map:
        """Adds maps in order, two by two, as runtimes fuse an addition into a convolution."""
        first, *others = maps
        for other in others:
            first = self.apply("Add", first, other)
        return first

    def concat(self, maps: Sequence[Map]) -> Map:
        """Joins the channels of maps."""
        name = self.node("Concat", *(x.name for x in maps), axis=1)
        return Map(name, sum(x.channels for x in maps))

    def resize(self, x: Map, factor: int, **attributes: Any) -> Map:
        """Enlarges the last two axes."""
        scales = self.constant([1, 1, factor, factor], np.float32)
        return Map(self.node("Resize", x.name, "", scales, **attributes), x.channels)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The model of all nodes."""
        return helper.make_model(
            helper.make_graph(self.nodes, "manas_jax", inputs, outputs, self.constants),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=10,  # of the time of the opset
            producer_name=PRODUCER,
        )


def build(
    genotype: Genotype,
    variables: Mapping[str, Any],
    pool_side: int | None = None,
    *,
    size: tuple[int, int] | None = None,
    layout: str = LAYOUT,
) -> onnx.ModelProto:
    """The model.

    Args:
      genotype: of the derived network.
      variables: its 'params' and 'batch_stats'.
      pool_side: see `manas_jax.models.network.Network.pool_side`.
      size: height and width that the model declares; None for any.
      layout: of input and output, one of `LAYOUTS`.

    Raises:
      UserError: the variables are not those of the network.
    """
    graph, space = Graph(flatten(fold(variables)["params"])), genotype.space
    axes = [layout.index(axis) for axis in "hw"]
    shape, padded = graph.node("Shape", INPUT), INPUT
    for axis in axes:
        padded = _mirror_pad(graph, padded, shape, axis, multiple(space, pool_side))
    if layout == "nhwc":
        padded = graph.node("Transpose", padded, perm=[0, 3, 1, 2])
    image, name = Map(padded, 3), padded
    if space.patch > 1:
        name = graph.node("SpaceToDepth", name, blocksize=space.patch)
    x = network(graph, genotype, Map(name, 3 * space.patch**2), pool_side)
    if space.patch > 1:
        x = Map(graph.node("DepthToSpace", x.name, blocksize=space.patch, mode="DCR"), 3)
    if space.residual:
        x = graph.apply("Add", image, x)
    name = graph.node("Clip", x.name, graph.constant(0, np.float32), graph.constant(1, np.float32))
    if layout == "nhwc":
        name = graph.node("Transpose", name, perm=[0, 2, 3, 1])
    ends = graph.node("Gather", shape, graph.constant(axes))
    name = graph.node("Slice", name, graph.constant([0, 0]), ends, graph.constant(axes))
    graph.nodes[-1].output[0] = OUTPUT
    graph.check_all_used()
    sides = dict(zip("nhwc", ("N", *(size or ("H", "W")), 3), strict=True))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [sides[axis] for axis in layout])
        for name in (INPUT, OUTPUT)
    ]
    return graph.model(values[:1], values[1:])


def _mirror_pad(graph: Graph, x: str, shape: str, axis: int, multiple: int) -> str:
    """Pads the end of an axis to a multiple with mirror images, repeated as often as needed."""
    zero, one, two, full = (graph.constant(n) for n in (0, 1, 2, multiple))
    side = graph.node("Gather", shape, graph.constant(axis))
    up = graph.node("Add", side, graph.constant(multiple - 1))
    length = graph.node("Mul", graph.node("Div", up, full), full)
    period = graph.node("Mul", side, two)
    index = graph.node("Mod", graph.node("Range", zero, length, one), period)
    mirrored = graph.node("Sub", graph.node("Sub", period, one), index)
    return graph.node("Gather", x, graph.node("Min", index, mirrored), axis=axis)


def network(graph: Graph, genotype: Genotype, x: Map, pool_side: int | None) -> Map:
    """The blocks of `Network` between `preprocess` and `postprocess`."""
    space, branches = genotype.space, [x]
    for i in range(space.stem_blocks):
        branches = [bottleneck(graph, branches[0], f"stem_block{i}", space.channels[0])]
    for cell, count in enumerate(space.branches):
        name = f"cell{cell}"
        branches = transition(graph, branches, f"{name}_transition", space.channels[:count])
        for i, choice in enumerate(genotype.columns[cell]):
            path = f"{name}_column{i}/{choice}"
            if choice == "parallel":
                branches = parallel(graph, branches, path, genotype.widths[cell][i])
            elif choice == "fusion":
                branches = fusion(graph, branches, path)
        for b in range(count):
            chosen = genotype.attention[cell][b]
            side = pool_side and pool_side // (space.patch * 2**b)
            branches[b] = attention(graph, branches[b], f"{name}_attention{b}", chosen, side, space)
    (x,) = fusion(graph, branches, "head_fusion", outputs=1)
    shape = 1, 1, x.channels, 3 * space.patch**2
    return graph.conv(x, graph.param("head_conv/kernel", *shape))


def conv_norm(
    graph: Graph,
    x: Map,
    path: str,
    features: int,
    side: int = 3,
    stride: int = 1,
    relu: bool = True,
) -> Map:
    """Mirrors `ConvNorm`."""
    kernel = graph.param(f"{path}/conv/kernel", side, side, x.channels, features)
    x = graph.conv(x, kernel, graph.param(f"{path}/norm/bias", features), stride)
    return graph.apply("Relu", x) if relu else x


def bottleneck(graph: Graph, x: Map, path: str, features: int) -> Map:
    """Mirrors `Bottleneck`."""
    wide, shortcut = spaces.STEM_EXPANSION * features, x
    if x.channels != wide:
        shortcut = conv_norm(graph, x, f"{path}/shortcut", wide, 1, relu=False)
    x = conv_norm(graph, x, f"{path}/layer0", features, 1)
    x = conv_norm(graph, x, f"{path}/layer1", features, 3)
    x = conv_norm(graph, x, f"{path}/layer2", wide, 1, relu=False)
    return graph.apply("Relu", graph.sum([x, shortcut]))


def residual_block(graph: Graph, x: Map, path: str, width: float) -> Map:
    """Mirrors `ResidualBlock`."""
    hidden = spaces.hidden_channels(x.channels, width)
    y = conv_norm(graph, x, f"{path}/layer0", hidden)
    y = conv_norm(graph, y, f"{path}/layer1", x.channels, relu=False)
    return graph.apply("Relu", graph.sum([x, y]))


def parallel(
    graph: Graph, branches: Sequence[Map], path: str, widths: Sequence[float]
) -> list[Map]:
    """Mirrors `Parallel`."""
    return [
        residual_block(graph, x, f"{path}/branch{b}", width)
        for b, (x, width) in enumerate(zip(branches, widths, strict=True))
    ]


def fusion(
    graph: Graph, branches: Sequence[Map], path: str, outputs: int | None = None
) -> list[Map]:
    """Mirrors `Fusion`."""
    channels = [x.channels for x in branches]

    def route(x: Map, source: int, to: int) -> Map:
        name = f"{path}/from{source}_to{to}"
        if source > to:
            x = conv_norm(graph, x, name, channels[to], 1, relu=False)
            nearest = {"mode": "nearest", "nearest_mode": "floor"}
            factor = 2 ** (source - to)
            return graph.resize(x, factor, coordinate_transformation_mode="asymmetric", **nearest)
        for branch in range(source + 1, to + 1):
            features, last = channels[to if branch == to else source], branch == to
            step = f"{name}_step{branch - source - 1}"
            x = conv_norm(graph, x, step, features, stride=2, relu=not last)
        return x

    return [
        graph.apply("Relu", graph.sum([route(x, source, to) for source, x in enumerate(branches)]))
        for to in range(len(branches) if outputs is None else outputs)
    ]


def transition(
    graph: Graph, branches: Sequence[Map], path: str, channels: Sequence[int]
) -> list[Map]:
    """Mirrors `Transition`."""
    last, made = len(branches) - 1, []
    for branch, features in enumerate(channels):
        x = branches[min(branch, last)]
        inputs = x.channels
        if branch <= last and features != inputs:
            x = conv_norm(graph, x, f"{path}/branch{branch}", features)
        for step in range(last + 1, branch + 1):
            name = f"{path}/branch{branch}_step{step - last - 1}"
            x = conv_norm(graph, x, name, features if step == branch else inputs, stride=2)
        made.append(x)
    return made


def attention(
    graph: Graph,
    x: Map,
    path: str,
    chosen: Sequence[str],
    side: int | None,
    space: SearchSpace,
) -> Map:
    """Mirrors `Attention`."""
    channels, count = x.channels, space.attention_groups
    groups, edges = split(graph, x, count), enumerate(chosen)

    def edge(y: Map) -> Map:
        e, name = next(edges)
        return gated(graph, y, name, f"{path}/edge{e}/{name}", side)

    nodes: list[Map] = []
    for group in groups:
        nodes.append(graph.sum([edge(group), *[edge(node) for node in nodes]]))

    def squeezed(y: Map, reduction: int, name: str) -> Map:
        gate = channel_gate(graph, y, f"{path}/{name}", side, reduction)
        return graph.apply("Mul", y, gate)

    total = squeezed(graph.sum(groups), spaces.GROUP_SE_REDUCTION, "group_gate")
    y = graph.concat([*nodes, total])
    y = conv_norm(graph, y, f"{path}/merge0", channels, 1)
    y = conv_norm(graph, y, f"{path}/merge1", channels, 1, relu=False)
    return squeezed(graph.sum([x, y]), spaces.MODULE_SE_REDUCTION, "module_gate")


def split(graph: Graph, x: Map, count: int) -> list[Map]:
    """Groups of equally many channels."""
    if count == 1:
        return [x]
    each = x.channels // count
    axis = graph.constant([1])
    return [
        Map(
            graph.node(
                "Slice", x.name, graph.constant([i * each]), graph.constant([(i + 1) * each]), axis
            ),
            each,
        )
        for i in range(count)
    ]


def gated(graph: Graph, x: Map, name: str, path: str, side: int | None) -> Map:
    """Mirrors `Edge` with a chosen candidate."""
    if name == "skip_connect":
        return x
    if name == "none":
        return graph.apply("Mul", x, Map(graph.constant(0, np.float32), 1))
    if not (gate := GATES.get(name) or registered(name).onnx):
        raise UserError(f"candidate {name}: has no form in ONNX; de-rain with --engine jax")
    return graph.apply("Mul", x, gate(graph, x, path, side))


def pool(graph: Graph, x: Map, kind: str, side: int | None) -> Map:
    """Mirrors `PooledFeatures.average` and `maximum`: of all pixels or of 3x3 squares.

    Squares are complete, so that the average of their averages is that of the window.
    """
    if side is None:
        return Map(graph.node(f"Global{kind}Pool", x.name), x.channels)
    squares = graph.node(f"{kind}Pool", x.name, kernel_shape=[side] * 2, strides=[side] * 2)
    return Map(graph.node(f"{kind}Pool", squares, kernel_shape=[3, 3], pads=[1] * 4), x.channels)


def broadcast(graph: Graph, gate: Map, side: int | None) -> Map:
    """Mirrors `PooledFeatures.broadcast`."""
    if side is None:
        return gate
    return graph.resize(gate, side, mode="linear", coordinate_transformation_mode="half_pixel")


def pool_channels(graph: Graph, x: Map) -> Map:
    """Mirrors `PooledFeatures.spatial`."""
    axes = graph.constant([1])
    return graph.concat(
        [Map(graph.node(f"Reduce{kind}", x.name, axes), 1) for kind in ("Max", "Mean")]
    )


def channel_gate(
    graph: Graph,
    x: Map,
    path: str,
    side: int | None,
    reduction: int = spaces.CANDIDATE_REDUCTION,
    kinds: Sequence[str] = ("Average",),
    bias: bool = False,
) -> Map:
    """Mirrors `ChannelGate`."""
    hidden = spaces.squeezed(x.channels, reduction)

    def dense(y: Map, name: str, features: int) -> Map:
        kernel = graph.param(f"{path}/mlp/{name}/kernel", y.channels, features)
        shift = graph.param(f"{path}/mlp/{name}/bias", features) if bias else None
        return graph.conv(y, kernel[None, None], shift)

    squeezed = [dense(pool(graph, x, kind, side), "squeeze", hidden) for kind in kinds]
    excited = [dense(graph.apply("Relu", y), "excite", x.channels) for y in squeezed]
    return broadcast(graph, graph.apply("Sigmoid", graph.sum(excited)), side)


def factored_conv(
    graph: Graph,
    x: Map,
    path: str,
    number: int,
    features: int,
    *,
    full: bool = False,
    dilation: int = 1,
) -> Map:
    """Mirrors `FactoredConv`, with the BatchNorm of the same number after it."""
    shape = (3, 3, x.channels, 1) if full else (3, 3, 1, x.channels)
    kernel = graph.param(f"{path}/conv{number}/spatial", *shape)
    pointwise = graph.param(
        f"{path}/conv{number}/pointwise", 1, 1, 1 if full else x.channels, features
    )
    bias = graph.param(f"{path}/norm{number}/bias", features)
    x = graph.conv(x, kernel, dilation=dilation)
    return graph.conv(x, pointwise, bias)


def separable_gate(graph: Graph, x: Map, path: str, side: int | None, spatial: bool) -> Map:
    """Mirrors `SeparableGate`."""
    features = 1 if spatial else x.channels
    x = pool_channels(graph, x) if spatial else x
    y = graph.apply("Relu", factored_conv(graph, x, path, 0, x.channels))
    return graph.apply("Sigmoid", factored_conv(graph, y, path, 1, features))


def dilated_gate(graph: Graph, x: Map, path: str, side: int | None, spatial: bool) -> Map:
    """Mirrors `DilatedGate`."""
    features = 1 if spatial else x.channels
    x = pool_channels(graph, x) if spatial else x
    y = factored_conv(graph, x, path, 0, features, full=spatial, dilation=2)
    return graph.apply("Sigmoid", y)


def cbam_gate(graph: Graph, x: Map, path: str, side: int | None) -> Map:
    """Mirrors `CBAMGate`."""
    channel = channel_gate(graph, x, f"{path}/channel", side, kinds=("Average", "Max"), bias=True)
    y = pool_channels(graph, graph.apply("Mul", x, channel))
    kernel, bias = (
        graph.param(f"{path}/conv/kernel", 7, 7, 2, 1),
        graph.param(f"{path}/norm/bias", 1),
    )
    return graph.apply("Mul", channel, graph.apply("Sigmoid", graph.conv(y, kernel, bias)))


GATES: dict[str, Callable[[Graph, Map, str, int | None], Map]] = {
    "sep_conv_3x3": functools.partial(separable_gate, spatial=False),
    "dil_conv_3x3": functools.partial(dilated_gate, spatial=False),
    "sep_conv_3x3_spatial": functools.partial(separable_gate, spatial=True),
    "dil_conv_3x3_spatial": functools.partial(dilated_gate, spatial=True),
    "SE": channel_gate,
    "SE_A_M": functools.partial(channel_gate, kinds=("Average", "Max")),
    "CBAM": cbam_gate,
}
"""Forms of `manas_jax.models.candidates.GATES`."""
