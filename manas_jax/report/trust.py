"""Whether the derived network is what the search preferred, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manas_jax.report.reader import STAGES, Run, Stage
from manas_jax.report.values import get, is_number
from manas_jax.search import collapse
from manas_jax.space import Genotype, SearchSpace

_SEARCHED = {"columns": "columns", "attention": "attention edges", "widths": "residual blocks"}
_CONVERGED = 0.5  # of the highest possible entropy


def verdict(run: Run) -> str:
    """One sentence on whether the search worked; empty without probabilities of a known space."""
    search, space = run.stages.get("search"), run.space
    final = _final_probabilities(search) if search else {}
    if search is None or not final or space is None or not _fit(final, space):
        return ""
    relaxed, derived = (get(search.summary, k, "psnr") for k in ("validation", "derived"))
    gap = relaxed - derived if is_number(relaxed) and is_number(derived) else None
    if warnings := collapse.collapse_warnings(final, space, gap):
        return f"The result does not look trustworthy: {'; '.join(warnings)}."
    cost = "" if gap is None else f", and discretisation cost {gap:.2f} dB"
    return (
        "The result looks trustworthy as far as one run can tell: no collapse to choices without "
        f"parameters, the probabilities have moved away from uniform{cost}. Only a study of "
        "several seeds shows whether it beats random choice (python -m manas_jax.study)."
    )


def findings(run: Run) -> list[str]:
    """Sentences on how clearly the search preferred the derived network; none without a search."""
    search = run.stages.get("search")
    if search is None:
        return []
    sentences = []
    final = _final_probabilities(search)
    for what, probabilities in final.items():
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        indices = _derived_indices(run.genotype, what, rows.shape)
        if what == "widths" and run.space and _fit(final, run.space):
            reached = collapse.reached_widths(final, run.space)
            rows, indices = rows[reached], indices[reached[: len(indices)]]
        if len(rows) and rows.shape[1] > 1:
            sentences.append(_decisiveness(_SEARCHED[what], rows, indices))
    if run.genotype is not None:
        sentences.append(_parameter_free_choices(run.genotype, final))
    psnr = [get(run.stages[s].summary, "validation", "psnr") for s in STAGES if s in run.stages]
    is_relaxed = get(run.config, "search", "method") in (None, "bilevel")  # other ways have none
    if is_relaxed and len(psnr) == 2 and all(map(is_number, psnr)):
        sentences.append(
            f"On the validation scenes the relaxed supernet reached {psnr[0]:.2f} dB and the "
            f"derived network, trained on its own, {psnr[1]:.2f} dB."
        )
    return sentences


def derived_choices(genotype: Genotype | None, what: str) -> list[Any]:
    """Choices of a kind ('columns', ...) in the order of the search's probabilities."""
    return genotype.picks.get(what, []) if genotype else []


def _final_probabilities(search: Stage) -> dict[str, np.ndarray]:
    return {
        what: search.events[f"architecture/{what}"][1][-1].astype(np.float64)
        for what in _SEARCHED
        if f"architecture/{what}" in search.events
    }


def _fit(final: Mapping[str, np.ndarray], space: SearchSpace) -> bool:
    """Whether the probabilities have the shapes of a space."""
    shapes = {kind: (*n, len(space.choices[kind])) for kind, n in space.decisions.items()}
    return {kind: rows.shape for kind, rows in final.items()} == shapes


def _derived_indices(genotype: Genotype | None, what: str, shape: tuple[int, int]) -> np.ndarray:
    """The derived choices as indices of (rows, choices); none if they do not match that shape."""
    chosen = derived_choices(genotype, what)
    names = genotype.space.choices.get(what, ()) if genotype else ()
    if (len(chosen), len(names)) != shape:
        return np.zeros(0, int)
    return np.array([names.index(choice) for choice in chosen], int)


def _decisiveness(what: str, rows: np.ndarray, indices: np.ndarray) -> str:
    """How much probability the derived choices hold, and whether the search has converged.

    Args:
      what: plural of what is chosen.
      rows: probabilities (rows, choices).
      indices: the derived choice of each row; the most probable ones if empty.
    """
    choices = rows.shape[1]
    which = indices if len(indices) else np.argmax(rows, axis=1)
    share = float(np.mean(rows[np.arange(len(rows)), which]))
    entropy = collapse.entropy(rows)
    state = (
        "the search is undecided, and random choices may do as well"
        if entropy > collapse.UNDECIDED
        else "the search has preferences but has not converged"
        if entropy > _CONVERGED
        else "the search has converged"
    )
    return (
        f"The {'derived' if len(indices) else 'most probable'} choices of the {len(rows)} {what} "
        f"hold {share:.0%} of the probability on average (uniform: {1 / choices:.0%}); "
        f"discretisation drops the other {1 - share:.0%}. Entropy is {entropy:.0%} of the highest "
        f"possible: {state}."
    )


def _parameter_free_choices(genotype: Genotype, final: Mapping[str, np.ndarray]) -> str:
    names, candidates = derived_choices(genotype, "attention"), genotype.space.candidates
    skips = np.mean([name == "skip_connect" for name in names])
    sentence = f"{skips:.0%} of the derived attention edges are skips"
    attention = final.get("attention")
    if attention is not None and attention.shape[-1] == len(candidates) and "none" in candidates:
        none = candidates.index("none")
        first = np.mean(np.argmax(attention, axis=-1) == none)
        sentence += (
            f"; “none”, which is never derived, is the most probable choice of {first:.0%} of the "
            f"edges and holds {np.mean(attention[..., none]):.0%} of all probability"
        )
    return sentence + "."
