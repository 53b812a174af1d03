"""The search: weights on training scenes and architecture on others, in turn, then derivation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.data import lazy_tf
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import Network, genotype_logits
from manas_jax.runtime import distributed, sharding, signals
from manas_jax.runtime.compilation import Ahead, Compilation, compile_all
from manas_jax.search import bilevel, collapse, modular_grad, selection
from manas_jax.space import COLUMNS, Genotype, SearchSpace, derive
from manas_jax.training import build, loop, losses
from manas_jax.training.accumulation import in_parts, part_shapes
from manas_jax.training.evaluator import Validation
from manas_jax.training.metric_logger import MetricLogger, log_parameters
from manas_jax.training.state import SearchState, init_search
from manas_jax.workdir.checkpoints import Checkpoints

PyTree = Any
Batch = Mapping[str, jax.Array]
WEIGHTS_ROLE, ARCHITECTURE_ROLE = 0, 1  # of the batches' seeds
# How often a step evaluates the network's gradients, that of the weights included. The mixed
# product of the exact form, a derivative of one, counts as two.
CALLS = {"first_order": 2, "finite_difference": 5, "exact": 3 + 2}


class Gradients(NamedTuple):
    """Of the restoration loss of one batch, with what came along.

    Attributes:
      weights: gradient with respect to the weights.
      architecture: gradient with respect to the architecture.
      batch_stats: running statistics moved by this batch.
      terms: the loss ('restoration') and its terms.
    """

    weights: PyTree
    architecture: PyTree
    batch_stats: PyTree
    terms: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """One step of the search as two functions of state and batch; make it with `make_step`.

    Attributes:
      move_architecture: (state, weight_batch, architecture_batch) -> (state, terms).
      move_weights: (state, weight_batch) -> (state, terms).
      compile: (state, batch) -> Compilation; compiles what takes long ahead of the first step, for
        arguments like these, whose shapes will do.
    """

    move_architecture: Callable[[SearchState, Batch, Batch], tuple[SearchState, dict]]
    move_weights: Callable[[SearchState, Batch], tuple[SearchState, dict]]
    compile: Callable[[SearchState, Batch], Compilation]

    def __call__(
        self, state: SearchState, weight_batch: Batch, architecture_batch: Batch | None
    ) -> tuple[SearchState, dict[str, jax.Array]]:
        """Moves the architecture, unless its batch is None (warm-up), then the weights."""
        terms = {}
        if architecture_batch is not None:
            state, terms = self.move_architecture(state, weight_batch, architecture_batch)
        state, weight_terms = self.move_weights(state, weight_batch)
        return state, {**terms, **weight_terms}


def make_step(
    network: Network,
    weight_optimizer: optax.GradientTransformation,
    architecture_optimizer: optax.GradientTransformation,
    *,
    hypergradient: str,
    weights: LossWeights,
    complexity_model: losses.ComplexityModel,
    internal_from: int = 0,
    xi: float = 1.0,
    epsilon: float = 0.01,
    accumulate: int = 1,
    fuse: bool = False,
    identity: str = "",
) -> SearchStep:
    """Makes the search step.

    The network's gradient with respect to weights and architecture together is one function, see
    `backpropagation`: it is called at w, w' and w +- eps v, on training and on architecture scenes
    alike, so the finite difference compiles nothing of the network that the first order does not.
    Regularization and complexity depend on the architecture alone and are added outside of it.

    Every evaluation normalises by the statistics of its own batch, as training does: the
    architecture is judged on the function that its gradient is taken of, and the running
    statistics, which lag behind the weights and know nothing of w', play no part. Only
    `move_weights` moves them.

    Args:
      network: the supernet.
      weight_optimizer: moves the weights, and makes the virtual step.
      architecture_optimizer: moves the architecture.
      hypergradient: one of `bilevel.HYPERGRADIENTS`.
      weights: what each term of the objectives counts.
      complexity_model: costs of the choices.
      internal_from: step from which on the internal loss counts.
      xi: length of the virtual step in units of the real one.
      epsilon: see `bilevel.finite_difference`.
      accumulate: parts that each batch is worked on in, see `accumulation.in_parts`.
      fuse: whether a whole step is compiled as one program. Right for accelerators; on CPU the
        compiler takes many times as long for it, and the pieces run as fast.
      identity: tells this step from all others, see `compilation.Ahead`; empty keeps no programs.
    """

    of_scenes = modular_grad.scene_gradients(network, weights, internal_from, identity)

    def gradients(*args) -> Gradients:
        slopes, (batch_stats, terms) = of_scenes.evaluate(*args)
        return Gradients(*slopes, batch_stats, terms)

    def mixed(weights_, architecture, batch_stats, step, batch, v):
        def slope(w, a):
            return gradients(w, a, batch_stats, step, batch).architecture

        return bilevel.mixed_product(slope, weights_, architecture, v)

    # Not of the whole state: thousands of arrays that a program only hands on take their time.
    def update_architecture(architecture, optimizer, gradient):
        judged = functools.partial(
            losses.architecture, weights=weights, complexity_model=complexity_model
        )
        extra, terms = jax.grad(judged, has_aux=True)(architecture)
        gradient = jax.tree.map(jnp.add, gradient, extra)
        updates, optimizer = architecture_optimizer.update(gradient, optimizer, architecture)
        terms["architecture_gradient_norm"] = optax.tree.norm(gradient)
        return optax.apply_updates(architecture, updates), optimizer, terms

    def update_weights(step, weights_, optimizer, gradient):
        updates, optimizer = weight_optimizer.update(gradient, optimizer, weights_)
        return step + 1, optax.apply_updates(weights_, updates), optimizer

    exact = hypergradient == "exact"
    ahead = functools.partial(Ahead.of, identity=identity)
    pieces = {
        "virtual": ahead(
            functools.partial(bilevel.virtual_step, weight_optimizer, xi=xi), name="virtual"
        ),
        "pullback": ahead(
            functools.partial(bilevel.pullback, weight_optimizer, xi=xi), name="pullback"
        ),
        "update_architecture": ahead(update_architecture, donate=(0, 1)),
        "update_weights": ahead(update_weights, donate=(0, 1, 2)),
    }

    def evaluate_in_parts(w, a, batch_stats, step, batch):
        """`Gradients` of a batch."""

        def on(part, before):
            stats = before.batch_stats if before else batch_stats
            return gradients(w, a, stats, step, part)

        return in_parts(on, batch, accumulate, carried="batch_stats")

    def mixed_in_parts(w, a, batch_stats, step, batch, v):
        def on(part, _):
            return mixed(w, a, batch_stats, step, part, v)

        return in_parts(on, batch, accumulate)

    def move_architecture(state, weight_batch, architecture_batch):
        surroundings = state.batch_stats, state.step
        terms = {}

        def gradients_on(batch):
            def evaluate(w, a):
                result = evaluate_in_parts(w, a, *surroundings, batch)
                terms.update({f"architecture_{k}": v for k, v in result.terms.items()})
                return result.weights, result.architecture

            return evaluate

        search_pieces = bilevel.Pieces(
            train=gradients_on(weight_batch),
            validation=gradients_on(architecture_batch),
            mixed=lambda w, a, v: mixed_in_parts(w, a, *surroundings, weight_batch, v),
            virtual=functools.partial(pieces["virtual"], state.weight_optimizer),
            pullback=functools.partial(pieces["pullback"], state.weight_optimizer),
        )
        arguments = search_pieces, state.weights, state.architecture
        if hypergradient == "first_order":
            gradient = bilevel.first_order(*arguments)
        elif hypergradient == "finite_difference":
            gradient = bilevel.finite_difference(*arguments, epsilon)
        else:
            gradient = bilevel.exact(*arguments)
        moved, optimizer, more = pieces["update_architecture"](
            state.architecture, state.architecture_optimizer, gradient
        )
        state = state.replace(architecture=moved, architecture_optimizer=optimizer)
        return state, {**terms, **more}

    def move_weights(state, batch):
        result = evaluate_in_parts(
            state.weights, state.architecture, state.batch_stats, state.step, batch
        )
        step, moved, optimizer = pieces["update_weights"](
            state.step, state.weights, state.weight_optimizer, result.weights
        )
        state = state.replace(
            step=step, weights=moved, batch_stats=result.batch_stats, weight_optimizer=optimizer
        )
        return state, result.terms

    if fuse:
        whole = ahead(move_architecture, donate=0), ahead(move_weights, donate=0)

        def compile_whole(state, batch):
            twice = state, batch, batch
            first, second = compile_all((whole[1], (state, batch)), (whole[0], twice))
            return first + second

        return SearchStep(*whole, compile_whole)

    def compile_parts(state, batch):
        w, a, stats = state.weights, state.architecture, state.batch_stats
        wanted = {
            "update_architecture": (a, state.architecture_optimizer, a),
            "update_weights": (state.step, w, state.weight_optimizer, w),
        }
        if hypergradient != "first_order":
            wanted["virtual"] = state.weight_optimizer, w, w
            wanted["pullback"] = state.weight_optimizer, w, w, w
        where = w, a, stats, state.step, part_shapes(batch, accumulate)

        def of_network():
            of_scenes.compile(*where)
            if exact:
                *others, shapes = where
                jax.block_until_ready(mixed(*others, sharding.zeros(shapes), w))

        made = compile_all(
            *((pieces[name], args) for name, args in wanted.items()), meanwhile=of_network
        )
        groups, versions, height, width, _ = batch["rainy"].shape
        macs = groups * versions * cost.supernet(network.space, height, width).macs
        # Two operations a multiplication; the gradient is twice the work of the function.
        flops = 6.0 * macs * CALLS[hypergradient]
        return dataclasses.replace(functools.reduce(operator.add, made), flops=flops)

    return SearchStep(move_architecture, move_weights, compile_parts)


def search(config: ConfigDict, workdir: str | os.PathLike) -> Genotype:
    """Searches an architecture; goes on from the newest checkpoint.

    Leaves checkpoints and curves in `search/` and, at the end, `genotype.json` and
    `search/summary.json`.

    Raises:
      UserError: no data, a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options = config.search
    workdir = pathlib.Path(workdir)
    folder = workdir / "search"
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    network = build.network(config)
    space = network.space
    warmup = round(options.architecture_warmup * options.steps)

    splits = load_splits(config.data, options.crop)

    @functools.cache
    def sources(rollbacks):
        return [
            build.batches(config, part, "search", role, mesh, rollbacks)
            for part, role in (
                (splits.weights, WEIGHTS_ROLE),
                (splits.architecture, ARCHITECTURE_ROLE),
            )
        ]

    def batches(start, rollbacks):
        on_weights, on_architecture = sources(rollbacks)
        return zip(
            on_weights.iterate(start, options.steps),
            _from(warmup, on_architecture, start, options.steps),
            strict=True,
        )

    sources(0)  # mistakes in the data come out before anything is compiled
    validation = Validation(network, splits.validation, config.data, options.validation_crop, mesh)
    step = make_step(
        network,
        build.search_weight_optimizer(options),
        build.architecture_optimizer(options),
        hypergradient=options.hypergradient,
        weights=build.loss_weights(config),
        complexity_model=losses.ComplexityModel(space, *config.objectives.complexity_size),
        internal_from=round(options.internal_warmup * options.steps),
        xi=options.xi,
        epsilon=options.epsilon,
        accumulate=options.accumulate,
        fuse=options.fuse,
        identity=build.identity(config, "search"),
    )

    def advance(state, batch):
        weight_batch, architecture_batch = batch
        return step(
            state,
            sharding.shard_batch(weight_batch, mesh),
            architecture_batch and sharding.shard_batch(architecture_batch, mesh),
        )

    def score(state):
        return validation(state.variables, state.architecture)

    with Checkpoints(folder / "checkpoints") as checkpoints:

        def newest():
            fresh = sharding.replicate(_fresh(config, network), mesh)
            return checkpoints.restore(fresh) or fresh

        state = newest()
        start = int(state.step)
        if start == options.steps and (folder / "summary.json").exists():
            logging.info("search: all %d steps are done", start)
            return Genotype.load(workdir / "genotype.json")
        if start:
            logging.info("search: goes on from step %d of %d", start, options.steps)
        log_parameters("search", state.weights, folder / "parameters.txt")
        lazy_tf.import_in_background()
        with signals.interruptible():
            compilation = step.compile(state, build.batch_shapes(config, options, mesh))
        logging.info("search: compiled a step; %s", compilation)
        schedule = build.weight_schedule(options)
        with MetricLogger(folder, config, options, checkpoints, start, schedule) as recorder:
            state = loop.run(
                state,
                newest=newest,
                batches=batches,
                advance=advance,
                recorder=recorder,
                score=score,
                max_rollbacks=config.max_rollbacks,
                entry=lambda number, state: _record_architecture(recorder, number, state, space),
            )

        probabilities = _probabilities(state)
        genotype = derive(space, probabilities["columns"], probabilities["attention"])
        if options.choice == "perturbation":
            held_out = sources(0)[1].iterate(0, options.choice_batches)
            judge = selection.Judge(
                config, state, [sharding.shard_batch(b, mesh) for b in held_out]
            )
            genotype = selection.perturbation(space, state.architecture, judge, config.seed)
        parameters = cost.supernet(space, 1, 1).parameters
        relaxed, derived = score(state), validation(state.variables, genotype_logits(genotype))
        gap = relaxed.y_psnr - derived.y_psnr
        facts = {
            "devices": mesh.devices.size,
            "parameters": parameters,
            "derived": {"psnr": derived.y_psnr, "ssim": derived.y_ssim},
            "warnings": collapse.signs(probabilities, space.candidates, gap),
        }
        for sign in facts["warnings"]:
            logging.warning("search: %s; see the report before trusting this architecture", sign)
        summary = recorder.summary(compilation, relaxed) | facts

        def keep():
            genotype.save(workdir / "genotype.json")
            write_json(folder / "summary.json", summary)

        distributed.broadcast_from_primary(keep)
    return genotype


