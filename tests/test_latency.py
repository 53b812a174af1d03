"""Tables of milliseconds: measured parts add up, and a search takes them as costs."""

import errno
import functools
import itertools
import json
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manas_jax import files, latency
from manas_jax.config import search_budget, validate
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.latency_table import NANOSECONDS, LatencyTable
from manas_jax.models.network import genotype_logits
from manas_jax.search.derivation import likeliest_within
from manas_jax.space import ALL_COLUMNS, Genotype, SearchSpace, random_genotype
from manas_jax.training import checks
from manas_jax.training.budget import dual_ascent
from manas_jax.training.losses import expected_cost
from manas_jax.workdir import provenance

CHANGES = {
    "space__columns": (2,),
    "space__column_choices": ALL_COLUMNS,
    "space__widths": (0.25, 1.0),
    "space__candidates": ("none", "skip_connect", "SE"),
}


class Stub:
    """Milliseconds of runs that it does not run: parts add up, and every call costs 5 besides."""

    def __init__(self, space):
        self._space, self._parts = space, latency.parts(space)

    def __call__(self, runs):
        return {key: self.time(key) for key in runs}

    def time(self, key):
        if isinstance(key, Genotype):
            return 40 + sum(map(self._once, self._chosen(key)))
        part, copies = key
        return 5 + copies * self._once(part)

    def _once(self, part):
        return 1 + self._parts.index(part) / 8 if part in self._parts else 0

    def _chosen(self, genotype):
        for choice, widths in zip(genotype.columns[0], genotype.widths[0], strict=True):
            yield latency.Part("columns", 2, choice)
            yield from (latency.Part("widths", b, w) for b, w in enumerate(widths))
        for b, (name,) in enumerate(genotype.attention[0]):
            yield latency.Part("attention", b, name)


@pytest.fixture(scope="module")
def space(make_config):
    return SearchSpace(**make_config(**CHANGES).space)


@pytest.fixture
def config(make_config):
    return make_config(**CHANGES)


@pytest.fixture
def table(config, space, tmp_path):
    """A measured table of the space of `config`, and its file; nothing is run."""
    budgeted = config.copy_and_resolve_references()
    # The configuration that the file is for, which would have to have a budget.
    budgeted.search.update(
        method="uniform", budget=0.0, budget_of="milliseconds", latency="later.json"
    )
    made = latency.measure(budgeted, "onnx", Stub(space))
    write_json(tmp_path / "table.json", made)
    return made, tmp_path / "table.json"


@pytest.mark.parametrize("engine", ["onnx", "jax"])
def test_parts_add_up(monkeypatch, config, space, tmp_path, engine):
    """All runs run; whole networks take what the table predicts, where parts do add up."""
    monkeypatch.setattr(latency, "ANCHORS", 1)
    monkeypatch.setattr(latency, "CHECKS", 1)
    ran, stub = [], Stub(space)

    def timer(runs):
        for key, run in runs.items():
            run()
            ran.append(key)
        return stub(runs)

    made = latency.measure(config, engine, timer)
    assert len(ran) == len(set(ran)) == 2 * len(made["parts"]) + 2
    assert made["milliseconds"]["fixed"] == pytest.approx(40)
    assert made["engine"] == engine and made["device"] == provenance.device()
    assert abs(made["check"]["largest_error_percent"]) < 1e-4
    write_json(tmp_path / "table.json", made)
    table = LatencyTable.load(tmp_path / "table.json")
    for seed in range(20):
        genotype = random_genotype(space, seed)
        assert table.cost(genotype) / NANOSECONDS == pytest.approx(stub.time(genotype))


def test_copies_of_a_part_are_run_one_after_the_other(space):
    """Parameters are positive noise: a block adds to what it is given, a gate takes away."""
    block, gate = latency.Part("widths", 0, 0.25), latency.Part("attention", 1, "SE")
    for make in (latency._onnx_part, latency._jax_part):
        for part, sign in ((block, 1), (gate, -1)):
            (x,) = latency._inputs(space, (64, 64), part)
            x = x.transpose(0, 3, 1, 2) if make is latency._onnx_part else x
            one, four = (np.squeeze(make(space, (64, 64), part, n)()) for n in (1, 4))
            assert one.shape == x.shape[1:]
            assert np.all(sign * one > sign * x) and np.all(sign * four > sign * one)


def test_errors_of_the_sum_are_stated(config, space):
    def timer(runs):
        found = Stub(space)(runs)
        for key in list(runs)[-latency.CHECKS :]:
            found[key] *= 1.1
        return found

    check = latency.measure(config, "onnx", timer)["check"]
    assert check["mean_error_percent"] == pytest.approx(100 - 100 / 1.1)
    assert check["largest_error_percent"] == pytest.approx(100 / 1.1 - 100)


