"""The network: one skeleton that is the supernet, or with a genotype the derived network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.models import layers
from manas_jax.models.attention import Attention
from manas_jax.models.columns import Column, Fusion, Transition
from manas_jax.space import COLUMNS, STEM_EXPANSION, Genotype, SearchSpace

Architecture = Mapping[str, jax.Array]
"""Logits of the relaxed architecture: 'columns' (columns, 2), 'attention' (modules, edges,
candidates); columns cell by cell, modules as in `SearchSpace.modules`."""

OFF = -1e4  # a logit so low that its choice has probability 0 to the bit


def init_architecture(space: SearchSpace, seed: int, scale: float = 1e-3) -> dict[str, jax.Array]:
    """Logits near zero: every choice about equally likely, ties broken by the seed."""
    draw = np.random.default_rng(seed)
    shapes = {
        "columns": (sum(space.columns), len(COLUMNS)),
        "attention": (len(space.modules), space.edges, len(space.candidates)),
    }
    return {k: jnp.asarray(scale * draw.standard_normal(shapes[k], np.float32)) for k in shapes}


def genotype_logits(genotype: Genotype) -> dict[str, np.ndarray]:
    """Logits that leave the supernet nothing but the genotype's choices: its derived network."""
    names = genotype.space.candidates
    chosen = {
        "columns": [COLUMNS.index(choice) for cell in genotype.columns for choice in cell],
        "attention": [
            [names.index(name) for name in edges] for cell in genotype.attention for edges in cell
        ],
    }
    widths = {"columns": len(COLUMNS), "attention": len(names)}
    return {
        kind: np.where(np.array(rows, int)[..., None] == np.arange(widths[kind]), 0, OFF).astype(
            np.float32
        )
        for kind, rows in chosen.items()
    }


class Network(nn.Module):
    """Multi-scale attentive de-raining network.

    Attributes:
      space: the search space.
      genotype: the choices; None makes the supernet, which takes logits instead.
      dtype: type of the computation; None takes that of images and parameters. Parameters and
        statistics stay float32, and so does the output.
      remat: whether columns and attention modules are computed again in the backward pass, which
        saves memory for time.
      scan: whether the supernet's columns of a cell are one `lax.scan` over stacked variables (see
        `stack_columns`): less to compile on accelerators; on CPU convolutions inside of a loop are
        several times slower.
      pool_cell: side in pixels of the image, a multiple of `space.multiple`, of the squares whose
        channel gates look at a window of 3x3 such squares; None lets them look at the whole image,
        as in training. What a network does to a pixel then depends on its surroundings alone: on
        statistics like those of the patches it was trained on (Chu et al., "Improving Image
        Restoration by Revisiting Global Information Aggregation", ECCV 2022), and alike in a tile
        and in the whole picture.
    """

    space: SearchSpace
    genotype: Genotype | None = None
    dtype: Any = None
    remat: bool = False
    scan: bool = False
    pool_cell: int | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, architecture: Architecture | None = None, *, train: bool = False
    ) -> jax.Array:
        """Removes rain.

        Args:
          images: (N, H, W, 3) in [0, 1], of any height and width.
          architecture: logits; needed by the supernet, ignored by a derived network.
          train: whether BatchNorm uses the batch and moves its running statistics.

        Returns:
          (N, H, W, 3), not clamped.
        """
        space, genotype, dtype = self.space, self.genotype, self.dtype
        if genotype is None:
            if architecture is None:
                raise ValueError("the supernet needs the architecture's logits")
            probabilities = jax.tree.map(nn.softmax, dict(architecture))

        def maybe_remat(module):
            return nn.remat(module, static_argnums=(2,)) if self.remat else module

        x = layers.pad_to_multiple(images, space.multiple)
        x = layers.space_to_depth(x if dtype is None else x.astype(dtype), space.patch)
        folded = x.shape[-1]
        for i in range(space.stem_blocks):
            block = layers.Bottleneck(
                space.channels[0], STEM_EXPANSION, dtype, name=f"stem_block{i}"
            )
            x = block(x, train)

        branches = (x,)
        columns, modules = iter(range(sum(space.columns))), iter(range(len(space.modules)))
        for cell, count in enumerate(space.branches):
            transition = Transition(space.channels[:count], dtype, name=f"cell{cell}_transition")
            branches = transition(branches, train)
            if self.scan and genotype is None and space.columns[cell]:
                chosen = [next(columns) for _ in range(space.columns[cell])]
                scanned = nn.scan(
                    maybe_remat(_ScannedColumn),
                    variable_axes={"params": 0, "batch_stats": 0},
                    split_rngs={"params": True},
                    in_axes=(nn.broadcast, 0),
                )(dtype, name=f"cell{cell}_columns")
                branches, _ = scanned(branches, train, probabilities["columns"][np.array(chosen)])
            for i in range(0 if self.scan and genotype is None else space.columns[cell]):
                column = next(columns)
                branches = maybe_remat(Column)(
                    None if genotype is None else genotype.columns[cell][i],
                    dtype,
                    name=f"cell{cell}_column{i}",
                )(branches, train, None if genotype else probabilities["columns"][column])
            attended = []
            for b, branch in enumerate(branches):
                module = next(modules)
                attention = maybe_remat(Attention)(
                    space,
                    None if genotype is None else genotype.attention[cell][b],
                    dtype,
                    self.pool_cell and self.pool_cell // (space.patch * 2**b),
                    name=f"cell{cell}_attention{b}",
                )
                attended.append(
                    attention(
                        branch, train, None if genotype else probabilities["attention"][module]
                    )
                )
            branches = tuple(attended)

        (x,) = Fusion(outputs=1, dtype=dtype, name="head_fusion")(branches, train)
        # Starting as the identity, a residual network has nothing to unlearn.
        init = nn.initializers.zeros if space.residual else layers.KERNEL_INIT
        x = layers.convolution(folded, 1, dtype=dtype, name="head_conv", kernel_init=init)(x)
        x = layers.depth_to_space(x, space.patch)[:, : images.shape[1], : images.shape[2]]
        x = x.astype(images.dtype)
        return images + x if space.residual else x


