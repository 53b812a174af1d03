"""The network: one skeleton that is the supernet, or with a genotype the derived network."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.models.attention import Attention
from manas_jax.models.columns import Branches, Column, Fusion, Transition
from manas_jax.models.layers import KERNEL_INIT, Bottleneck, Conv, pad_to_multiple
from manas_jax.ops import XLA, Ops
from manas_jax.ops.blocking import depth_to_space, space_to_depth
from manas_jax.space import STEM_EXPANSION, Genotype, SearchSpace

Architecture = Mapping[str, jax.Array]
"""Logits of the relaxed architecture: 'columns' (columns, choices), 'attention' (modules, edges,
candidates) and, of several widths, 'widths' (residual blocks, widths); columns cell by cell, the
rest as in `SearchSpace.modules` and `SearchSpace.residual_blocks`."""

OFF = -1e4  # a logit so low that the probability of its choice is exactly 0


def init_architecture(space: SearchSpace, seed: int, scale: float = 1e-3) -> dict[str, jax.Array]:
    """Logits near zero: all choices about equally likely, ties broken by the seed.

    Args:
      space: the search space.
      seed: of the logits.
      scale: their standard deviation.

    Returns:
      For each kind of decision float32 of shape `(*SearchSpace.decisions[kind], choices)`.
    """
    rng = np.random.default_rng(seed)
    return {
        kind: jnp.asarray(scale * rng.standard_normal((*shape, len(choices)), np.float32))
        for (kind, shape), choices in zip(
            space.decisions.items(), space.choices.values(), strict=True
        )
    }


def genotype_logits(genotype: Genotype) -> dict[str, np.ndarray]:
    """Logits that make the supernet compute the genotype's derived network."""
    space = genotype.space
    logits = {}
    for kind, picks in genotype.picks.items():
        choices = space.choices[kind]
        rows = np.array([choices.index(pick) for pick in picks], int).reshape(space.decisions[kind])
        chosen = rows[..., None] == np.arange(len(choices))
        logits[kind] = np.where(chosen, 0, OFF).astype(np.float32)
    return logits


class Network(nn.Module):
    """Multi-scale attentive de-raining network.

    Attributes:
      space: the search space.
      genotype: the choices; None for the supernet, which takes logits instead.
      ops: implementation of the numerical kernels, with the type of the computation. Parameters,
        statistics and the output stay float32.
      remat: whether columns and attention modules are recomputed in the backward pass, which saves
        memory for time.
      scan: whether the supernet's columns of a cell are one `lax.scan` over stacked variables (see
        `manas_jax.models.variables.stack_columns`): less to compile on accelerators; on CPU
        convolutions inside a loop are several times slower.
      pool_side: side of squares in pixels of the image, a multiple of `space.multiple`: the channel
        gates of a square look at a window of 3x3 such squares; None lets them look at the whole
        image, as in training. With windows, the output at a pixel depends on its surroundings
        alone, on statistics like those of the training patches (Chu et al., "Improving Image
        Restoration by Revisiting Global Information Aggregation", ECCV 2022), and is the same in a
        tile and in the whole image.
    """

    space: SearchSpace
    genotype: Genotype | None = None
    ops: Ops = XLA
    remat: bool = False
    scan: bool = False
    pool_side: int | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, architecture: Architecture | None = None, *, train: bool = False
    ) -> jax.Array:
        """Removes rain.

        Args:
          images: (N, H, W, 3) in [0, 1], of any height and width.
          architecture: logits; required by the supernet, ignored by a derived network.
          train: whether BatchNorm uses the batch and updates its running statistics.

        Returns:
          (N, H, W, 3), not clamped.

        Raises:
          ValueError: a supernet is called without architecture.
        """
        probabilities = {}
        if self.genotype is None:
            if architecture is None:
                raise ValueError("the supernet needs the architecture's logits")
            probabilities = self.probabilities(architecture)
        branches = self.preprocess(images)
        for block in self.blocks():
            branches = block(block.module(name=block.name), branches, train, probabilities)
        return self.postprocess(self.head(name="head_conv")(branches[0]), images)

    @nn.nowrap
    def blocks(self) -> tuple[Block, ...]:
        """The modules between `preprocess` and `head`, in order of computation."""
        space, genotype = self.space, self.genotype

        def block(name, module, *args, branch=None, **logits):
            return Block(name, functools.partial(module, *args, ops=self.ops), branch, logits)

        def searched(module):
            return _remat(module) if self.remat else module

        blocks = [
            block(f"stem_block{i}", Bottleneck, space.channels[0], STEM_EXPANSION, branch=0)
            for i in range(space.stem_blocks)
        ]
        columns, modules = iter(range(sum(space.columns))), iter(range(len(space.modules)))
        residual_blocks = itertools.count()
        for cell, count in enumerate(space.branches):
            name = f"cell{cell}"
            blocks.append(block(f"{name}_transition", Transition, space.channels[:count]))
            rows = [next(columns) for _ in range(space.columns[cell])]
            width_rows = [[next(residual_blocks) for _ in range(count)] for _ in rows]
            mixed = space.column_choices, (space.widths,) * count
            if self.scan and genotype is None and rows:
                logits = {"columns": np.array(rows), "widths": np.array(width_rows)}
                module = ScannedColumns
                blocks.append(block(f"{name}_columns", module, *mixed, self.remat, **logits))
            else:
                for i, row in enumerate(rows):
                    chosen = mixed if genotype is None else _column(genotype, cell, i)
                    logits = {"columns": row, "widths": np.array(width_rows[i])}
                    blocks.append(block(f"{name}_column{i}", searched(Column), *chosen, **logits))
            for b in range(count):
                chosen = None if genotype is None else genotype.attention[cell][b]
                pool_side = self.pool_side and self.pool_side // (space.patch * 2**b)
                blocks.append(
                    block(
                        f"{name}_attention{b}", searched(Attention), space, chosen, pool_side,
                        branch=b, attention=next(modules),
                    )
                )  # fmt: skip
        blocks.append(block("head_fusion", Fusion, 1))
        return tuple(blocks)

    @nn.nowrap
    def probabilities(self, architecture: Architecture) -> dict[str, Any]:
        """The probabilities that each block of the supernet mixes by, under the block's name.

        They are the last arguments of its module. Those of an attention module are one array per
        edge: edges then share compiled code, where each would else index another row.
        """
        probabilities = jax.tree.map(nn.softmax, dict(architecture))

        def select(kind, rows):
            selected = probabilities[kind][rows]
            return tuple(selected) if kind == "attention" else selected

        return {
            block.name: tuple(
                select(kind, rows) for kind, rows in block.logits.items() if kind in probabilities
            )
            for block in self.blocks()
            if block.logits
        }

    @nn.nowrap
    def preprocess(self, images: jax.Array) -> Branches:
        """Images (N, H, W, 3) as the first branch, (N, H'/p, W'/p, 3 p^2) for patches of p pixels.

        H' and W' are the next multiples of `SearchSpace.multiple`; the edges are mirrored.
        """
        x = pad_to_multiple(images, self.space.multiple)
        x = x if self.ops.dtype is None else x.astype(self.ops.dtype)
        return (space_to_depth(x, self.space.patch),)

    @nn.nowrap
    def head(self, name: str | None = None) -> nn.Module:
        """The last convolution, from the finest branch (N, H, W, C) to patches (N, H, W, 3 p^2)."""
        # Starting as the identity, a residual network has nothing to unlearn.
        init = nn.initializers.zeros if self.space.residual else KERNEL_INIT
        return Conv(3 * self.space.patch**2, 1, kernel_init=init, ops=self.ops, name=name)

    @nn.nowrap
    def postprocess(self, x: jax.Array, images: jax.Array) -> jax.Array:
        """The head's output (N, H'/p, W'/p, 3 p^2) as images of the size and type of `images`."""
        x = depth_to_space(x, self.space.patch)[:, : images.shape[1], : images.shape[2]]
        x = x.astype(images.dtype)
        return images + x if self.space.residual else x


