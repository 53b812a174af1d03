"""Every module of the network against its formula, in float64 NumPy and the plainest form.

The formulas are those of PyTorch's layers (zero padding on all sides alike, nearest upsampling,
BatchNorm with eps 1e-5), which the authors' networks are made of. test_parity.py holds the same
modules against recorded outputs of theirs, where these are at hand.
"""

import dataclasses

import jax
import numpy as np
import pytest

from manas_jax.models import attention, candidates, columns, layers
from manas_jax.models.network import Network
from manas_jax.space import CANDIDATES, Genotype, SearchSpace
from manas_jax.workdir.weights import flatten, unflatten

TOLERANCE = 1e-4  # of the expected output's standard deviation, in float32
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


# Layers. A convolution is a sum over its taps; `p` are a module's parameters, `s` its statistics.


def _pad(x, margin):
    return np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _conv(x, kernel, stride=1, dilation=1):
    size = kernel.shape[0]
    margin = dilation * (size // 2)
    height = (x.shape[1] + 2 * margin - dilation * (size - 1) - 1) // stride + 1
    width = (x.shape[2] + 2 * margin - dilation * (size - 1) - 1) // stride + 1
    x, y = _pad(x, margin), 0.0
    for i in range(size):
        for j in range(size):
            rows = slice(dilation * i, dilation * i + stride * (height - 1) + 1, stride)
            cols = slice(dilation * j, dilation * j + stride * (width - 1) + 1, stride)
            y = y + np.einsum("nhwi,io->nhwo", x[:, rows, cols], kernel[i, j])
    return y


def _depthwise(x, kernel, dilation=1):
    per_channel = [
        _conv(x[..., c : c + 1], kernel[:, :, :, c : c + 1], dilation=dilation)
        for c in range(x.shape[-1])
    ]
    return np.concatenate(per_channel, axis=-1)


def _norm(x, p, s, train):
    mean = x.mean(axis=(0, 1, 2)) if train else s["mean"]
    var = ((x - mean) ** 2).mean(axis=(0, 1, 2)) if train else s["var"]
    return (x - mean) / np.sqrt(var + 1e-5) * p.get("scale", 1.0) + p.get("bias", 0.0)


def _relu(x):
    return np.where(x > 0, x, 0.0)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _conv_norm(x, p, s, train, stride=1, relu=True):
    y = _norm(_conv(x, p["conv"]["kernel"], stride), p["norm"], s["norm"], train)
    return _relu(y) if relu else y


def _bottleneck(x, p, s, train):
    shortcut = x
    if "shortcut" in p:
        shortcut = _conv_norm(x, p["shortcut"], s["shortcut"], train, relu=False)
    for i in range(3):
        x = _conv_norm(x, p[f"layer{i}"], s[f"layer{i}"], train, relu=i < 2)
    return _relu(x + shortcut)


def _residual_block(x, p, s, train):
    y = _conv_norm(x, p["layer0"], s["layer0"], train)
    return _relu(x + _conv_norm(y, p["layer1"], s["layer1"], train, relu=False))


def _enlarge(x, factor):
    n, h, w, c = x.shape
    y = np.empty((n, h * factor, w * factor, c))
    for i in range(h * factor):
        for j in range(w * factor):
            y[:, i, j] = x[:, i // factor, j // factor]
    return y


# Columns and transitions.


def _parallel(branches, p, s, train):
    return [
        _residual_block(x, p[f"branch{b}"], s[f"branch{b}"], train) for b, x in enumerate(branches)
    ]


def _fusion(branches, p, s, train, outputs=None):
    made = []
    for to in range(outputs or len(branches)):
        total = 0.0
        for source, x in enumerate(branches):
            name = f"from{source}_to{to}"
            if source > to:
                x = _conv_norm(x, p[name], s[name], train, relu=False)
                x = _enlarge(x, 2 ** (source - to))
            for step in range(to - source):
                layer = f"{name}_step{step}"
                last = step == to - source - 1
                x = _conv_norm(x, p[layer], s[layer], train, stride=2, relu=not last)
            total = total + x
        made.append(_relu(total))
    return made


def _transition(branches, channels, p, s, train):
    made = []
    for b, features in enumerate(channels):
        if b < len(branches):
            x = branches[b]
            if x.shape[-1] != features:
                x = _conv_norm(x, p[f"branch{b}"], s[f"branch{b}"], train)
        else:
            x = branches[-1]
            for step in range(b - len(branches) + 1):
                layer = f"branch{b}_step{step}"
                x = _conv_norm(x, p[layer], s[layer], train, stride=2)
        made.append(x)
    return made


def _column(branches, p, s, train, weights):
    """`weights` of parallel and fusion; one of weight 0 need not be there."""
    paths = {"parallel": _parallel, "fusion": _fusion}
    made = [
        [weight * y for y in run(branches, p.get(name, {}), s.get(name, {}), train)]
        for weight, (name, run) in zip(weights, paths.items(), strict=True)
        if weight
    ]
    return [sum(ys) for ys in zip(*made, strict=True)]


# Candidates and attention modules.


def _mlp(vector, p):
    hidden = vector @ p["squeeze"]["kernel"] + p["squeeze"].get("bias", 0.0)
    return _relu(hidden) @ p["excite"]["kernel"] + p["excite"].get("bias", 0.0)


def _channel_gate(x, p, use_maximum=False):
    logits = _mlp(x.mean(axis=(1, 2)), p["mlp"])
    if use_maximum:
        logits = logits + _mlp(x.max(axis=(1, 2)), p["mlp"])
    return _sigmoid(logits)[:, None, None, :]


def _candidate(name, x, p, s, train):
    pooled = np.stack([x.max(axis=-1), x.mean(axis=-1)], axis=-1)
    if name in ("none", "skip_connect"):
        return x * (name == "skip_connect")
    if name in ("sep_conv_3x3", "sep_conv_3x3_spatial"):
        y = pooled if name.endswith("spatial") else x
        y = _conv(_depthwise(y, p["conv0"]["spatial"]), p["conv0"]["pointwise"])
        y = _relu(_norm(y, {}, s["norm0"], train))
        y = _conv(_depthwise(y, p["conv1"]["spatial"]), p["conv1"]["pointwise"])
        return x * _sigmoid(_norm(y, {}, s["norm1"], train))
    if name == "dil_conv_3x3":
        y = _conv(_depthwise(x, p["conv0"]["spatial"], 2), p["conv0"]["pointwise"])
        return x * _sigmoid(_norm(y, {}, s["norm0"], train))
    if name == "dil_conv_3x3_spatial":
        y = _conv(_conv(pooled, p["conv0"]["spatial"], dilation=2), p["conv0"]["pointwise"])
        return x * _sigmoid(_norm(y, {}, s["norm0"], train))
    if name in ("SE", "SE_A_M"):
        return x * _channel_gate(x, p, use_maximum=name == "SE_A_M")
    assert name == "CBAM"
    y = x * _channel_gate(x, p["channel"], use_maximum=True)
    gate = np.stack([y.max(axis=-1), y.mean(axis=-1)], axis=-1)
    gate = _norm(_conv(gate, p["conv"]["kernel"]), p["norm"], s["norm"], train)
    return y * _sigmoid(gate)


def _edge(x, p, s, train, weights):
    """`weights` by candidate; one that stands alone weighs 1."""
    return sum(
        weight * _candidate(name, x, p.get(name, {}), s.get(name, {}), train)
        for name, weight in weights.items()
    )


def _attention(x, p, s, train, weights):
    """Two groups: U0 = op(F0), U1 = op(F1) + op(U0). `weights` of three edges."""

    def edge(e, y):
        return _edge(y, p.get(f"edge{e}", {}), s.get(f"edge{e}", {}), train, weights[e])

    half = x.shape[-1] // 2
    f0, f1 = x[..., :half], x[..., half:]
    u0 = edge(0, f0)
    u1 = edge(1, f1) + edge(2, u0)
    both = (f0 + f1) * _channel_gate(f0 + f1, p["group_gate"])
    y = np.concatenate([u0, u1, both], axis=-1)
    y = _conv_norm(y, p["merge0"], s["merge0"], train)
    y = x + _conv_norm(y, p["merge1"], s["merge1"], train, relu=False)
    return y * _channel_gate(y, p["module_gate"])


# Random variables and the comparison.


def _variables(shapes, seed):
    draw = np.random.default_rng(seed)

    def leaf(path, shape):
        kind = path.rsplit("/", 1)[-1]
        if kind in ("scale", "var"):
            return draw.uniform(0.5, 1.5, shape)
        spread = 0.2 if kind in ("bias", "mean") else np.prod(shape[:-1]) ** -0.5
        return draw.normal(0, spread, shape)

    made = {path: leaf(path, x.shape).astype(np.float32) for path, x in flatten(shapes).items()}
    return {"params": {}, "batch_stats": {}} | unflatten(made)


def _inputs(*shapes, seed=0):
    draw = np.random.default_rng(seed)
    return tuple(draw.normal(0, 1, shape).astype(np.float32) for shape in shapes)


def _run(module, inputs, train, *rest):
    """Random variables, our outputs, and the running statistics afterwards."""

    def call(module, inputs, *rest):
        if isinstance(module, Network):
            return module(inputs, *rest, train=train)
        return module(inputs, train, *rest)

    def init(inputs, *rest):
        return module.init(jax.random.key(0), inputs, *rest, method=call)

    def apply(variables, inputs, *rest):
        return module.apply(variables, inputs, *rest, method=call, mutable=["batch_stats"])

    variables = _variables(jax.eval_shape(init, inputs, *rest), seed=1)
    # Each is run once: quick to compile matters, quick to run does not.
    run = jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})
    outputs, changed = run(variables, inputs, *rest)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    return double["params"], double["batch_stats"], outputs, changed.get("batch_stats", {})


