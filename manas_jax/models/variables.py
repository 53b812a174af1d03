"""The network's variables: their shapes, their first values, and how networks exchange them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax import registry
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
    shapes = {name: shapes for name, _, _, shapes in _traced_blocks(network)}
    return {
        collection: {name: tree[collection] for name, tree in shapes.items() if collection in tree}
        for collection in ("params", "batch_stats")
    }


def _traced_blocks(network: Network) -> Iterator[tuple[str, _Initializer, Any, dict[str, Any]]]:
    """Each block's name, initializer, shapes of what the latter is given, and its variables'."""
    network = network.clone(ops=XLA)
    side = network.space.multiple  # the smallest image that needs no padding
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    branches, probabilities = jax.eval_shape(network.preprocess, images), {}
    if network.genotype is None:
        probabilities = jax.eval_shape(
            lambda: network.probabilities(init_architecture(network.space, 0))
        )
    for block in network.blocks():
        initializer = _Initializer(block.module(), (False,))
        arguments = (block.select(branches), *probabilities.get(block.name, ()))
        outputs, shapes = initializer.shapes(*arguments)
        yield block.name, initializer, arguments, shapes
        branches = block.update(branches, outputs)
    initializer = _Initializer(network.head(), ())
    yield "head_conv", initializer, (branches[0],), initializer.shapes(branches[0])[1]


@dataclasses.dataclass(frozen=True)
class _Initializer:
    """Traces or draws a module's variables; `static` are its arguments without shapes."""

    module: nn.Module
    static: tuple[Any, ...]

    @functools.cache  # noqa: B019 - equal blocks are traced once in a process
    def shapes(self, inputs: Any, *probabilities: Any) -> tuple[Any, dict[str, Any]]:
        """Shapes of the outputs and of the variables."""

        def init(inputs, *probabilities):
            key = jax.random.key(0)
            return self.module.init_with_output(key, inputs, *self.static, *probabilities)

        return jax.eval_shape(init, inputs, *probabilities)

    @functools.cache  # noqa: B019
    def drawing(self) -> Callable[..., dict[str, Any]]:
        """The compiled function (key, inputs, *probabilities) -> fresh variables."""

        def init(key, inputs, *probabilities):
            return self.module.init(key, inputs, *self.static, *probabilities)

        return jax.jit(init)


def init_variables(network: Network, seed: int) -> dict[str, Any]:
    """Fresh 'params' and 'batch_stats', distributed as those of `network.init`.

    Drawn on the host, as XLA takes minutes to compile a thousand samplers. Kernels are He normal
    (He et al., "Delving Deep into Rectifiers", ICCV 2015; Flax truncates their tails), the last one
    of a residual network zero; scales and variances one, biases and means zero. Candidates of
    `manas_jax.registry.register_candidate` are initialized by themselves.
    """
    if network.scan and network.genotype is None:
        unrolled = init_variables(network.clone(scan=False), seed)
        return stack_columns(unrolled, network.space)
    rng = np.random.default_rng(seed)
    candidates = {candidate.name for candidate in registry.others()}
    own = _drawn_by_themselves(network, candidates, seed) if candidates else {}

    def init(path, leaf):
        collection, module, kind = path[0].key, path[1].key, path[-1].key
        if candidates.intersection(key.key for key in path[2:]):
            return functools.reduce(
                lambda tree, key: tree[key.key], path[2:], own[module][collection]
            )
        if kind in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if kind in ("bias", "mean") or (network.space.residual and module == "head_conv"):
            return np.zeros(leaf.shape, leaf.dtype)
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return (deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(init, variable_shapes(network))


def _drawn_by_themselves(
    network: Network, candidates: Set[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Variables of the blocks that hold one of the candidates, drawn by Flax, by block."""
    drawn = {}
    with jax.enable_x64(False):
        for i, (name, initializer, arguments, shapes) in enumerate(_traced_blocks(network)):
            paths, _ = jax.tree_util.tree_flatten_with_path(shapes)
            if candidates.intersection(key.key for path, _ in paths for key in path):
                key = jax.random.fold_in(jax.random.key(seed), i)
                zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments)
                drawn[name] = jax.device_get(initializer.drawing()(key, *zeros))
    return drawn


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
