"""Parameters and multiply-accumulates of networks and of single choices, by integer arithmetic.

Costs are those of the textbook form of each operation: depthwise and pointwise convolutions apart.
A budget may take measured times in their place, see `manas_jax.latency_table`.
`height` and `width` are those of the image in pixels; multiply-accumulates (MACs) are counted for
convolutions and dense layers, for one image.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from manas_jax.errors import UserError, one_line, short_repr
from manas_jax.latency_table import LatencyTable
from manas_jax.registry import registered
from manas_jax.space import (
    CANDIDATE_REDUCTION,
    GROUP_SE_REDUCTION,
    MODULE_SE_REDUCTION,
    STEM_EXPANSION,
    Genotype,
    SearchSpace,
    derivable,
    hidden_channels,
    squeezed,
)

MAX_PARAMETERS = 10**9
"""More are refused: with gradient and Adam's moments they take 16 GB on every device."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates of convolutions and dense layers for one image."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
      limit: the highest cost.
      unit: 'parameters', 'macs' or 'nanoseconds'.
      height: of the image that multiply-accumulates are counted for.
      width: of that image.
      latency: the table that nanoseconds are taken from, of the same space and size.
    """

    limit: int
    unit: str
    height: int
    width: int
    latency: LatencyTable | None = None

    def cost(self, genotype: Genotype) -> int:
        """What the derived network of a genotype costs."""
        if self.latency:
            return self.latency.cost(genotype)
        return getattr(derived(genotype, self.height, self.width), self.unit)

    def fixed(self, space: SearchSpace) -> int:
        """What costs the same in all genotypes of a space."""
        if self.latency:
            return self.latency.fixed
        return getattr(fixed(space, self.height, self.width), self.unit)

    def tables(self, space: SearchSpace) -> dict[str, list[list[int]]]:
        """What each choice costs, see `tables`."""
        if self.latency:
            return self.latency.rows
        return tables(space, self.height, self.width, self.unit)

    def extremes(self, space: SearchSpace) -> tuple[int, int]:
        """Costs of the cheapest and of the most expensive genotype of a space."""
        return _extremes(space, self.fixed(space), self.tables(space))


def gradient_flops(macs: float, images: int) -> float:
    """Operations of a gradient, given the multiply-accumulates of an image's forward pass.

    Two per multiply-accumulate; a gradient takes three times its function.
    """
    return 6.0 * macs * images


def check_parameters(total: Cost, source: str) -> None:
    """Checks that a network is not absurdly large, before anything is allocated for it.

    Raises:
      UserError: it is; begins with `source`, a file or key.
    """
    if total.parameters > MAX_PARAMETERS:
        raise UserError(
            f"{source}: a network of {total.parameters:,} parameters, and the most are "
            f"{MAX_PARAMETERS:,}: reduce channels, columns or blocks"
        )


def derived(genotype: Genotype, height: int, width: int) -> Cost:
    """Cost of the derived network of a genotype."""
    return sum(searched_by_branch(genotype, height, width), fixed(genotype.space, height, width))


def searched_by_branch(genotype: Genotype, height: int, width: int) -> list[Cost]:
    """Cost of a genotype's choices on each branch; with `fixed` it is that of `derived`."""
    total = _columns_by_branch(genotype, height, width)
    for cell, branch in genotype.space.modules:
        for candidate in genotype.attention[cell][branch]:
            total[branch] += edge(genotype.space, branch, candidate, height, width)
    return total


def branch_shares(genotype: Genotype) -> list[float]:
    """Share of each branch, the finest first, in the MACs of a genotype's choices; 0 if none."""
    # Any size will do: shares do not depend on it.
    branches = [branch.macs for branch in searched_by_branch(genotype, 320, 480)]
    return [macs / (sum(branches) or 1) for macs in branches]


def _columns_by_branch(genotype: Genotype, height: int, width: int) -> list[Cost]:
    space = genotype.space
    total = [Cost()] * len(space.channels)
    for cell, columns in enumerate(genotype.columns):
        for choice, widths in zip(columns, genotype.widths[cell], strict=True):
            for branch, added in enumerate(_column(space, cell, choice, height, width, widths)):
                total[branch] += added
    return total


def supernet(space: SearchSpace, height: int, width: int) -> Cost:
    """Cost of the whole supernet, which computes all choices."""
    total = fixed(space, height, width)
    for cell, number in enumerate(space.columns):
        for choice in space.column_choices * number:
            total += column(space, cell, choice, height, width)
    return total + candidates(space, height, width)