def _double(inputs):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)


def _assert_close(outputs, expected):
    outputs, expected = jax.tree.leaves(outputs), jax.tree.leaves(expected)
    assert len(outputs) == len(expected)
    for ours, formula in zip(outputs, expected, strict=True):
        assert ours.shape == formula.shape
        assert formula.std() > 1e-3  # a formula that yields nothing would prove nothing
        np.testing.assert_allclose(ours, formula, rtol=0, atol=TOLERANCE * formula.std())


def _mixture(*shape, seed=2):
    logits = np.random.default_rng(seed).normal(0, 1, shape)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return weights.astype(np.float32)


BRANCHES = ((2, 8, 12, 4), (2, 4, 6, 6), (2, 2, 3, 8))


@MODES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=str)
def test_conv_norm(size, stride, train):
    (x,) = _inputs((2, *size, 3))
    module = layers.ConvNorm(4, stride=stride)
    p, s, output, stats = _run(module, x, train)
    _assert_close(output, _conv_norm(_double(x), p, s, train, stride))
    batch = _conv(_double(x), p["conv"]["kernel"], stride)
    share = 0.1 if train else 0.0
    for name, value in (("mean", batch.mean((0, 1, 2))), ("var", batch.var((0, 1, 2)))):
        expected = (1 - share) * s["norm"][name] + share * value
        np.testing.assert_allclose(stats["norm"][name], expected, rtol=1e-5, atol=1e-6)


