"""The training as a whole: BatchNorm's statistics are frozen at their step."""

import itertools
import json

import jax
import pytest

from manas_jax import cost
from manas_jax.space import SearchSpace, alternating_genotype
from manas_jax.training import metric_logger, run, stage
from manas_jax.training.validation import Validation


@pytest.mark.parametrize(
    ("share", "start", "frozen", "kinds"),
    [
        (0.5, 0, [False] * 3 + [True] * 3, [False, True]),
        (0.3, 1, [False] + [True] * 4, [True, False]),  # the one of most steps first
        (0.5, 3, [True] * 3, [True]),
        (0.0, 0, [True] * 6, [True]),
        (1.0, 4, [False] * 2, [False]),
        (0.5, 6, [], []),
    ],
)
def test_steps_with_frozen_statistics(share, start, frozen, kinds, make_config):
    options = make_config(train__batch_norm=share, train__steps=6).train
    assert run.frozen_stats(options, start) == frozen
    assert run.kinds_of_steps(options, start) == kinds


def test_statistics_change_until_they_are_frozen(
    tmp_path, monkeypatch, loop_config, count_compilations
):
    """While weights go on to move; no step of either kind is compiled in the loop.

    The last state is scored once.
    """
    states, compiled, scored = [], [], []

    class Recording(metric_logger.MetricLogger):
        def checkpoint(self, step, state, score_fn):
            states.append(jax.device_get((state.params, state.batch_stats)))
            compiled.append(len(compilations))
            super().checkpoint(step, state, score_fn)

    class Counting(Validation):
        def __call__(self, variables):
            scored.append(len(states))
            return super().__call__(variables)

    monkeypatch.setattr(stage, "MetricLogger", Recording)
    monkeypatch.setattr(run, "Validation", Counting)
    config = loop_config(
        train__batch_norm=0.5, train__ema=0.0, train__inherit=False, train__checkpoint_every=6
    )
    genotype = alternating_genotype(SearchSpace(**config.space))
    genotype.save(tmp_path / "genotype.json")
    with count_compilations() as compilations:
        run.train(config, tmp_path)

    def changes(part):
        """Of each step after the first, whether it changed anything."""
        leaves = [jax.tree.leaves(state[part]) for state in states]
        return [
            any(x.tobytes() != y.tobytes() for x, y in zip(*pair, strict=True))
            for pair in itertools.pairwise(leaves)
        ]

    assert len(states) == 6
    assert changes(0) == [True] * 5
    assert changes(1) == [True, True, False, False, False]
    assert len(set(compiled[1:])) == 1
    assert scored == [6]
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    images = config.train.scenes * config.data.versions
    macs = cost.derived(genotype, config.train.crop, config.train.crop).macs
    assert summary["flops_per_step"] == 3 * 2 * images * macs  # though it has two programs
