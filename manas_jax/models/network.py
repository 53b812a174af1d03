"""The network: one skeleton that is the supernet, or with a genotype the derived network."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.models import layers
from manas_jax.models.attention import Attention
from manas_jax.models.columns import Branches, Column, Fusion, Transition
from manas_jax.runtime import compilation, executable_cache
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
        choices = {}
        if self.genotype is None:
            if architecture is None:
                raise ValueError("the supernet needs the architecture's logits")
            choices = self.choices(architecture)
        branches = self.fold(images)
        for part in self.parts():
            made = part.run(part.make(name=part.name), part.take(branches), train, choices)
            branches = part.put(branches, made)
        return self.finish(self.head(name="head_conv")(branches[0]), images)

    @nn.nowrap
    def parts(self) -> tuple[Part, ...]:
        """What lies between `fold` and `head`, in the order of computation."""
        space, genotype, dtype = self.space, self.genotype, self.dtype

        def part(name, module, *arguments, **where):
            return Part(name, functools.partial(module, *arguments, dtype=dtype), **where)

        def searched(module):
            return _rematerialized(module) if self.remat else module

        made = [
            part(f"stem_block{i}", layers.Bottleneck, space.channels[0], STEM_EXPANSION, branch=0)
            for i in range(space.stem_blocks)
        ]
        columns, modules = iter(range(sum(space.columns))), iter(range(len(space.modules)))
        for cell, count in enumerate(space.branches):
            name = f"cell{cell}"
            made.append(part(f"{name}_transition", Transition, space.channels[:count]))
            rows = [next(columns) for _ in range(space.columns[cell])]
            if self.scan and genotype is None and rows:
                logits = "columns", np.array(rows)
                made.append(part(f"{name}_columns", _ScannedColumns, self.remat, logits=logits))
            else:
                for i, row in enumerate(rows):
                    choice = None if genotype is None else genotype.columns[cell][i]
                    module = searched(Column), choice
                    made.append(part(f"{name}_column{i}", *module, logits=("columns", row)))
            for b in range(count):
                chosen = None if genotype is None else genotype.attention[cell][b]
                module = functools.partial(
                    searched(Attention),
                    pool_cell=self.pool_cell and self.pool_cell // (space.patch * 2**b),
                )
                logits = "attention", next(modules)
                made.append(
                    part(f"{name}_attention{b}", module, space, chosen, branch=b, logits=logits)
                )
        made.append(part("head_fusion", Fusion, 1))
        return tuple(made)

    @nn.nowrap
    def choices(self, architecture: Architecture) -> dict[str, Any]:
        """The probabilities that each part of the supernet mixes by, under the part's name.

        Those of an attention module are an array an edge: what is alike on all edges then shares
        its machine code, where each would else pick another row.
        """
        probabilities = jax.tree.map(nn.softmax, dict(architecture))

        def of(kind, row):
            found = probabilities[kind][row]
            return tuple(found) if kind == "attention" else found

        return {part.name: of(*part.logits) for part in self.parts() if part.logits}

    @nn.nowrap
    def fold(self, images: jax.Array) -> Branches:
        """The images as the first branch, their sides mirrored up to what the scales need."""
        x = layers.pad_to_multiple(images, self.space.multiple)
        x = x if self.dtype is None else x.astype(self.dtype)
        return (layers.space_to_depth(x, self.space.patch),)

    @nn.nowrap
    def head(self, name: str | None = None) -> nn.Conv:
        """The last convolution, from the finest branch to folded pixels."""
        # Starting as the identity, a residual network has nothing to unlearn.
        init = nn.initializers.zeros if self.space.residual else layers.KERNEL_INIT
        folded = 3 * self.space.patch**2
        return layers.convolution(folded, 1, dtype=self.dtype, name=name, kernel_init=init)

    @nn.nowrap
    def finish(self, x: jax.Array, images: jax.Array) -> jax.Array:
        """Folded pixels to images like those that went in."""
        x = layers.depth_to_space(x, self.space.patch)[:, : images.shape[1], : images.shape[2]]
        x = x.astype(images.dtype)
        return images + x if self.space.residual else x


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of the network and where it stands.

    Attributes:
      name: of the module and its variables.
      make: makes the module; takes its name.
      branch: index of the branch that it works on; None for all of them.
      logits: kind and row (or rows) of the logits that it is chosen by, if it is.
    """

    name: str
    make: Callable[..., nn.Module]
    branch: int | None = None
    logits: tuple[str, int | np.ndarray] | None = None

    def take(self, branches: Branches) -> jax.Array | Branches:
        """What the module works on."""
        return branches if self.branch is None else branches[self.branch]

    def put(self, branches: Branches, made: jax.Array | Branches) -> Branches:
        """The branches with what the module made in place of what it took."""
        if self.branch is None:
            return made
        return (*branches[: self.branch], made, *branches[self.branch + 1 :])

    def run(
        self,
        module: nn.Module,
        taken: jax.Array | Branches,
        train: bool,
        choices: Mapping[str, Any],
    ) -> jax.Array | Branches:
        """What the module makes of what it took."""
        choice = (choices.get(self.name),) if self.logits else ()
        return module(taken, train, *choice)


@functools.cache
def _rematerialized(module: type[nn.Module]) -> type[nn.Module]:
    return nn.remat(module, static_argnums=(2,))


class _ScannedColumns(nn.Module):
    """The mixed columns of a cell as one scan over stacked variables."""

    remat: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, branches: Branches, train: bool, probabilities: jax.Array) -> Branches:
        """Applies the columns in turn; `probabilities` is (columns, 2)."""
        column = _rematerialized(Column) if self.remat else Column

        def body(_, branches, row):
            return column(None, self.dtype, name="column")(branches, train, row), None

        scan = nn.scan(
            body, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}
        )
        return scan(self, branches, probabilities)[0]


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
    """Shapes and types of the network's 'params' and 'batch_stats'; computes nothing.

    They are remembered between runs, see `manas_jax.runtime.executable_cache`.
    """
    # Tracing takes seconds; what is made depends on this much of the network.
    made_of = network.space, network.genotype, network.scan
    with compilation.collection_paused(), layers.convolution_forms(layers.Forms.PLAIN):
        return executable_cache.remembered(
            f"variable_shapes {made_of}", lambda: _variable_shapes(network)
        )


def _variable_shapes(network: Network) -> dict[str, Any]:
    """`variable_shapes`, part by part: parts that are alike are traced once."""
    side = network.space.multiple  # the smallest picture that needs no padding
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    branches, choices = jax.eval_shape(network.fold, images), {}
    if network.genotype is None:
        choices = jax.eval_shape(lambda: network.choices(init_architecture(network.space, 0)))
    by_module = {}
    for part in network.parts():
        choice = (choices[part.name],) if part.name in choices else ()
        made, by_module[part.name] = _init_shapes(part.make(), part.take(branches), *choice)
        branches = part.put(branches, made)
    head = network.head()
    by_module["head_conv"] = jax.eval_shape(
        lambda finest: head.init(jax.random.key(0), finest), branches[0]
    )
    return {
        collection: {
            name: tree[collection] for name, tree in by_module.items() if collection in tree
        }
        for collection in ("params", "batch_stats")
    }


@functools.cache
def _init_shapes(module: nn.Module, *args: Any) -> tuple[Any, dict[str, Any]]:
    """Shapes of what a part's module makes and of its variables.

    Args:
      module: of a part.
      *args: shapes of what it takes and, if it is searched, of its choice.
    """

    def init(taken, *choice):
        return module.init_with_output(jax.random.key(0), taken, False, *choice)

    return jax.eval_shape(init, *args)


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