@MODES
@pytest.mark.parametrize("channels", [3, 8], ids=["shortcut convolved", "shortcut kept"])
def test_bottleneck(channels, train):
    (x,) = _inputs((2, 5, 6, channels))
    p, s, output, _ = _run(layers.Bottleneck(2, expansion=4), x, train)
    assert ("shortcut" in p) == (channels == 3)
    _assert_close(output, _bottleneck(_double(x), p, s, train))


@MODES
def test_parallel(train):
    branches = _inputs(*BRANCHES)
    p, s, outputs, _ = _run(columns.Parallel(), branches, train)
    _assert_close(outputs, _parallel(_double(branches), p, s, train))


@MODES
@pytest.mark.parametrize("outputs", [None, 1], ids=["all", "first"])
def test_fusion(outputs, train):
    branches = _inputs(*BRANCHES)
    p, s, made, _ = _run(columns.Fusion(outputs), branches, train)
    _assert_close(made, _fusion(_double(branches), p, s, train, outputs))


@MODES
def test_mixed_column_feeds_both_paths_its_input(train):
    branches, weights = _inputs(*BRANCHES), _mixture(2)
    p, s, outputs, _ = _run(columns.Column(), branches, train, weights)
    _assert_close(outputs, _column(_double(branches), p, s, train, weights))


@MODES
def test_transition(train):
    branches, channels = _inputs((2, 8, 12, 16), (2, 4, 6, 6)), (4, 6, 8, 10)
    p, s, outputs, _ = _run(columns.Transition(channels), branches, train)
    _assert_close(outputs, _transition(_double(branches), channels, p, s, train))


def test_upsample_is_nearest():
    (x,) = _inputs((2, 3, 2, 4))
    np.testing.assert_array_equal(layers.upsample(x, 4), _enlarge(x, 4))


