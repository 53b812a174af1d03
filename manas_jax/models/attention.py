"""The searched attention module at the end of each branch of a cell."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from manas_jax import space as spaces
from manas_jax.models.candidates import ChannelGate, Edge
from manas_jax.models.layers import ConvNorm
from manas_jax.models.pooling import PooledFeatures
from manas_jax.ops import XLA, Ops


class Attention(nn.Module):
    """Gated groups of channels, merged, added to the input and gated once more.

    The channels are split into groups F_g. U_g = edge(F_g) + the edges from all U before it: for
    two groups the edges are, in order, F0 -> U0, F1 -> U1, U0 -> U1. The groups U and a
    squeeze-excitation of the groups' sum are concatenated and mixed by two 1x1 convolutions.

    Attributes:
      space: the search space.
      chosen: the candidate of each edge; None for the mixture of all.
      pool_side: see `manas_jax.models.pooling.PooledFeatures`.
    """

    space: spaces.SearchSpace
    chosen: Sequence[str] | None = None
    pool_side: int | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, probabilities: Sequence[jax.Array] | None = None
    ) -> jax.Array:
        """(N, H, W, C) -> the same shape. `probabilities` are (candidates,) for each edge."""
        channels = x.shape[-1]
        groups = jnp.split(x, self.space.attention_groups, -1)
        edges = iter(range(self.space.edges))

        def edge(y: jax.Array) -> jax.Array:
            e = next(edges)
            names = self.space.candidates if self.chosen is None else (self.chosen[e],)
            module = Edge(names, self.pool_side, self.ops, name=f"edge{e}")
            return module(y, train, probabilities[e] if self.chosen is None else None)

        nodes: list[jax.Array] = []
        for group in groups:
            nodes.append(edge(group) + sum(edge(node) for node in nodes))

        def gated(y: jax.Array, reduction: int, name: str) -> jax.Array:
            pooled = PooledFeatures(y, self.pool_side, self.ops)
            return y * ChannelGate(reduction, ops=self.ops, name=name)(pooled)

        total = gated(sum(groups), spaces.GROUP_SE_REDUCTION, "group_gate")
        y = jnp.concatenate([*nodes, total], axis=-1)
        y = ConvNorm(channels, 1, ops=self.ops, name="merge0")(y, train)
        y = ConvNorm(channels, 1, relu=False, ops=self.ops, name="merge1")(y, train)
        return gated(x + y, spaces.MODULE_SE_REDUCTION, "module_gate")