def load(config: ConfigDict, workdir: str | os.PathLike) -> SearchState:
    """The newest search state of a workdir, on the host.

    Raises:
      UserError: nothing was searched here, or the checkpoint is damaged.
    """
    folder = pathlib.Path(workdir) / "search" / "checkpoints"
    if not folder.exists():
        raise UserError(f"{folder} is missing: run the search first (stage=search)")
    fresh = sharding.replicate(_fresh(config, build.network(config)), sharding.make_mesh())
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(fresh)
    if state is None:
        raise UserError(f"{folder} holds no checkpoint: run the search first (stage=search)")
    return jax.device_get(state)


def judge(config: ConfigDict, workdir: str | os.PathLike, batches: int) -> selection.Judge:
    """A judge of architectures by what the search of a workdir came to; see `load` for errors.

    Args:
      config: what the search was run with.
      workdir: where it was run.
      batches: how many batches of architecture scenes to judge by, and of weight scenes to take
        statistics from.
    """
    state = load(config, workdir)
    splits = load_splits(config.data, config.search.crop)
    mesh = sharding.make_mesh(1)
    held_out, seen = (
        build.batches(config, part, "search", role, mesh).iterate(0, batches)
        for part, role in (
            (splits.architecture, ARCHITECTURE_ROLE),
            (splits.weights, WEIGHTS_ROLE),
        )
    )
    return selection.Judge(config, state, list(held_out), list(seen))