@dataclasses.dataclass(frozen=True)
class Block:
    """A module of the network and its place.

    Attributes:
      name: of the module and its variables.
      module: constructs the module; takes its name.
      branch: index of the branch that it acts on; None for all of them.
      logits: by kind the rows of the logits that select its operation, if it is searched.
    """

    name: str
    module: Callable[..., nn.Module]
    branch: int | None = None
    logits: Mapping[str, int | np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(
        self, module: nn.Module, branches: Branches, train: bool, probabilities: Mapping[str, Any]
    ) -> Branches:
        """The branches after the module; `probabilities` are those of `Network.probabilities`."""
        own = probabilities.get(self.name, ())
        return self.update(branches, module(self.select(branches), train, *own))

    def select(self, branches: Branches) -> jax.Array | Branches:
        """The module's input."""
        return branches if self.branch is None else branches[self.branch]

    def update(self, branches: Branches, outputs: jax.Array | Branches) -> Branches:
        """The branches with the module's outputs in place of its input."""
        if self.branch is None:
            return outputs
        return (*branches[: self.branch], outputs, *branches[self.branch + 1 :])


@functools.cache
def _remat(module: type[nn.Module]) -> type[nn.Module]:
    return nn.remat(module, static_argnums=(2,))


def _column(genotype: Genotype, cell: int, index: int) -> tuple[Any, Any]:
    """The chosen module of a column, and the chosen width of each of its branches."""
    widths = tuple((width,) for width in genotype.widths[cell][index])
    return (genotype.columns[cell][index],), widths


class ScannedColumns(nn.Module):
    """The mixed columns of a cell as one scan over stacked variables; see `Column`."""

    choices: Sequence[str]
    widths: Sequence[Sequence[float]]
    remat: bool
    ops: Ops = XLA

    @nn.compact
    def __call__(self, branches: Branches, train: bool, *probabilities: jax.Array) -> Branches:
        """Applies the columns in order; `probabilities` are a column's, stacked."""
        column = _remat(Column) if self.remat else Column

        def body(_, branches, rows):
            module = column(self.choices, self.widths, self.ops, name="column")
            return module(branches, train, *rows), None

        scan = nn.scan(
            body, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}
        )
        return scan(self, branches, probabilities)[0]
