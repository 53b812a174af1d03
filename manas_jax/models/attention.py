"""The searched attention module at the end of each branch of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from manas_jax import space as spaces
from manas_jax.models import layers
from manas_jax.models.candidates import ChannelGate, Edge, Pools


class Attention(nn.Module):
    """Gated groups of channels, merged, added to the input and gated once more.

    The channels are split into groups F_g. U_g = edge(F_g) + the edges from all U before it: for
    two groups the edges are, in order, F0 -> U0, F1 -> U1, U0 -> U1. The groups U and a
    squeeze-excitation of the groups' sum are concatenated and mixed by two 1x1 convolutions.

    Attributes:
      space: the search space.
      chosen: the candidate of each edge; None for the mixture of all.
      dtype: type of the computation.
      pool_cell: see `manas_jax.models.candidates.Pools`.
    """

    space: spaces.SearchSpace
    chosen: Sequence[str] | None = None
    dtype: Any = None
    pool_cell: int | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, probabilities: Sequence[jax.Array] | None = None
    ) -> jax.Array:
        """(N, H, W, C) -> the same shape. `probabilities` are (candidates,) of each edge."""
        channels = x.shape[-1]
        groups = layers.split(x, self.space.attention_groups)
        edges = iter(range(self.space.edges))

        def edge(y: jax.Array) -> jax.Array:
            e = next(edges)
            names = self.space.candidates if self.chosen is None else (self.chosen[e],)
            module = Edge(names, self.dtype, self.pool_cell, name=f"edge{e}")
            return module(y, train, probabilities[e] if self.chosen is None else None)

        nodes: list[jax.Array] = []
        for group in groups:
            nodes.append(edge(group) + sum(edge(node) for node in nodes))

        def gated(y: jax.Array, reduction: int, name: str) -> jax.Array:
            return y * ChannelGate(reduction, dtype=self.dtype, name=name)(Pools(y, self.pool_cell))

        total = gated(sum(groups), spaces.GROUP_SE_REDUCTION, "group_gate")
        y = jnp.concatenate([*nodes, total], axis=-1)
        y = layers.ConvNorm(channels, 1, dtype=self.dtype, name="merge0")(y, train)
        y = layers.ConvNorm(channels, 1, relu=False, dtype=self.dtype, name="merge1")(y, train)
        return gated(x + y, spaces.MODULE_SE_REDUCTION, "module_gate")
