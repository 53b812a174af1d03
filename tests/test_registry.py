"""Candidates of one's own: the ECA gate of the tutorial, and modules that should not be trusted."""

import dataclasses
import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NARROW, ROOT
from PIL import Image
from test_tutorials import blocks

from manas_jax import cost, registry
from manas_jax.cost import Cost
from manas_jax.derain import main as derain
from manas_jax.errors import UserError
from manas_jax.evaluate import restorer
from manas_jax.inference import export
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.hub import model_card
from manas_jax.models.candidates import Edge
from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables, variable_shapes
from manas_jax.ops import Ops
from manas_jax.registry import register_candidate
from manas_jax.report.__main__ import main as report
from manas_jax.space import CANDIDATES, Genotype, SearchSpace, random_genotype
from manas_jax.training.checks import check_candidates
from manas_jax.workdir.weights import load_derived, network_shapes, save_weights

TUTORIAL = ROOT / "docs/tutorials/own_candidate.md"
(ECA,) = (code for _, code in blocks(TUTORIAL) if code.startswith("# eca_gate.py"))


@pytest.fixture
def unregistered(monkeypatch):
    """Candidates that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def eca(unregistered):
    """The tutorial's module, imported."""
    module = types.ModuleType("eca_gate")
    module.__file__ = "eca_gate.py"
    exec(ECA, vars(module))
    return module


@pytest.fixture
def eca_file(tmp_path, monkeypatch, unregistered):
    """The folder of the tutorial's module, which has not been imported, and is the current one."""
    (tmp_path / "eca_gate.py").write_text(ECA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("eca_gate", None)


@pytest.fixture
def eca_weights(eca_file):
    """Weights whose every edge has the gate, written by another process as it were."""
    registry.import_modules(["eca_gate"])
    space = SearchSpace(**(NARROW | {"candidates": ("none", "ECA")}))
    genotype = random_genotype(space, 0)
    save_weights(
        eca_file / "eca.safetensors", init_variables(Network(space, genotype), 0), genotype, {}
    )
    genotype.save(eca_file / "genotype.json")
    registry._registered.clear()
    del sys.modules["eca_gate"]
    return eca_file / "eca.safetensors"


def test_the_gate_is_its_formula(eca):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 6, 8, 16)).astype(np.float32)
    edge = Edge(("ECA",))
    variables = edge.init(jax.random.key(0), x, False)
    taps = variables["params"]["ECA"]["conv"]["kernel"][:, 0, 0]
    padded = np.pad(x.mean(axis=(1, 2)), ((0, 0), (1, 1)))
    logits = sum(tap * padded[:, i : i + 16] for i, tap in enumerate(taps))
    gate = (1 / (1 + np.exp(-logits)))[:, None, None]
    np.testing.assert_allclose(edge.apply(variables, x, False), x * gate, rtol=1e-5)


def test_costs_include_it(eca):
    space = SearchSpace(**(NARROW | {"candidates": ("none", "ECA")}))
    check_candidates(space)
    assert cost.edge(space, 1, "ECA", 8, 8) == Cost(3, 3 * 8)
    genotype = random_genotype(space, 0)
    shapes = network_shapes(genotype)
    total = sum(leaf.size for name, leaf in shapes.items() if name.startswith("params/"))
    assert cost.derived(genotype, 8, 8).parameters == total