@MODES
@pytest.mark.parametrize("name", CANDIDATES)
def test_candidate(name, train):
    (x,) = _inputs((2, 7, 9, 8))
    p, s, output, stats = _run(candidates.Edge((name,)), x, train)
    if name == "none":
        np.testing.assert_array_equal(output, 0)
        return
    _assert_close(output, _candidate(name, _double(x), p.get(name), s.get(name), train))
    if name == "CBAM" and train:  # its BatchNorm is the one with momentum 0.01
        gated = _double(x) * _channel_gate(_double(x), p[name]["channel"], use_maximum=True)
        pooled = np.stack([gated.max(-1), gated.mean(-1)], axis=-1)
        batch = _conv(pooled, p[name]["conv"]["kernel"]).mean((0, 1, 2))
        expected = 0.99 * s[name]["norm"]["mean"] + 0.01 * batch
        np.testing.assert_allclose(stats[name]["norm"]["mean"], expected, rtol=1e-5, atol=1e-6)


@MODES
def test_attention_mixed(train):
    (x,), weights = _inputs((2, 6, 8, 16)), _mixture(3, len(CANDIDATES))
    p, s, output, _ = _run(attention.Attention(SearchSpace()), x, train, weights)
    by_name = [dict(zip(CANDIDATES, row, strict=True)) for row in _double(weights)]
    _assert_close(output, _attention(_double(x), p, s, train, by_name))


@MODES
def test_attention_chosen(train):
    (x,), chosen = _inputs((2, 6, 8, 16)), ("SE", "skip_connect", "dil_conv_3x3")
    p, s, output, _ = _run(attention.Attention(SearchSpace(), chosen), x, train)
    _assert_close(output, _attention(_double(x), p, s, train, [{name: 1} for name in chosen]))


SPACE = SearchSpace(channels=(4, 8), branches=(1, 2), columns=(1, 1), stem_blocks=2)


def _network(images, p, s, train, column_weights, attention_weights):
    x, count = images, 0
    for i in range(SPACE.stem_blocks):
        x = _bottleneck(x, p[f"stem_block{i}"], s[f"stem_block{i}"], train)
    branches = [x]
    for cell, number in enumerate(SPACE.branches):
        name = f"cell{cell}_transition"
        branches = _transition(branches, SPACE.channels[:number], p[name], s[name], train)
        name = f"cell{cell}_column0"
        branches = _column(branches, p[name], s[name], train, column_weights[cell])
        for b in range(number):
            name = f"cell{cell}_attention{b}"
            branches[b] = _attention(branches[b], p[name], s[name], train, attention_weights[count])
            count += 1
    (x,) = _fusion(branches, p["head_fusion"], s["head_fusion"], train, outputs=1)
    return _conv(x, p["head_conv"]["kernel"])


@MODES
def test_supernet(train):
    """With few candidates per edge: test_attention_mixed has them all."""
    space = dataclasses.replace(SPACE, candidates=("none", "CBAM", "dil_conv_3x3_spatial"))
    (images,) = _inputs((2, 8, 10, 3))
    draw = np.random.default_rng(3)
    logits = {
        "columns": draw.normal(0, 1, (2, 2)).astype(np.float32),
        "attention": draw.normal(0, 1, (3, 3, len(space.candidates))).astype(np.float32),
    }
    p, s, output, _ = _run(Network(space), images, train, logits)
    odds = {k: np.exp(v) / np.exp(v).sum(-1, keepdims=True) for k, v in _double(logits).items()}
    edges = [[dict(zip(space.candidates, e, strict=True)) for e in m] for m in odds["attention"]]
    _assert_close(output, _network(_double(images), p, s, train, odds["columns"], edges))


@MODES
def test_derived_network_of_any_size(train):
    (images,) = _inputs((2, 7, 9, 3))
    chosen = (
        (("sep_conv_3x3", "skip_connect", "SE"),),
        (("CBAM", "dil_conv_3x3_spatial", "SE_A_M"), ("dil_conv_3x3", "SE", "skip_connect")),
    )
    genotype = Genotype(SPACE, (("parallel",), ("fusion",)), chosen)
    p, s, output, _ = _run(Network(SPACE, genotype), images, train)
    edges = [[{name: 1} for name in module] for cell in chosen for module in cell]
    padded = _double(images)  # the last row and column mirrored, then cut off again
    padded = np.concatenate([padded, padded[:, -1:]], axis=1)
    padded = np.concatenate([padded, padded[:, :, -1:]], axis=2)
    expected = _network(padded, p, s, train, ((1, 0), (0, 1)), edges)
    _assert_close(output, expected[:, :7, :9])
