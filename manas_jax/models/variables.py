"""The network's variables: their shapes, their first values, and how networks exchange them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.models.network import Network, init_architecture
from manas_jax.ops import XLA
from manas_jax.space import SearchSpace


def variable_shapes(network: Network) -> dict[str, Any]:
    """Shapes and types of the network's 'params' and 'batch_stats'; computes nothing.

    Block by block, with the reference kernels: equal blocks are traced once, so that this takes a
    second or two where `jax.eval_shape(network.init, ...)` takes many.
    """
    with jax.enable_x64(False):  # variables are float32, whatever the caller computes in
        return _variable_shapes(network)


def _variable_shapes(network: Network) -> dict[str, Any]:
    network = network.clone(ops=XLA)
    side = network.space.multiple  # the smallest image that needs no padding
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    branches, probabilities = jax.eval_shape(network.preprocess, images), {}
    if network.genotype is None:
        probabilities = jax.eval_shape(
            lambda: network.probabilities(init_architecture(network.space, 0))
        )
    shapes = {}
    for block in network.blocks():
        own = probabilities.get(block.name, ())
        inputs = block.select(branches)
        outputs, shapes[block.name] = _init_shapes(block.module(), (False,), inputs, *own)
        branches = block.update(branches, outputs)
    _, shapes["head_conv"] = _init_shapes(network.head(), (), branches[0])
    return {
        collection: {name: tree[collection] for name, tree in shapes.items() if collection in tree}
        for collection in ("params", "batch_stats")
    }


@functools.cache
def _init_shapes(
    module: nn.Module, static: tuple[Any, ...], inputs: Any, *probabilities: Any
) -> tuple[Any, dict[str, Any]]:
    """Shapes of a module's outputs and of its variables; `static` are arguments without shapes."""

    def init(inputs, *probabilities):
        return module.init_with_output(jax.random.key(0), inputs, *static, *probabilities)

    return jax.eval_shape(init, inputs, *probabilities)


def init_variables(network: Network, seed: int) -> dict[str, Any]:
    """Fresh 'params' and 'batch_stats', distributed as those of `network.init`.

    Drawn on the host, as XLA takes minutes to compile a thousand samplers. Kernels are He normal
    (He et al., "Delving Deep into Rectifiers", ICCV 2015; Flax truncates their tails), the last one
    of a residual network zero; scales and variances one, biases and means zero.
    """
    if network.scan and network.genotype is None:
        unrolled = init_variables(network.clone(scan=False), seed)
        return stack_columns(unrolled, network.space)
    rng = np.random.default_rng(seed)

    def init(path, leaf):
        module, kind = path[1].key, path[-1].key
        if kind in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if kind in ("bias", "mean") or (network.space.residual and module == "head_conv"):
            return np.zeros(leaf.shape, leaf.dtype)
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return (deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(init, variable_shapes(network))


def inherit(variables: Mapping[str, Any], template: Mapping[str, Any]) -> Any:
    """Picks from a supernet's variables those that a derived network has, by name.

    Of the hidden channels of a residual block it picks the first, see `columns.Parallel`.

    Args:
      variables: the supernet's 'params' and 'batch_stats'.
      template: the derived network's variables, or their shapes (`variable_shapes`).

    Returns:
      Variables of the derived network's structure with the supernet's values.

    Raises:
      ValueError: a variable is missing in the supernet or smaller there.
    """

    def pick(path, wanted):
        value = variables
        for key in path:
            if key.key not in value:
                raise ValueError(f"the supernet has no {jax.tree_util.keystr(path)}")
            value = value[key.key]
        fits = value.ndim == len(wanted.shape) and np.all(np.array(value.shape) >= wanted.shape)
        if not fits:
            raise ValueError(
                f"{jax.tree_util.keystr(path)}: {value.shape} in the supernet, {wanted.shape} here"
            )
        return value[tuple(map(slice, wanted.shape))]

    return jax.tree_util.tree_map_with_path(pick, template)


def stack_columns(variables: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A supernet's variables for `Network.scan`: a cell's columns stacked along a new axis."""

    def stack(tree):
        tree = dict(tree)
        for cell, number in enumerate(space.columns):
            columns = [tree.pop(f"cell{cell}_column{i}") for i in range(number)]
            if columns:
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *columns)
                tree[f"cell{cell}_columns"] = {"column": stacked}
        return tree

    return {collection: stack(tree) for collection, tree in variables.items()}


def unstack_columns(variables: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The inverse of `stack_columns`; variables that are not stacked pass through."""

    def unstack(tree):
        tree = dict(tree)
        for cell, number in enumerate(space.columns):
            columns = tree.pop(f"cell{cell}_columns", None)
            for i in range(number if columns else 0):
                tree[f"cell{cell}_column{i}"] = jax.tree.map(
                    lambda leaf, i=i: leaf[i], columns["column"]
                )
        return tree

    return {collection: unstack(tree) for collection, tree in variables.items()}
