"""Columns and transitions: the modules that work on all branches of the network at once.

`branches` is a tuple of arrays (N, H / 2**b, W / 2**b, C_b), finest first. After Wang et al.,
"Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax import space
from manas_jax.models.layers import ConvNorm, ResidualBlock, upsample
from manas_jax.ops import XLA, Ops

Branches = tuple[jax.Array, ...]


class Parallel(nn.Module):
    """One residual block per branch; shapes unchanged.

    A block has the hidden channels of its width. To mix widths it has those of the widest, which is
    the sum of the narrower ones' first channels weighed by their probabilities: so all of them
    share its weights, at its cost (Wan et al., "FBNetV2: Differentiable Neural Architecture Search
    for Spatial and Channel Dimensions", CVPR 2020, section 3.2). BatchNorm before the mask sees
    every channel as it is in a narrower block, so that only the one after it adapts to the mixture.

    Attributes:
      widths: for each branch the widths to mix, in increasing order, or the chosen one; None for
        as many hidden channels as the branch has.
    """

    widths: Sequence[Sequence[float]] | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, branches: Branches, train: bool, probabilities: jax.Array | None = None
    ) -> Branches:
        """Applies the blocks; `probabilities` are (branches, widths), where widths are mixed."""

        def block(b: int, x: jax.Array) -> jax.Array:
            widths = (1.0,) if self.widths is None else self.widths[b]
            hidden = [space.hidden_channels(x.shape[-1], width) for width in widths]
            mask = None
            if probabilities is not None:
                masks = np.arange(hidden[-1]) < np.array(hidden)[:, None]
                mask = jnp.sum(probabilities[b][:, None] * masks, axis=0)
            return ResidualBlock(hidden[-1], self.ops, name=f"branch{b}")(x, train, mask)

        return tuple(block(b, x) for b, x in enumerate(branches))


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
    """A searched column: the chosen module, or the mixture of several, all fed the same input.

    Attributes:
      choices: 'parallel', 'fusion' or 'identity': those to mix, or the chosen one.
      widths: see `Parallel`.
    """

    choices: Sequence[str] = space.COLUMNS
    widths: Sequence[Sequence[float]] | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self,
        branches: Branches,
        train: bool,
        probabilities: jax.Array | None = None,
        width_probabilities: jax.Array | None = None,
    ) -> Branches:
        """Applies the column; shapes unchanged.

        Args:
          branches: the input.
          train: whether BatchNorm uses the batch.
          probabilities: one per choice; None for a single choice.
          width_probabilities: (branches, widths), where widths are mixed.
        """

        def run(choice):
            if choice == "identity":
                return branches
            if choice == "fusion":
                return Fusion(ops=self.ops, name=choice)(branches, train)
            parallel = Parallel(self.widths, ops=self.ops, name=choice)
            return parallel(branches, train, width_probabilities)

        if probabilities is None:
            (choice,) = self.choices
            return run(choice)
        weights = probabilities.astype(branches[0].dtype)
        mixed = zip(*(run(choice) for choice in self.choices), strict=True)
        return tuple(sum(w * x for w, x in zip(weights, xs, strict=True)) for xs in mixed)


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
