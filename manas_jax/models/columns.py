"""Columns and transitions: what works on all branches of the multi-scale network at once.

`branches` is a tuple of arrays (N, H / 2**b, W / 2**b, C_b), finest first. After Wang et al.,
"Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from manas_jax import space
from manas_jax.models import layers

Branches = tuple[jax.Array, ...]


class Parallel(nn.Module):
    """One residual block a branch; shapes kept."""

    dtype: Any = None

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Applies the blocks."""
        return tuple(
            layers.ResidualBlock(self.dtype, name=f"branch{b}")(x, train)
            for b, x in enumerate(branches)
        )


class Fusion(nn.Module):
    """Every branch into every branch, summed, then ReLU.

    Up: 1x1 convolution and nearest enlargement. Same: identity. Down: 3x3 convolutions of stride
    2, ReLU between and none after the last.

    Attributes:
      outputs: how many branches to make, finest first; all of them by default.
    """

    outputs: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Applies the exchange; shapes of the branches made are kept."""
        made = range(len(branches) if self.outputs is None else self.outputs)
        channels = [x.shape[-1] for x in branches]

        def path(x: jax.Array, source: int, to: int) -> jax.Array:
            name = f"from{source}_to{to}"
            if source > to:
                layer = layers.ConvNorm(channels[to], 1, relu=False, dtype=self.dtype, name=name)
                return layers.upsample(layer(x, train), 2 ** (source - to))
            for branch in range(source + 1, to + 1):
                last = branch == to
                x = layers.ConvNorm(
                    channels[to if last else source],
                    stride=2,
                    relu=not last,
                    dtype=self.dtype,
                    name=f"{name}_step{branch - source - 1}",
                )(x, train)
            return x

        return tuple(
            nn.relu(sum(path(x, source, to) for source, x in enumerate(branches))) for to in made
        )


class Column(nn.Module):
    """A searched column: the chosen module, or the mixture of both, both fed the same input.

    Attributes:
      choice: 'parallel' or 'fusion'; None for the mixture.
    """

    choice: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, branches: Branches, train: bool, probabilities: jax.Array | None = None
    ) -> Branches:
        """Applies the column; shapes kept. `probabilities` is (2,), in the order of COLUMNS."""

        def run(choice):
            module = {"parallel": Parallel, "fusion": Fusion}[choice]
            return module(dtype=self.dtype, name=choice)(branches, train)

        if self.choice is not None:
            return run(self.choice)
        weights = probabilities.astype(branches[0].dtype)
        mixed = zip(*(run(choice) for choice in space.COLUMNS), strict=True)
        return tuple(weights[0] * first + weights[1] * second for first, second in mixed)


class Transition(nn.Module):
    """Prepares a cell's branches: new scales by stride-2 convolutions, changed channels by 3x3.

    Attributes:
      channels: channels of the branches to make.
    """

    channels: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Returns len(channels) branches; those whose channels stay are passed on untouched."""
        last = len(branches) - 1
        made = []
        for branch, features in enumerate(self.channels):
            x = branches[min(branch, last)]
            inputs = x.shape[-1]
            if branch <= last and features != inputs:
                x = layers.ConvNorm(features, dtype=self.dtype, name=f"branch{branch}")(x, train)
            for step in range(last + 1, branch + 1):
                x = layers.ConvNorm(
                    features if step == branch else inputs,
                    stride=2,
                    dtype=self.dtype,
                    name=f"branch{branch}_step{step - last - 1}",
                )(x, train)
            made.append(x)
        return tuple(made)
