"""One step of the bilevel search: the architecture and the weights, each on scenes of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.models.network import Block, Network
from manas_jax.runtime import sharding
from manas_jax.runtime.compilation import Compiler, CompileStats, ParallelCompiler
from manas_jax.search import bilevel
from manas_jax.search.modular_grad import scene_grad
from manas_jax.training import losses
from manas_jax.training.accumulation import accumulate, microbatch_shapes
from manas_jax.training.budget import BudgetState
from manas_jax.training.state import SearchState

PyTree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Blocks = tuple[Block, ...]


class SceneGrads(NamedTuple):
    """Gradients of the restoration loss of a batch.

    Attributes:
      params: gradient by the weights.
      architecture: gradient by the architecture; None for a path.
      batch_stats: running statistics, updated by this batch.
      metrics: the loss ('restoration') and its terms.
    """

    params: PyTree
    architecture: PyTree | None
    batch_stats: PyTree
    metrics: Metrics


class SearchStep:
    """(state, weight_batch, architecture_batch) -> (state, metrics).

    The gradient by weights and architecture together is one function (`modular_grad.scene_grad`).
    It is called at w, w' and w +- eps v, on weight and on architecture scenes alike, so the finite
    difference compiles nothing of the network that the first order does not. Regularization and
    complexity depend on the architecture alone and are added to it.

    Every evaluation normalises by the statistics of its own batch, as training does: the
    architecture is evaluated on the function that its gradient is taken of. The running statistics
    lag behind the weights and do not know w'. Only `weight_step` updates them.
    """

    def __init__(
        self,
        network: Network,
        weight_optimizer: optax.GradientTransformation,
        architecture_optimizer: optax.GradientTransformation,
        *,
        hypergradient: str,
        loss_weights: LossWeights,
        complexity_model: losses.ComplexityModel,
        internal_from: int = 0,
        xi: float = 1.0,
        epsilon: float = 0.01,
        microbatches: int = 1,
        fuse: bool = False,
        devices: int = 1,
    ):
        """Compiles nothing yet.

        Args:
          network: the supernet.
          weight_optimizer: updates the weights, and makes the unrolled step.
          architecture_optimizer: updates the architecture.
          hypergradient: a key of `bilevel.HYPERGRADIENTS`.
          loss_weights: coefficients of the loss terms.
          complexity_model: costs of the choices.
          internal_from: step from which on the internal loss counts.
          xi: length of the unrolled step in units of the real one.
          epsilon: see `bilevel.BilevelProblem`.
          microbatches: number of microbatches per batch, see `accumulation.accumulate`.
          fuse: whether each half of a step is compiled as one program. Right for accelerators;
            XLA:CPU takes many times as long to compile it, and runs it no faster.
          devices: that a batch is split over. Over several, the gradient is one program: many
            programs in flight, each of which waits for all devices, can deadlock.
        """
        self._network = network
        self._weight_optimizer = weight_optimizer
        self._architecture_optimizer = architecture_optimizer
        self._hypergradient = bilevel.HYPERGRADIENTS[hypergradient]
        self._loss_weights = loss_weights
        self._complexity_model = complexity_model
        self._epsilon = epsilon
        self._microbatches = microbatches
        self._fuse = fuse
        self._scene_grad = scene_grad(network, loss_weights, internal_from)
        self._modular = devices == 1
        if not self._modular:
            self._scene_grad = jax.jit(self._scene_grad)
        self._unrolled_step = jax.jit(partial(bilevel.unrolled_step, weight_optimizer, xi=xi))
        self._unrolled_step_vjp = jax.jit(
            partial(bilevel.unrolled_step_vjp, weight_optimizer, xi=xi)
        )
        # Not of the whole state: thousands of arrays that pass through a program cost time.
        self._update_architecture = jax.jit(self._update_architecture, donate_argnums=(0, 1))
        self._update_params = jax.jit(self._update_params, donate_argnums=(0, 1, 2))
        if fuse:
            self.architecture_step = jax.jit(self.architecture_step, donate_argnums=0)
            self.weight_step = jax.jit(self.weight_step, donate_argnums=0)

    def __call__(
        self, state: SearchState, weight_batch: Batch, architecture_batch: Batch | None
    ) -> tuple[SearchState, Metrics]:
        """Updates the architecture, unless its batch is None (warm-up), then the weights."""
        metrics = {}
        if architecture_batch is not None:
            state, metrics = self.architecture_step(state, weight_batch, architecture_batch)
        state, weight_metrics = self.weight_step(state, weight_batch)
        return state, {**metrics, **weight_metrics}

    def architecture_step(
        self, state: SearchState, weight_batch: Batch, architecture_batch: Batch
    ) -> tuple[SearchState, Metrics]:
        """Updates the architecture by the hypergradient of the architecture scenes' loss."""
        metrics = {}

        def grads(batch, params, architecture):
            return self._grads(params, architecture, state.batch_stats, state.step, batch)

        def train_grad(params, architecture):
            found = grads(weight_batch, params, architecture)
            return found.params, found.architecture

        def val_grad(params, architecture):
            found = grads(architecture_batch, params, architecture)
            metrics.update({f"architecture_{k}": v for k, v in found.metrics.items()})
            return found.params, found.architecture

        problem = bilevel.BilevelProblem(
            train_grad,
            val_grad,
            mixed_hvp=partial(self._mixed_hvp, state.batch_stats, state.step, weight_batch),
            unrolled_step=partial(self._unrolled_step, state.opt_state),
            unrolled_step_vjp=partial(self._unrolled_step_vjp, state.opt_state),
            epsilon=self._epsilon,
        )
        grad = self._hypergradient(problem, state.params, state.architecture)
        architecture, opt_state, architecture_metrics = self._update_architecture(
            state.architecture, state.architecture_opt_state, grad
        )
        state = state.replace(architecture=architecture, architecture_opt_state=opt_state)
        return state, {**metrics, **architecture_metrics}

    def weight_step(
        self, state: SearchState, batch: Batch, path: Blocks | None = None
    ) -> tuple[SearchState, Metrics]:
        """Updates weights and running statistics.

        `path`, unless None, are the blocks to compute in place of all; see `single_path.blocks`.
        """
        grads = self._grads(
            state.params, state.architecture, state.batch_stats, state.step, batch, path
        )
        step, params, opt_state = self._update_params(
            state.step, state.params, state.opt_state, grads.params
        )
        state = state.replace(
            step=step, params=params, batch_stats=grads.batch_stats, opt_state=opt_state
        )
        return state, grads.metrics

    def _grads(self, params, architecture, batch_stats, step, batch, path=None) -> SceneGrads:
        scene_grad = partial(self._scene_grad, path=path) if path else self._scene_grad

        def on_microbatch(microbatch, previous):
            stats = previous.batch_stats if previous else batch_stats
            grads, aux = scene_grad(params, architecture, stats, step, microbatch)
            return SceneGrads(*grads, *aux)

        return accumulate(on_microbatch, batch, self._microbatches, carry="batch_stats")

    def _mixed_hvp(self, batch_stats, step, batch, params, architecture, v) -> PyTree:
        def on_microbatch(microbatch, _):
            def architecture_grad(params, architecture):
                grads, _ = self._scene_grad(params, architecture, batch_stats, step, microbatch)
                return grads[1]

            return bilevel.mixed_hvp(architecture_grad, params, architecture, v)

        return accumulate(on_microbatch, batch, self._microbatches)

    def _update_architecture(self, architecture, opt_state, grad):
        loss_fn = partial(
            losses.architecture_loss,
            loss_weights=self._loss_weights,
            complexity_model=self._complexity_model,
        )
        own_grad, metrics = jax.grad(loss_fn, has_aux=True)(architecture)
        grad = jax.tree.map(jnp.add, grad, own_grad)
        updates, opt_state = self._architecture_optimizer.update(grad, opt_state, architecture)
        metrics["architecture_gradient_norm"] = optax.tree.norm(grad)
        for name in BudgetState._fields:
            value = optax.tree.get(opt_state, name)
            metrics |= {} if value is None else {f"budget_{name}": value}
        return optax.apply_updates(architecture, updates), opt_state, metrics

    def _update_params(self, step, params, opt_state, grad):
        updates, opt_state = self._weight_optimizer.update(grad, opt_state, params)
        return step + 1, optax.apply_updates(params, updates), opt_state

    def compile(self, state: SearchState, batch: Mapping[str, Any]) -> CompileStats:
        """Compiles what takes long, ahead of the first step.

        Args:
          state: of which the step will be called.
          batch: arrays, or shapes with shardings.
        """
        with ParallelCompiler(state.step.sharding) as compiler:
            self.compile_programs(compiler, state, batch)
            if self.compiles_lazily:
                args = state.batch_stats, state.step, sharding.zeros(batch), state.params
                jax.block_until_ready(self._mixed_hvp(*args, state.architecture, state.params))
        scenes, versions, height, width, _ = batch["rainy"].shape
        macs = cost.supernet(self._network.space, height, width).macs
        flops = cost.gradient_flops(macs, scenes * versions) * self._hypergradient.gradient_evals
        return dataclasses.replace(compiler.stats, flops=flops)

    def compile_weight_steps(
        self, state: SearchState, batch: Mapping[str, Any], paths: Sequence[Blocks | None]
    ) -> CompileStats:
        """Compiles `weight_step` for these paths, ahead of the first step; see `compile`."""
        with ParallelCompiler(state.step.sharding) as compiler:
            if self._fuse:
                compiler(self.weight_step, state, batch)
                return compiler.stats
            params, architecture = state.params, state.architecture
            compiler(self._update_params, state.step, params, state.opt_state, params)
            batch = microbatch_shapes(batch, self._microbatches)
            args = params, architecture, state.batch_stats, state.step, batch
            for path in paths:
                if self._modular:
                    self._scene_grad(*args, run=compiler, path=path)
                else:
                    compiler(self._scene_grad, *args)
        return compiler.stats

    @property
    def supports_paths(self) -> bool:
        """Whether `weight_step` can compute a path alone: programs are then those of blocks."""
        return self._modular and not self._fuse and not self._network.scan

    @property
    def compiles_lazily(self) -> bool:
        """Whether only a run compiles some programs: those of an unfused mixed product."""
        return self._hypergradient.needs_mixed_hvp and not self._fuse

    def compile_programs(
        self, compiler: Compiler, state: SearchState, batch: Mapping[str, Any]
    ) -> None:
        """Calls `compiler` with each program of the step, but for `compiles_lazily`.

        Args:
          compiler: called as (program, *arguments, calls=per step).
          state: see `compile`.
          batch: see `compile`.
        """
        if self._fuse:
            compiler(self.weight_step, state, batch)
            compiler(self.architecture_step, state, batch, batch)
            return
        params, architecture = state.params, state.architecture
        opt_state, architecture_opt_state = state.opt_state, state.architecture_opt_state
        compiler(self._update_architecture, architecture, architecture_opt_state, architecture)
        compiler(self._update_params, state.step, params, opt_state, params)
        if self._hypergradient.unrolls:
            compiler(self._unrolled_step, opt_state, params, params)
            compiler(self._unrolled_step_vjp, opt_state, params, params, params)
        batch = microbatch_shapes(batch, self._microbatches)
        args = params, architecture, state.batch_stats, state.step, batch
        grad = partial(compiler, calls=self._hypergradient.gradient_evals * self._microbatches)
        if self._modular:
            self._scene_grad(*args, run=grad)
        else:
            grad(self._scene_grad, *args)