def path(genotype: Genotype, height: int, width: int) -> Cost:
    """Cost of a genotype's path through the supernet: its columns, and all attention candidates."""
    total = fixed(genotype.space, height, width) + candidates(genotype.space, height, width)
    return sum(_columns_by_branch(genotype, height, width), total)


def candidates(space: SearchSpace, height: int, width: int) -> Cost:
    """Cost of all candidates of all attention edges."""
    total = Cost()
    for _, branch in space.modules:
        for candidate in space.candidates * space.edges:
            total += edge(space, branch, candidate, height, width)
    return total


def fixed(space: SearchSpace, height: int, width: int) -> Cost:
    """Cost of everything that is not searched: stem, transitions, attention frames, head."""
    pixels = _pixels(space, height, width)
    image = 3 * space.patch**2
    inner, wide = space.channels[0], STEM_EXPANSION * space.channels[0]
    total = Cost(0, 0)
    if image != wide:  # the first block's shortcut
        total += _conv(1, image, wide, pixels[0])
    for inputs in (image, *[wide] * (space.stem_blocks - 1)):
        total += _conv(1, inputs, inner, pixels[0])
        total += _conv(3, inner, inner, pixels[0])
        total += _conv(1, inner, wide, pixels[0])
    before: tuple[int, ...] = (wide,)
    for count in space.branches:
        after = space.channels[:count]
        total += _transition(before, after, pixels)
        total += sum((_attention_frame(space, b, pixels[b]) for b in range(count)), Cost())
        before = after
    total += _fusion(space.channels, 0, pixels)
    return total + _conv(1, space.channels[0], image, pixels[0], norm=False)


def column(
    space: SearchSpace,
    cell: int,
    choice: str,
    height: int,
    width: int,
    widths: Sequence[float] | None = None,
) -> Cost:
    """Cost of one column of `cell` with this choice.

    `widths` are those of a parallel column's residual blocks, one per branch; all 1 by default.
    """
    return sum(_column(space, cell, choice, height, width, widths), Cost())


def _column(
    space: SearchSpace,
    cell: int,
    choice: str,
    height: int,
    width: int,
    widths: Sequence[float] | None = None,
) -> list[Cost]:
    """Cost of a column on each branch; a fusion counts on the branch that it writes to."""
    branches = space.branches[cell]
    if choice == "parallel":
        blocks = enumerate(widths or (1.0,) * branches)
        return [residual_block(space, b, w, height, width) for b, w in blocks]
    if choice == "identity":
        return [Cost()] * branches
    channels, pixels = space.channels[:branches], _pixels(space, height, width)
    return [_fusion(channels, to, pixels) for to in range(branches)]


def residual_block(
    space: SearchSpace, branch: int, fraction: float, height: int, width: int
) -> Cost:
    """Cost of a residual block on `branch` with this fraction of its channels inside."""
    channels, pixels = space.channels[branch], _pixels(space, height, width)[branch]
    inner = hidden_channels(channels, fraction)
    return _conv(3, channels, inner, pixels) + _conv(3, inner, channels, pixels)


def edge(space: SearchSpace, branch: int, candidate: str, height: int, width: int) -> Cost:
    """Cost of one attention edge on `branch` whose choice is `candidate`."""
    channels = space.channels[branch] // space.attention_groups
    return _candidate(candidate, channels, _pixels(space, height, width)[branch])


def tables(space: SearchSpace, height: int, width: int, unit: str) -> dict[str, list[list[int]]]:
    """The cost of every choice of every decision, by kind; see `SearchSpace.decisions`.

    A genotype costs what `fixed` and its choices do. A parallel column costs nothing beside its
    residual blocks, which 'widths' has, whether or not there are several.

    Args:
      space: the search space.
      height: of the image.
      width: of the image.
      unit: 'parameters' or 'macs'.
    """
    size = height, width
    columns = [
        [
            Cost() if choice == "parallel" else column(space, cell, choice, *size)
            for choice in space.column_choices
        ]
        for cell, number in enumerate(space.columns)
        for _ in range(number)
    ]
    edges = [
        [edge(space, branch, candidate, *size) for candidate in space.candidates]
        for _, branch in space.modules
        for _ in range(space.edges)
    ]
    blocks = [
        [residual_block(space, branch, fraction, *size) for fraction in space.widths]
        for _, branch in space.residual_blocks
    ]
    costs = {"columns": columns, "attention": edges, "widths": blocks}
    return {
        kind: [[getattr(choice, unit) for choice in row] for row in rows]
        for kind, rows in costs.items()
    }


