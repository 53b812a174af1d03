"""Agreement with the authors' PyTorch modules: outputs of theirs, recorded, against ours.

The recordings are not part of this project. They are looked for in the folder that MANAS_GOLDEN
names, else in shared/golden beside the repository; without them the tests are skipped. The same
modules are held against plain formulas in test_formulas.py, everywhere.
"""

import functools
import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.inference import import_torch
from manas_jax.models import attention, candidates, columns, layers
from manas_jax.models.network import Network
from manas_jax.ops import XLA
from manas_jax.ops.cpu_train import CPU_TRAIN
from manas_jax.space import CANDIDATES, SearchSpace
from manas_jax.training import losses
from manas_jax.workdir import weights

GOLDEN = pathlib.Path(
    os.environ.get("MANAS_GOLDEN")
    or pathlib.Path(__file__).resolve().parents[3] / "shared" / "golden"
)
FILES = ("modules", "network_a", "network_b", "supernet", "losses")
pytestmark = pytest.mark.skipif(
    not all((GOLDEN / f"{name}.npz").is_file() for name in FILES),
    reason=f"no recordings of the PyTorch modules in {GOLDEN} (set MANAS_GOLDEN)",
)

TOLERANCE = 1e-4  # of the recorded output's standard deviation, in float32
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


@functools.cache
def _load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def _section(file, prefix):
    return {k.removeprefix(prefix): v for k, v in _load(file).items() if k.startswith(prefix)}


def _channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _assert_close(ours, recorded, what="output"):
    """Compares (N, H, W, C) with the recorded (N, C, H, W)."""
    recorded = _channels_last(recorded)
    assert ours.shape == recorded.shape
    error = float(np.abs(np.asarray(ours, np.float64) - recorded).max() / recorded.std())
    print(f"{what}: {error:.1e} of the standard deviation")  # pytest -rP shows it
    assert error <= TOLERANCE


def _run(module, variables, inputs, train, *rest):
    """Applies a module in one compilation; quick to compile matters more here than quick to run."""

    def apply(variables, inputs, *rest):
        return module.apply(variables, inputs, train, *rest, mutable=["batch_stats"])[0]

    options = {"xla_backend_optimization_level": 0}
    return jax.jit(apply, compiler_options=options)(variables, inputs, *rest)


def _imported(module, state, inputs, *rest):
    """A single module's variables out of its state dictionary, nothing left over."""
    shapes = jax.eval_shape(
        lambda inputs, *rest: module.init(jax.random.key(0), inputs, False, *rest), inputs, *rest
    )
    variables, left = import_torch.convert(state, weights.flatten(shapes))
    assert not left
    return variables


def _check_branches(module, name, inputs, train, *rest):
    recorded = _section("modules", f"{name}/")
    state = _section("modules", f"{name}/state/")
    variables = _imported(module, state, inputs, *rest)
    outputs = _run(module, variables, inputs, train, *rest)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    mode = "train" if train else "eval"
    assert len(outputs) == sum(key.startswith(f"output_{mode}_") for key in recorded)
    for b, output in enumerate(outputs):
        _assert_close(output, recorded[f"output_{mode}_{b}"], f"branch {b}")


def _branches(count=4):
    return tuple(_channels_last(_load("modules")[f"branches/input_{b}"]) for b in range(count))


@MODES
@pytest.mark.parametrize("name", CANDIDATES)
def test_candidate(name, train):
    recorded = _section("modules", f"ops/{name}/")
    index = CANDIDATES.index(name)  # how an edge of theirs names its candidates
    state = {f"ops.{index}.{k}": v for k, v in _section("modules", f"ops/{name}/state/").items()}
    x = _channels_last(_load("modules")["ops/input"])
    module = candidates.Edge((name,))
    output = _run(module, _imported(module, state, x), x, train)
    if name == "none":
        assert not recorded[f"output_{'train' if train else 'eval'}"].any()
        np.testing.assert_array_equal(output, 0)
        return
    _assert_close(output, recorded["output_train" if train else "output_eval"])


@MODES
def test_attention_mixed(train):
    recorded = _section("modules", "attention_mixed/")
    x = _channels_last(recorded["input"])
    module = attention.Attention(SearchSpace())
    state = _section("modules", "attention_mixed/state/")
    variables = _imported(module, state, x, recorded["weights"])
    output = _run(module, variables, x, train, recorded["weights"])
    _assert_close(output, recorded["output_train" if train else "output_eval"])