def test_its_own_initializer_draws_its_variables(unregistered):
    class Scale(nn.Module):
        ops: Ops
        once: bool = True

        @nn.compact
        def __call__(self, pooled, train):
            drawn = self.param("drawn", nn.initializers.uniform(7.0), (3,))
            seen = self.variable("batch_stats", "seen", lambda: jnp.full((), 5.0)).value
            return self.param("weight", nn.initializers.constant(0.25), ()) * seen * drawn.sum()

    register_candidate("SCALE", Scale, lambda channels, pixels: Cost(4, pixels))
    space = SearchSpace(**(NARROW | {"candidates": ("none", "SCALE", "SE")}))
    network = Network(space)
    shapes, variables = variable_shapes(network), init_variables(network, 0)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda x: x.shape, shapes)
    gates = [block["edge0"]["SCALE"] for block in variables["params"].values() if "edge0" in block]
    assert len(gates) == len(space.modules)
    assert all(gate["weight"] == 0.25 and gate["drawn"].max() > 1 for gate in gates)
    assert len({float(gate["drawn"][0]) for gate in gates}) == len(gates)
    seen = [b["edge0"]["SCALE"]["seen"] for b in variables["batch_stats"].values() if "edge0" in b]
    assert seen == [5.0] * len(gates)
    again, other = init_variables(network, 0), init_variables(network, 1)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, variables, other))


def test_unknown_names_are_refused_everywhere(unregistered):
    space = SearchSpace(**NARROW)
    with pytest.raises(UserError, match=r"candidate magic: not registered; give --import MODULE"):
        cost.edge(space, 0, "magic", 8, 8)
    with pytest.raises(UserError, match=r"candidate magic: not registered"):
        jax.eval_shape(
            lambda: Edge(("magic",)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), False)
        )
    with pytest.raises(UserError, match=r"those that --import MODULE registers, and not 'none'"):
        dataclasses.replace(space, candidates=("none", "magic"))


@pytest.mark.parametrize("name", [*CANDIDATES, "a/b", "", 3])
def test_names_that_cannot_be_registered(unregistered, name):
    with pytest.raises(UserError, match="give"):
        register_candidate(name, None, None)


def test_a_name_is_taken_once(eca):
    with pytest.raises(UserError, match="candidate ECA: the name is taken"):
        register_candidate("ECA", eca.ECAGate, eca.eca_cost)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("parameters=3", "parameters=4"), "has 3 parameters for 4 channels, but its cost says 4"),
        (("return Cost(", "return dict("), "its cost is {'macs': 12, 'parameters': 3}"),
        (("eca_cost(channels, pixels)", "eca_cost(channels)"), "its cost: TypeError: eca_cost"),
        (("    ops: Ops = XLA\n", ""), "candidate ECA: TypeError: .*'ops'"),
        (("return pooled.broadcast(nn", "return (pooled.x[:, None] * nn"), "its gate makes"),
    ],
)
def test_candidates_are_checked_before_the_first_step(unregistered, change, message):
    assert change[0] in ECA
    exec(ECA.replace(*change), {})
    with pytest.raises(UserError, match=message):
        check_candidates(SearchSpace(**NARROW))


def test_genotypes_name_the_module(eca):
    genotype = random_genotype(SearchSpace(**(NARROW | {"candidates": ("SE", "ECA")})), 0)
    text = genotype.to_json()
    assert json.loads(text)["space"]["imports"] == {"ECA": "eca_gate"}
    assert Genotype.from_json(text) == genotype
    assert "imports" not in json.loads(random_genotype(SearchSpace(**NARROW), 0).to_json())["space"]
    card = model_card(genotype, {}, "hf://us/rain")
    assert "\nimport eca_gate " in card and "hf://us/rain --import eca_gate`" in card


def test_weights_import_nothing(eca_weights):
    with pytest.raises(UserError, match=r"eca\.safetensors: .*'ECA' .*--import eca_gate"):
        load_derived(eca_weights)
    assert "eca_gate" not in sys.modules
    registry.import_modules(["eca_gate"])
    assert load_derived(eca_weights)[1].space.imports == {"ECA": "eca_gate"}


@pytest.mark.parametrize("module", ["os; rm -rf", "--engine", "", "a..b"])
def test_only_names_of_modules_are_passed_on(unregistered, module):
    fields = {**NARROW, "candidates": ["ECA"], "imports": {"ECA": module}}
    with pytest.raises(UserError, match=r"'ECA' is not registered; give --import MODULE, which"):
        SearchSpace.from_dict(fields)


