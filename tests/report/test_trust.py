"""Sentences on how far the result of a search can be trusted."""

import numpy as np

from manas_jax.report import trust
from manas_jax.report.reader import Run, Stage
from manas_jax.space import Genotype, SearchSpace, random_genotype


def _run(columns, attention, genotype):
    steps = np.array([1])
    events = {
        "architecture/columns": (steps, np.array([columns], np.float32)),
        "architecture/attention": (steps, np.array([attention], np.float32)),
    }
    stages = {"search": Stage({}, events)}
    return Run("run", {}, genotype, stages, {}, {})


def test_findings_match_hand_computed_values():
    tiny = SearchSpace(channels=(8,), branches=(1,), columns=(2,))
    genotype = Genotype(tiny, [["fusion", "parallel"]], [[["skip_connect", "SE", "CBAM"]]])
    one_hot = np.eye(9)
    # Edge 1: none 0.6, skip 0.4; edges 2 and 3 are certain.
    edges = [0.6 * one_hot[0] + 0.4 * one_hot[1], one_hot[6], one_hot[8]]
    columns, attention, skips = trust.findings(_run([[0.1, 0.9], [0.7, 0.3]], [edges], genotype))
    entropy = -sum(p * np.log2(p) for p in (0.1, 0.9, 0.7, 0.3)) / 2
    assert "derived choices of the 2 columns hold 80%" in columns
    assert f"Entropy is {entropy:.0%} of" in columns and "has not converged" in columns
    assert "derived choices of the 3 attention edges hold 80%" in attention
    assert "uniform: 11%" in attention and "has converged" in attention
    assert skips.startswith("33% of the derived attention edges are skips")
    assert "most probable choice of 33% of the edges and holds 20% of all" in skips


def test_findings_on_an_undecided_search():
    sentences = trust.findings(_run(np.full((3, 2), 0.5), np.full((3, 3, 9), 1 / 9), None))
    assert len(sentences) == 2 and all("the search is undecided" in s for s in sentences)
    assert all("Entropy is 100%" in s for s in sentences)


def test_widths_of_other_columns_than_parallel_do_not_count():
    space = SearchSpace(channels=(8,), branches=(1,), columns=(2,), widths=(0.5, 1))
    genotype = Genotype(space, [["fusion", "parallel"]], [[["SE"] * 3]], [[[], [0.5]]])
    run = _run([[0, 1], [1, 0]], [np.eye(9)[[6, 6, 6]]], genotype)
    widths = np.array([[[0.5, 0.5], [0.9, 0.1]]], np.float32)
    run.stages["search"].events["architecture/widths"] = np.array([1]), widths
    assert "The result looks trustworthy" in trust.verdict(run)
    _, _, sentence, _ = trust.findings(run)
    assert "derived choices of the 1 residual blocks hold 90%" in sentence
    widths[:] = widths[:, ::-1]
    assert "undecided: the entropy of the widths is 100%" in trust.verdict(run)


def test_no_findings_without_a_search():
    run = Run("run", {}, random_genotype(SearchSpace(), 0), {}, {}, {})
    assert trust.findings(run) == []