@MODES
def test_bottleneck(train):
    (x,) = _branches(1)
    module = layers.Bottleneck(x.shape[-1] // 4, expansion=4)
    _check_branches(module, "bottleneck", x, train)


@MODES
def test_parallel(train):
    _check_branches(columns.Parallel(), "parallel", _branches(), train)


@MODES
def test_fusion(train):
    _check_branches(columns.Fusion(), "fusion", _branches(), train)


@MODES
def test_fusion_to_first(train):
    module = columns.Fusion(outputs=1)
    _check_branches(module, "fusion_to_first", _branches(), train)


@MODES
def test_transition(train):
    module = columns.Transition((8, 16, 32, 64))
    _check_branches(module, "transition", _branches(3), train)


@MODES
def test_mixed_column(train):
    probabilities = jax.nn.softmax(_load("modules")["mixed_column/logits"])
    _check_branches(columns.Column(), "mixed_column", _branches(), train, probabilities)


@functools.cache
def _network(name):
    """The import of a recorded network, as of a checkpoint."""
    recorded = _load(name)
    if name == "supernet":
        logits = recorded["supernet/column_logits"], recorded["supernet/attention_logits"]
        checkpoint = import_torch.Checkpoint(_section(name, "supernet/state/"), *logits)
    else:
        chosen = np.array(json.loads(str(recorded["genotype_json"]))["attention"])
        checkpoint = import_torch.Checkpoint(_section(name, "net/state/"), chosen=chosen)
    return checkpoint, import_torch.import_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["network_a", "network_b", "supernet"])
def test_every_tensor_is_accounted_for(name):
    checkpoint, imported = _network(name)
    config = json.loads(str(_load(name)["config_json" if name == "supernet" else "genotype_json"]))
    assert imported.space.channels == tuple(config["channels"])
    assert (imported.space.stem_blocks, *imported.space.columns) == tuple(config["modules"])
    used = weights.flatten({k: imported.variables[k] for k in ("params", "batch_stats")})
    assert len(used) + len(imported.dropped) == len(checkpoint.state)
    if name == "supernet":
        assert imported.supernet and not imported.dropped
        return
    found = [("parallel", "fusion").index(c) for cell in imported.genotype.columns for c in cell]
    assert found == config["columns"]
    edges = [e for cell in imported.genotype.attention for module in cell for e in module]
    assert [config["primitives"].index(e) for e in edges] == config["attention"]
    parameters = sum(x.size for x in jax.tree.leaves(imported.variables["params"]))
    assert parameters == cost.derived(imported.genotype, 8, 8).parameters


NETWORKS = [
    *itertools.product([XLA], ["network_a", "network_b"], ["eval", "train"]),
    (XLA, "supernet", "eval"),
    *(
        pytest.param(ops, "supernet", "train", marks=pytest.mark.slow)  # its parts are above
        for ops in (XLA, CPU_TRAIN)
    ),
]


@pytest.mark.parametrize(("ops", "name", "mode"), NETWORKS)
def test_network(ops, name, mode):
    _, imported = _network(name)
    prefix = "supernet" if imported.supernet else "net"
    network = Network(imported.space, None if imported.supernet else imported.genotype, ops)
    variables = {k: imported.variables[k] for k in ("params", "batch_stats")}
    x = _channels_last(_load(name)[f"{prefix}/input"])

    def apply(variables, x, logits):
        return network.apply(variables, x, logits, train=mode == "train", mutable=["batch_stats"])[
            0
        ]

    run = jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})
    output = run(variables, x, imported.variables.get("architecture"))
    recorded = _load(name)[f"{prefix}/output_{mode}"]
    _assert_close(output, recorded)


def test_losses():
    recorded = _load("losses")
    clean = _channels_last(recorded["targets"])
    outputs = _channels_last(recorded["outputs"])
    outputs = outputs.reshape(len(clean), 3, *clean.shape[1:])
    without, _ = losses.restoration_loss(outputs, clean, LossWeights(), 0.0)
    total, _ = losses.restoration_loss(outputs, clean, LossWeights())
    found = {
        "total_without_internal": without,
        "total_with_internal": total,
        "mse_first_image": losses.mean_squared_error(outputs[0, 0], clean[0]),
        "ssim_first_image": losses.ssim(jnp.array(outputs[0, 0]), jnp.array(clean[0])),
        "tv_first_scene": losses.total_variation(outputs)[0],
        "column_entropy": losses.binary_entropy(recorded["column_logits"]),
        "attention_entropy": losses.binary_entropy(recorded["attention_logits"]),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, recorded[name], rtol=1e-5, err_msg=name)