class _ScannedColumn(nn.Module):
    """A mixed column as the body of a scan."""

    dtype: Any = None

    @nn.compact
    def __call__(self, branches, train, probabilities):
        return Column(None, self.dtype, name="column")(branches, train, probabilities), None


def stack_columns(variables: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A supernet's variables as one that scans has them: a cell's columns stacked on a new axis."""

    def stacked(tree):
        tree = dict(tree)
        for cell, number in enumerate(space.columns):
            columns = [tree.pop(f"cell{cell}_column{i}") for i in range(number)]
            if columns:
                tree[f"cell{cell}_columns"] = {
                    "column": jax.tree.map(lambda *leaves: np.stack(leaves), *columns)
                }
        return tree

    return {collection: stacked(tree) for collection, tree in variables.items()}


def unstack_columns(variables: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The inverse of `stack_columns`; leaves variables alone that are not stacked."""

    def unstacked(tree):
        tree = dict(tree)
        for cell, number in enumerate(space.columns):
            columns = tree.pop(f"cell{cell}_columns", None)
            for i in range(number if columns else 0):
                tree[f"cell{cell}_column{i}"] = jax.tree.map(
                    lambda leaf, i=i: leaf[i], columns["column"]
                )
        return tree

    return {collection: unstacked(tree) for collection, tree in variables.items()}


def variable_shapes(network: Network) -> dict[str, Any]:
    """Shapes and types of the network's 'params' and 'batch_stats'; computes nothing."""
    side = network.space.multiple  # the smallest picture that needs no padding
    architecture = None if network.genotype else init_architecture(network.space, 0)

    def init():
        return network.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), architecture)

    return jax.eval_shape(init)


def init_variables(network: Network, seed: int) -> dict[str, Any]:
    """Fresh 'params' and 'batch_stats', with the means and deviations of `network.init`.

    Drawn on the host, because XLA takes minutes to compile a thousand samplers. Kernels are He
    normal (He et al., "Delving Deep into Rectifiers", ICCV 2015; Flax cuts their tails off), a
    residual network's last one zero; scales and variances one, biases and means zero.
    """
    if network.scan and network.genotype is None:
        plain = init_variables(network.clone(scan=False), seed)
        return stack_columns(plain, network.space)
    draw = np.random.default_rng(seed)

    def fresh(path, leaf):
        module, kind = path[1].key, path[-1].key
        if kind in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if kind in ("bias", "mean") or (network.space.residual and module == "head_conv"):
            return np.zeros(leaf.shape, leaf.dtype)
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return (deviation * draw.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fresh, variable_shapes(network))


def inherit(variables: Mapping[str, Any], template: Mapping[str, Any]) -> Any:
    """Picks from a supernet's variables those that a derived network has, by name.

    Args:
      variables: the supernet's 'params' and 'batch_stats'.
      template: the derived network's variables, or their shapes (`jax.eval_shape` of its init).

    Returns:
      Variables of the derived network's structure with the supernet's values.

    Raises:
      ValueError: a variable is missing in the supernet or has another shape.
    """

    def pick(path, wanted):
        value = variables
        for key in path:
            if key.key not in value:
                raise ValueError(f"the supernet has no {jax.tree_util.keystr(path)}")
            value = value[key.key]
        if value.shape != wanted.shape:
            raise ValueError(
                f"{jax.tree_util.keystr(path)}: {value.shape} in the supernet, {wanted.shape} here"
            )
        return value

    return jax.tree_util.tree_map_with_path(pick, template)