def test_least_of_runs_in_turn(monkeypatch):
    """Programs of 2 and 3 seconds on a machine that often does something else besides."""
    order, now, delays = [], [0.0], itertools.cycle((1.0, 0.0, 0.5, 4.0))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(name, seconds):
        order.append(name)
        now[0] += seconds + next(delays)

    runs = {"a": functools.partial(run, "a", 2.0), "b": functools.partial(run, "b", 3.0)}
    assert latency.time_in_turn(runs) == {"a": 2000, "b": 3000}
    assert order == (["a"] * latency.IN_A_ROW + ["b"] * latency.IN_A_ROW) * latency.ROUNDS


def test_search_within_milliseconds(config, space, table, float64):
    """Expected cost, derivation and multiplier use the table, in 100 cases within the budget."""
    config.search.update(budget_of="milliseconds", latency=str(table[1]), budget=60.0)
    validate(config)
    budget = search_budget(config)
    cheapest, most_expensive = budget.extremes(space)
    costs = [budget.cost(random_genotype(space, seed)) for seed in range(200)]
    assert (min(costs), max(costs)) == (cheapest, most_expensive)
    for seed in range(20):
        genotype = random_genotype(space, seed)
        logits = jax.tree.map(jnp.float64, genotype_logits(genotype))
        assert float(expected_cost(space, budget, logits)) == pytest.approx(
            budget.cost(genotype), rel=1e-12
        )
        ascent = dual_ascent(space, budget, 0.1)
        _, state = ascent.update(optax.tree.zeros_like(logits), ascent.init(logits), logits)
        target = min(budget.limit, most_expensive)
        assert float(state.excess) == pytest.approx(budget.cost(genotype) / target - 1, abs=1e-6)
    for seed in range(100):
        draw = np.random.default_rng(seed)
        config.search.budget = float(draw.uniform(cheapest, most_expensive)) / NANOSECONDS + 1e-6
        scores = {
            kind: draw.normal(size=(*shape, len(space.choices[kind])))
            for kind, shape in space.decisions.items()
        }
        within = search_budget(config)
        assert within.cost(likeliest_within(space, scores, within)) <= within.limit


def _break(*keys, value):
    def change(fields):
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_break("milliseconds", "fixed", value=float("nan")), r"milliseconds\.fixed is nan, not"),
        (
            _break("milliseconds", "widths", 1, 0, value=-1.0),
            r"widths\[1\]\[0\] is -1\.0, not 0 or",
        ),
        (_break("milliseconds", "columns", 0, 1, value="1"), r"columns\[0\]\[1\] is no number"),
        (_break("milliseconds", "attention", value=[]), r"milliseconds\.attention has not 2 rows"),
        (_break("version", value=2), r"not of format manas_jax\.latency, version 1"),
        (
            _break("space", "stem_blocks", value=2),
            r"measured for another space\.stem_blocks: measu",
        ),
        (
            _break("size", value=[64, 96]),
            r"of 64x96 pixels, and objectives\.complexity_size is 64x64",
        ),
        (lambda fields: fields.pop("milliseconds"), r"latency table .*milliseconds"),
    ],
)
def test_tables_that_do_not_fit(config, table, change, message):
    fields, file = table
    change(fields)
    file.write_text(json.dumps(fields))
    config.search.update(budget_of="milliseconds", latency=str(file), budget=60.0)
    with pytest.raises(UserError, match=message) as error:
        validate(config)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_tables_that_are_missing_or_of_another_device(config, table, tmp_path):
    config.search.update(budget_of="milliseconds", budget=60.0)
    with pytest.raises(UserError, match=r"search\.latency is empty: name a table"):
        validate(config)
    config.search.latency = str(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"none\.json: cannot read this latency table .*: measure"):
        validate(config)
    fields, file = table
    config.search.latency = str(file)
    checks.check_budget(config)
    config.search.budget = 1.0
    with pytest.raises(UserError, match=r"search\.budget = 1 milliseconds: networks .* cost 4\d"):
        validate(config)
    config.search.budget = 60.0
    file.write_text(json.dumps(fields | {"device": "abacus"}))
    with pytest.raises(UserError, match=r"measured on abacus, and this is .*: search there, or"):
        checks.check_stages(config, tmp_path, ["search"])


def test_a_table_that_cannot_be_written(config, tmp_path, monkeypatch):
    """By name it is refused before anything is measured; a full disk is one line."""
    out = types.SimpleNamespace(value="")
    monkeypatch.setattr(latency, "_OUT", out)
    monkeypatch.setattr(latency, "_ENGINE", types.SimpleNamespace(value=None))
    monkeypatch.setattr(latency, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=r"^--out= cannot be written: give a file"):
        latency.main(config, None)
    out.value = str(tmp_path / "table.json")
    monkeypatch.setattr(latency, "measure", lambda *_: {})
    monkeypatch.setattr(files, "replacing", _full)
    with pytest.raises(UserError, match=r"^--out=.*table\.json cannot be written \(No space left"):
        latency.main(config, None)


def _full(_):
    raise OSError(errno.ENOSPC, "No space left on device")