def _extremes(
    space: SearchSpace, fixed_cost: int, costs: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[int, int]:
    def total(pick: Callable[[Iterable[int]], int]) -> int:
        parallel = collections.Counter()
        for (number, _), row in zip(space.residual_blocks, costs["widths"], strict=True):
            parallel[number] += pick(row)
        columns = (
            pick(
                parallel[number] if choice == "parallel" else other
                for choice, other in zip(space.column_choices, row, strict=True)
            )
            for number, row in enumerate(costs["columns"])
        )
        allowed = derivable(space.candidates)
        edges = (pick(row[i] for i in allowed) for row in costs["attention"])
        return fixed_cost + sum(columns) + sum(edges)

    return total(min), total(max)


def _pixels(space: SearchSpace, height: int, width: int) -> list[int]:
    """Pixels of each branch's feature maps, the image padded to a multiple of `space.multiple`."""
    rows, columns = (-(-side // space.multiple) * space.multiple for side in (height, width))
    strides = [space.patch * 2**branch for branch in range(len(space.channels))]
    return [(rows // stride) * (columns // stride) for stride in strides]


def _attention_frame(space: SearchSpace, branch: int, pixels: int) -> Cost:
    """The convolutions and gates of an attention module that are not searched."""
    channels, group = space.channels[branch], space.channels[branch] // space.attention_groups
    return (
        _conv(1, channels + group, channels, pixels)
        + _conv(1, channels, channels, pixels)
        + _gate(group, GROUP_SE_REDUCTION)
        + _gate(channels, MODULE_SE_REDUCTION)
    )


def _conv(kernel: int, inputs: int, outputs: int, pixels: int, norm: bool = True) -> Cost:
    """A dense convolution without bias, at `pixels` outputs, with BatchNorm's scale and bias."""
    weights = kernel * kernel * inputs * outputs
    return Cost(weights + (2 * outputs if norm else 0), weights * pixels)


def _fusion(channels: Sequence[int], to: int, pixels: Sequence[int]) -> Cost:
    """All branches into branch `to`: 1x1 convolutions up, chains of stride-2 3x3 ones down."""
    total = Cost()
    for source, inputs in enumerate(channels):
        if source > to:
            total += _conv(1, inputs, channels[to], pixels[source])
        for branch in range(source + 1, to + 1):
            outputs = channels[to] if branch == to else inputs
            total += _conv(3, inputs, outputs, pixels[branch])
    return total


def _transition(before: Sequence[int], after: Sequence[int], pixels: Sequence[int]) -> Cost:
    """Changed channels and new branches; see `manas_jax.models.columns.Transition`."""
    total = Cost()
    last = len(before) - 1
    for branch, outputs in enumerate(after):
        if branch <= last:
            if outputs != before[branch]:
                total += _conv(3, before[branch], outputs, pixels[branch])
            continue
        for step in range(last + 1, branch + 1):
            total += _conv(
                3, before[last], outputs if step == branch else before[last], pixels[step]
            )
    return total


def _gate(channels: int, reduction: int, pools: int = 1) -> Cost:
    """A squeeze-excitation gate whose two dense layers serve `pools` pooled vectors."""
    weights = 2 * channels * squeezed(channels, reduction)
    return Cost(weights, pools * weights)


def _candidate(name: str, channels: int, pixels: int) -> Cost:
    """One candidate of an attention edge.

    Raises:
      UserError: it is neither of the paper nor registered, or its cost is no `Cost`.
    """

    def separable(inputs: int, outputs: int) -> int:
        return 9 * inputs + inputs * outputs

    weights = {
        "none": 0,
        "skip_connect": 0,
        "sep_conv_3x3": 2 * separable(channels, channels),
        "dil_conv_3x3": separable(channels, channels),
        "sep_conv_3x3_spatial": separable(2, 2) + separable(2, 1),
        "dil_conv_3x3_spatial": 9 * 2 + 1,
    }
    if name in weights:
        return Cost(weights[name], weights[name] * pixels)
    if name == "SE":
        return _gate(channels, CANDIDATE_REDUCTION)
    if name == "SE_A_M":
        return _gate(channels, CANDIDATE_REDUCTION, pools=2)
    if name == "CBAM":
        biases = squeezed(channels, CANDIDATE_REDUCTION) + channels
        channel_gate = _gate(channels, CANDIDATE_REDUCTION, pools=2) + Cost(biases)
        return channel_gate + _conv(7, 2, 1, pixels)
    candidate = registered(name)
    try:
        own = candidate.cost(channels, pixels)
    except Exception as error:  # of somebody's code
        raise UserError(
            f"candidate {name}: its cost: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(own, Cost):
        raise UserError(f"candidate {name}: its cost is {short_repr(own)}: return a Cost")
    return own