@pytest.mark.parametrize("imports", [[1], {"ECA": 3}, "ECA", None])
def test_damaged_imports_make_one_line(unregistered, imports):
    fields = json.loads(random_genotype(SearchSpace(**NARROW), 0).to_json())
    fields["space"]["imports"] = imports
    with pytest.raises(UserError, match=r"net\.json: truncated, damaged or no genotype"):
        Genotype.from_json(json.dumps(fields), "net.json")


def test_onnx_and_jax_agree(eca):
    space = SearchSpace(**(NARROW | {"candidates": ("ECA",)}))
    genotype = random_genotype(space, 0)
    variables = init_variables(Network(space, genotype), 0)
    picture = np.random.default_rng(0).uniform(size=(70, 90, 3)).astype(np.float32)
    by_jax, by_onnx = (
        Derainer(genotype, variables, engine=engine)(picture) for engine in ("jax", "onnx")
    )
    assert by_jax.std() > 0
    np.testing.assert_allclose(by_onnx, by_jax, atol=1e-5)


def test_without_a_form_in_onnx_jax_computes(unregistered):
    exec(ECA.replace("eca_cost, eca_onnx)", "eca_cost)"), {})
    space = SearchSpace(**(NARROW | {"candidates": ("ECA",)}))
    genotype = random_genotype(space, 0)
    network = Network(space, genotype)
    variables = init_variables(network, 0)
    assert Derainer(genotype, variables).engine == "jax"
    picture = np.zeros((16, 16, 3), np.uint8)
    assert restorer(network, variables)(picture).shape == picture.shape
    with pytest.raises(UserError, match=r"candidate ECA: has no form in ONNX; .* --engine jax"):
        Derainer(genotype, variables, engine="onnx")


@pytest.mark.parametrize("command", ["derain", "export", "report"])
def test_commands_import_what_they_are_told(eca_weights, capsys, command):
    Image.new("RGB", (40, 40)).save("in.png")
    arguments = {
        "derain": (derain, ["in.png", "-o", "out.png", "--weights", "eca.safetensors"]),
        "export": (export.main, ["eca.safetensors", "--format", "onnx", "--out", "eca.onnx"]),
        "report": (report, ["--workdir", "."]),
    }
    run, options = arguments[command]
    assert run(options) in (1, 2)
    assert "--import eca_gate, which runs" in capsys.readouterr().err
    assert run([*options, "--import", "eca_gat"]) in (1, 2)
    assert "error: --import eca_gat: no such module" in capsys.readouterr().err
    assert run([*options, "--import", "eca_gate"]) == 0
    assert "eca_gate" in sys.modules


def test_an_error_in_the_module_names_its_line(eca_file):
    (eca_file / "broken_gate.py").write_text("\n1 / 0\n")
    with pytest.raises(
        UserError, match=r"--import broken_gate: ZeroDivisionError: .*broken_gate\.py, line 2"
    ):
        registry.import_modules(["broken_gate"])


@pytest.mark.parametrize("name", ["eca_gate.py", "./eca_gate", "folder/eca_gate", ""])
def test_paths_are_no_modules(eca_file, name):
    with pytest.raises(UserError, match="give a name as in `import NAME`, without path"):
        registry.import_modules([name])
    assert "eca_gate" not in sys.modules


def test_runs_import_before_they_check_the_config(eca_file, run_command):
    done = run_command(
        "--config=tiny",
        "--workdir=run",
        "--config.stage=evaluate",  # which ends for want of a genotype, after the checks
        "--config.space.candidates=('none', 'ECA')",
        "--import=eca_gate",
        cwd=eca_file,
    )
    assert done.returncode == 1 and "genotype" in done.stderr.splitlines()[-1]
    assert not (eca_file / "run" / "config.json").exists()
