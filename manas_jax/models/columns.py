"""Columns and transitions: the modules that work on all branches of the network at once.

`branches` is a tuple of arrays (N, H / 2**b, W / 2**b, C_b), finest first. After Wang et al.,
"Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from manas_jax import space
from manas_jax.models.layers import ConvNorm, ResidualBlock, upsample
from manas_jax.ops import XLA, Ops

Branches = tuple[jax.Array, ...]


class Parallel(nn.Module):
    """One residual block per branch; shapes unchanged."""

    ops: Ops = XLA

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Applies the blocks."""
        return tuple(
            ResidualBlock(self.ops, name=f"branch{b}")(x, train) for b, x in enumerate(branches)
        )


class Fusion(nn.Module):
    """Every branch into every branch, summed, then ReLU.

    Up: 1x1 convolution and nearest enlargement. Same: identity. Down: 3x3 convolutions of stride
    2, ReLU between and none after the last.

    Attributes:
      outputs: number of output branches, finest first; all of them by default.
    """

    outputs: int | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Applies the fusion; branches keep their shapes."""
        outputs = len(branches) if self.outputs is None else self.outputs
        channels = [x.shape[-1] for x in branches]

        def path(x: jax.Array, source: int, to: int) -> jax.Array:
            name = f"from{source}_to{to}"
            if source > to:
                layer = ConvNorm(channels[to], 1, relu=False, ops=self.ops, name=name)
                return upsample(layer(x, train), 2 ** (source - to))
            for branch in range(source + 1, to + 1):
                last = branch == to
                x = ConvNorm(
                    channels[to if last else source],
                    stride=2,
                    relu=not last,
                    ops=self.ops,
                    name=f"{name}_step{branch - source - 1}",
                )(x, train)
            return x

        return tuple(
            nn.relu(sum(path(x, source, to) for source, x in enumerate(branches)))
            for to in range(outputs)
        )


class Column(nn.Module):
    """A searched column: the chosen module, or the mixture of both, both fed the same input.

    Attributes:
      choice: 'parallel' or 'fusion'; None for the mixture.
    """

    choice: str | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, branches: Branches, train: bool, probabilities: jax.Array | None = None
    ) -> Branches:
        """Applies the column; shapes unchanged. `probabilities` is (2,), ordered as COLUMNS."""

        def run(choice):
            module = {"parallel": Parallel, "fusion": Fusion}[choice]
            return module(ops=self.ops, name=choice)(branches, train)

        if self.choice is not None:
            return run(self.choice)
        weights = probabilities.astype(branches[0].dtype)
        mixed = zip(*(run(choice) for choice in space.COLUMNS), strict=True)
        return tuple(weights[0] * first + weights[1] * second for first, second in mixed)


class Transition(nn.Module):
    """Prepares a cell's branches: new scales by stride-2 convolutions, changed channels by 3x3.

    Attributes:
      channels: channels of the output branches.
    """

    channels: Sequence[int]
    ops: Ops = XLA

    @nn.compact
    def __call__(self, branches: Branches, train: bool) -> Branches:
        """Returns len(channels) branches; those whose channels do not change pass through."""
        last = len(branches) - 1
        outputs = []
        for branch, features in enumerate(self.channels):
            x = branches[min(branch, last)]
            inputs = x.shape[-1]
            if branch <= last and features != inputs:
                x = ConvNorm(features, ops=self.ops, name=f"branch{branch}")(x, train)
            for step in range(last + 1, branch + 1):
                x = ConvNorm(
                    features if step == branch else inputs,
                    stride=2,
                    ops=self.ops,
                    name=f"branch{branch}_step{step - last - 1}",
                )(x, train)
            outputs.append(x)
        return tuple(outputs)
