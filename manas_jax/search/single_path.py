"""One path through the supernet: what a genotype needs of its columns, and nothing else of them.

Programs are compiled block by block (see `modular_grad`), so every path of the supernet is made of
a few of them: the fusions, and a residual block per branch and width. An attention module still
mixes all its candidates, with the probabilities of the architecture's logits: the combinations of
its edges would be too many programs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from manas_jax.models.columns import Fusion
from manas_jax.models.layers import ResidualBlock
from manas_jax.models.network import Block, Network
from manas_jax.models.variables import inherit
from manas_jax.space import Genotype, hidden_channels

PyTree = Any


def blocks(network: Network, genotype: Genotype) -> tuple[Block, ...]:
    """The blocks of a supernet that the network of a genotype consists of.

    Names of blocks inside a column are those of their variables, with slashes between.

    Args:
      network: the supernet, not scanned.
      genotype: of its space.
    """
    space = network.space
    chosen = {
        f"cell{cell}_column{i}": (choice, genotype.widths[cell][i])
        for cell, columns in enumerate(genotype.columns)
        for i, choice in enumerate(columns)
    }
    path: list[Block] = []
    for block in network.blocks():
        choice, widths = chosen.get(block.name, (None, ()))
        if choice is None:
            path.append(block)
        elif choice == "fusion":
            module = functools.partial(Fusion, ops=network.ops)
            path.append(Block(f"{block.name}/fusion", module))
        for branch, width in enumerate(widths):
            hidden = hidden_channels(space.channels[branch], width)
            module = functools.partial(FirstChannels, ResidualBlock(hidden, network.ops))
            path.append(Block(f"{block.name}/parallel/branch{branch}", module, branch))
    return tuple(path)


@dataclasses.dataclass(frozen=True)
class FirstChannels:
    """A module that has the first channels of a wider one's variables, see `variables.inherit`.

    Attributes:
      module: called with (inputs, train).
    """

    module: nn.Module

    def apply(
        self, variables: Mapping[str, PyTree], inputs: PyTree, train: bool, mutable: list[str]
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """The module's outputs, and the wider one's variables with those that it updated."""
        init = functools.partial(self.module.init, jax.random.key(0), train=train)
        outputs, updates = self.module.apply(
            inherit(variables, jax.eval_shape(init, inputs)), inputs, train, mutable=mutable
        )
        wide = {collection: variables[collection] for collection in updates}
        updates = jax.tree.map(
            lambda old, new: old.at[tuple(map(slice, new.shape))].set(new), wide, updates
        )
        return outputs, updates