def _fresh(config: ConfigDict, network: Network) -> SearchState:
    return init_search(
        network,
        build.search_weight_optimizer(config.search),
        build.architecture_optimizer(config.search),
        config.seed,
    )


def _from(warmup, batches, start, stop):
    """None for each step of the warm-up, then the batches of the steps after it."""
    first = min(max(start, warmup), stop)
    return itertools.chain(itertools.repeat(None, first - start), batches.iterate(first, stop))


def _probabilities(state: SearchState) -> dict[str, np.ndarray]:
    return {k: np.asarray(jax.nn.softmax(v)) for k, v in state.architecture.items()}


def _record_architecture(
    recorder: MetricLogger, step: int, state: SearchState, space: SearchSpace
) -> None:
    """Writes the probabilities and what tells a collapse: entropies and shares of choices."""
    probabilities = _probabilities(state)
    recorder.tensors(step, {f"architecture/{k}": v for k, v in probabilities.items()})
    for sign in collapse.collapsed(probabilities, space.candidates):
        logging.warning("search: step %d: %s", step, sign)
    kinds = {"columns": COLUMNS, "attention": space.candidates}
    shares = {
        f"share/{name}": probabilities[kind][..., i].mean() if probabilities[kind].size else 0.0
        for kind, names in kinds.items()
        for i, name in enumerate(names)
    }
    entropies = {
        f"architecture/entropy_{kind}": losses.binary_entropy(state.architecture[kind])
        for kind in kinds
    }
    recorder.scalars(step, {**shares, **entropies})
