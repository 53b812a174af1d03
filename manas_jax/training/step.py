"""One step of the final training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.models.network import Network
from manas_jax.runtime.compilation import Compiler, CompileStats, ParallelCompiler
from manas_jax.training import losses
from manas_jax.training.accumulation import accumulate, microbatch_shapes
from manas_jax.training.state import TrainState

PyTree = Any
Batch = Mapping[str, jax.Array]


class TrainStep:
    """(state, batch) -> (state, metrics)."""

    def __init__(
        self,
        network: Network,
        optimizer: optax.GradientTransformation,
        *,
        loss_weights: LossWeights,
        internal_from: int = 0,
        ema: float = 0.0,
        microbatches: int = 1,
        feature_fn: losses.FeatureFn | None = None,
    ):
        """Compiles nothing yet.

        Args:
          network: the derived network.
          optimizer: updates the weights.
          loss_weights: coefficients of the loss terms.
          internal_from: step from which on the internal loss counts.
          ema: decay of the moving average of weights and statistics; 0 for none.
          microbatches: number of microbatches per batch, see `accumulation.accumulate`.
          feature_fn: the feature loss, see `feature_loss.feature_fn`; None for none.
        """
        self._genotype = network.genotype
        self._optimizer = optimizer
        self._ema = ema
        self._microbatches = microbatches
        self._loss_fn = partial(
            losses.scene_loss_fn, network, loss_weights, internal_from, feature_fn=feature_fn
        )
        if microbatches == 1:
            self.weight_step = jax.jit(
                self.weight_step, donate_argnums=0, static_argnames="frozen_stats"
            )
        else:
            self._grad = jax.jit(self._grad, static_argnames="frozen_stats")
            self._update = jax.jit(self._update, donate_argnums=(0, 2))

    def __call__(
        self, state: TrainState, batch: Batch, frozen_stats: bool = False
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the weights and, unless they are frozen, BatchNorm's running statistics."""
        return self.weight_step(state, batch, frozen_stats)

    def weight_step(
        self, state: TrainState, batch: Batch, frozen_stats: bool
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """What `__call__` does; with one microbatch a single program."""

        def on_microbatch(microbatch, previous):
            batch_stats = previous["batch_stats"] if previous else state.batch_stats
            return self._grad(state.params, batch_stats, state.step, microbatch, frozen_stats)

        result = accumulate(on_microbatch, batch, self._microbatches, carry="batch_stats")
        return self._update(state, result["grad"], result["batch_stats"]), result["metrics"]

    def _grad(self, params, batch_stats, step, batch, frozen_stats):
        loss_fn = self._loss_fn(frozen_stats)
        grad, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
            params, None, batch_stats, step, batch
        )
        return {"grad": grad, "batch_stats": batch_stats, "metrics": metrics}

    def _update(self, state, grad, batch_stats):
        updates, opt_state = self._optimizer.update(grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, state.ema)
        if self._ema:
            # Early on the average is over the steps so far, not over the initial weights.
            decay = jnp.minimum(self._ema, state.step / (state.step + 10))
            ema = optax.incremental_update(
                {"params": params, "batch_stats": batch_stats}, state.ema, 1 - decay
            )
            new = new.replace(ema=ema)
        return new

    def compile(
        self, state: TrainState, batch: Mapping[str, Any], frozen_stats: Sequence[bool] = (False,)
    ) -> CompileStats:
        """Compiles the step ahead of the first call.

        Args:
          state: of which the step will be called.
          batch: arrays, or shapes with shardings.
          frozen_stats: the values with which it will be called.
        """
        with ParallelCompiler(state.step.sharding) as compiler:
            self.compile_programs(compiler, state, batch, frozen_stats)
        scenes, versions, height, width, _ = batch["rainy"].shape
        macs = cost.derived(self._genotype, height, width).macs
        flops = cost.gradient_flops(macs, scenes * versions)
        return dataclasses.replace(compiler.stats, flops=flops)

    def compile_programs(
        self,
        compiler: Compiler,
        state: TrainState,
        batch: Mapping[str, Any],
        frozen_stats: Sequence[bool] = (False,),
    ) -> None:
        """Calls `compiler` with each program of the step.

        Args:
          compiler: called as (program, *arguments, calls=per step). A step counts as one with the
            first of `frozen_stats`: programs of the other one have 0 calls.
          state: see `compile`.
          batch: see `compile`.
          frozen_stats: see `compile`.
        """
        if self._microbatches == 1:
            for number, frozen in enumerate(frozen_stats):
                compiler(self.weight_step, state, batch, frozen, calls=0 if number else 1)
            return
        microbatch = microbatch_shapes(batch, self._microbatches)
        args = state.params, state.batch_stats, state.step, microbatch
        compiler(self._update, state, state.params, state.batch_stats)
        for number, frozen in enumerate(frozen_stats):
            compiler(self._grad, *args, frozen, calls=0 if number else self._microbatches)
