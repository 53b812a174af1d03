"""The search space and the genotype: what can be chosen, and what was chosen.

Plain frozen dataclasses that are read from and written to JSON, without arrays. The space
is that of Cai et al., "Multi-scale Attentive Image De-raining Networks via Neural Architecture
Search", IEEE TCSVT 33(2), 2023 (arXiv 2207.00728).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manas_jax import registry
from manas_jax.buckets import as_path
from manas_jax.errors import UserError, reading, short_repr
from manas_jax.files import replacing
from manas_jax.registry import CANDIDATES

COLUMNS = ("parallel", "fusion")
"""The paper's choices of a column, in the order of its logits."""

ALL_COLUMNS = (*COLUMNS, "identity")
"""All values of `SearchSpace.column_choices`: the paper's two, which are the default, and one that
leaves a column out, so that the depth of a cell is searched."""

STEM_EXPANSION = 4  # output channels of a bottleneck per inner channel
GROUP_SE_REDUCTION, MODULE_SE_REDUCTION = 4, 16  # of the fixed gates of an attention module
CANDIDATE_REDUCTION = 4  # of SE, SE_A_M and CBAM
BATCH_NORM_EPSILON = 1e-5  # added to variances

# Far beyond what can be trained, but no more than can be described in seconds.
_MAX = {
    "channels": 16,  # branches
    "branches": 64,  # cells
    "columns": 64,
    "candidates": 64,
    "column_choices": len(ALL_COLUMNS),
    "widths": 16,
    "stem_blocks": 1000,
    "attention_groups": 64,
    "patch": 64,
}
_MAX_CHANNELS, _MAX_COLUMNS = 2**16, 1000

GENOTYPE_FORMAT, GENOTYPE_VERSION = "manas_jax.genotype", 2  # without widths it is 1


def squeezed(channels: int, reduction: int) -> int:
    """Width of the hidden layer of a squeeze-excitation gate; at least one."""
    return max(1, channels // reduction)


def hidden_channels(channels: int, width: float) -> int:
    """Channels between the two convolutions of a residual block of this width; at least one."""
    return max(1, round(channels * width))


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A multi-scale network with searched columns and attention modules; the paper's by default.

    Attributes:
      channels: channels of each branch; branch b works at 1 / 2**b of the stem's resolution.
      branches: number of branches of each cell, never decreasing; the last cell has all of them.
      columns: number of searched columns of each cell.
      stem_blocks: bottleneck blocks before the first cell.
      attention_groups: groups that an attention module splits its channels into.
      candidates: what an attention edge may choose, of `CANDIDATES` and of those that
        `manas_jax.register_candidate` has added.
      column_choices: what a column may choose, a subset of `ALL_COLUMNS`.
      widths: what each residual block of a parallel column may choose, as fractions of its branch's
        channels: how many it has between its two convolutions, where nothing else depends on their
        number. So the choices are independent, and the cost of a genotype is a sum over them.
      patch: side in pixels of the squares that become channels before the stem (space to depth)
        and pixels again after the head. 1 is the paper's network; 2 runs it at half resolution.
      residual: whether the network predicts the difference to its input; the paper's does not.

    Raises:
      UserError: a value is out of its range; the message names it.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    branches: tuple[int, ...] = (2, 3, 4)
    columns: tuple[int, ...] = (4, 4, 4)
    stem_blocks: int = 2
    attention_groups: int = 2
    candidates: tuple[str, ...] = CANDIDATES
    column_choices: tuple[str, ...] = COLUMNS
    widths: tuple[float, ...] = (1.0,)
    patch: int = 1
    residual: bool = False

    def __post_init__(self):
        for field in (
            "channels", "branches", "columns", "candidates", "column_choices", "widths",
        ):  # fmt: skip
            values = getattr(self, field)
            length = f"a list of at most {_MAX[field]} values"
            valid = isinstance(values, (list, tuple)) and len(values) <= _MAX[field]
            self._check(field, valid, length)
            object.__setattr__(self, field, tuple(values))
        for field in ("stem_blocks", "attention_groups", "patch"):
            most = _MAX[field]
            valid = _is_count(getattr(self, field), most)
            self._check(field, valid, f"a whole number from 1 to {most}")
        groups = self.attention_groups
        self._check(
            "channels",
            self.channels
            and all(_is_count(c, _MAX_CHANNELS) and c % groups == 0 for c in self.channels),
            f"a number from 1 to {_MAX_CHANNELS} per branch, each divisible by attention_groups "
            f"= {groups}",
        )
        self._check(
            "branches",
            self.branches
            and all(_is_count(n, len(self.channels)) for n in self.branches)
            and list(self.branches) == sorted(self.branches)
            and self.branches[-1] == len(self.channels),
            f"a number per cell, never decreasing, at last {len(self.channels)} (as in channels)",
        )
        self._check(
            "columns",
            len(self.columns) == len(self.branches)
            and all(n == 0 or _is_count(n, _MAX_COLUMNS) for n in self.columns)
            and sum(self.columns) <= _MAX_COLUMNS,
            f"a number per cell, {len(self.branches)} in all, none negative, together at most "
            f"{_MAX_COLUMNS}",
        )
        for field, known, nothing, more in (
            ("candidates", registry.names(), "none", " and those that --import MODULE registers"),
            ("column_choices", ALL_COLUMNS, "identity", ""),
        ):
            names = getattr(self, field)
            self._check(
                field,
                all(isinstance(name, str) for name in names)
                and set(names) - {nothing}
                and set(names) <= set(known)
                and len(set(names)) == len(names),
                f"distinct names among {', '.join(known)}{more}, and not '{nothing}' alone",
            )
        self._check(
            "widths",
            all(_is_fraction(width) for width in self.widths)
            and list(self.widths) == sorted(set(self.widths))
            and self.widths[-1:] == (1,)
            and ("parallel" in self.column_choices or len(self.widths) == 1),
            "fractions of the channels in increasing order, each more than 0, at last 1; several "
            "only where column_choices has parallel",
        )
        object.__setattr__(self, "widths", tuple(map(float, self.widths)))
        self._check("residual", isinstance(self.residual, bool), "true or false")

    def _check(self, field: str, valid: Any, allowed: str) -> None:
        if not valid:
            raise UserError(f"space.{field} = {short_repr(getattr(self, field))}: give {allowed}")

    @property
    def edges(self) -> int:
        """Searched edges of an attention module: group g has one from each group up to g."""
        return self.attention_groups * (self.attention_groups + 1) // 2

    @property
    def modules(self) -> tuple[tuple[int, int], ...]:
        """(cell, branch) of every attention module, cells in order, branches in order."""
        return tuple((s, b) for s, count in enumerate(self.branches) for b in range(count))

    @property
    def residual_blocks(self) -> tuple[tuple[int, int], ...]:
        """(column, branch) of every residual block; columns are numbered through all cells."""
        if "parallel" not in self.column_choices:
            return ()
        cells = zip(self.branches, self.columns, strict=True)
        counts = [count for count, columns in cells for _ in range(columns)]
        return tuple((column, b) for column, count in enumerate(counts) for b in range(count))

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """What each kind of decision chooses among; widths only where there are several."""
        kinds = {"columns": self.column_choices, "attention": self.candidates}
        return kinds | ({"widths": self.widths} if len(self.widths) > 1 else {})

    @property
    def decisions(self) -> dict[str, tuple[int, ...]]:
        """The number of decisions of each kind: columns, (modules, edges), residual blocks."""
        shapes = {
            "columns": (sum(self.columns),),
            "attention": (len(self.modules), self.edges),
            "widths": (len(self.residual_blocks),),
        }
        return {kind: shapes[kind] for kind in self.choices}

    @property
    def multiple(self) -> int:
        """Height and width inside the network are padded to a multiple of this many pixels."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def imports(self) -> dict[str, str]:
        """The modules that have registered candidates of the space, by candidate."""
        own = [name for name in self.candidates if name not in CANDIDATES]
        return {name: registry.registered(name).home for name in own}

    def to_dict(self) -> dict[str, Any]:
        """The fields with the types of JSON, and `imports` if there are any."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return fields | ({"imports": self.imports} if self.imports else {})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SearchSpace:
        """The inverse of `to_dict`; missing fields have their default. Imports nothing.

        Raises:
          UserError: an unknown field, a value out of its range, or a candidate that is not
            registered; names the module to import.
        """
        fields = dict(fields)
        for name, module in dict(fields.pop("imports", {})).items():
            if name not in registry.names():
                how = registry.how_to_import(module)
                raise UserError(f"space.candidates: {short_repr(name)} is not registered; {how}")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise UserError(f"space.{key}: unknown field; known ones are {', '.join(known)}")
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Genotype:
    """One architecture of a space: a choice for each column, attention edge and residual block.

    Attributes:
      space: the space that the choices are from.
      columns: for each cell, each column's choice.
      attention: for each cell, for each branch, each edge's candidate.
      widths: for each cell, for each column, the width of its residual block on each branch; none
        where the column is not parallel. All are 1 by default.

    Raises:
      UserError: a wrong length or an unknown name; the message says where.
    """

    space: SearchSpace
    columns: tuple[tuple[str, ...], ...]
    attention: tuple[tuple[tuple[str, ...], ...], ...]
    widths: tuple[tuple[tuple[float, ...], ...], ...] | None = None

    def __post_init__(self):
        for field in ("columns", "attention", "widths"):
            object.__setattr__(self, field, _tuples(getattr(self, field)))
        space = self.space
        _expect_length("genotype.columns", self.columns, len(space.columns), "cells")
        _expect_length("genotype.attention", self.attention, len(space.branches), "cells")
        for s, cell in enumerate(self.columns):
            where = f"genotype.columns[{s}]"
            _expect_length(where, cell, space.columns[s], "columns")
            _expect_names(where, cell, space.column_choices)
        for s, cell in enumerate(self.attention):
            _expect_length(f"genotype.attention[{s}]", cell, space.branches[s], "branches")
            for b, edges in enumerate(cell):
                where = f"genotype.attention[{s}][{b}]"
                _expect_length(where, edges, space.edges, "edges")
                _expect_names(where, edges, space.candidates)
        blocks = [
            [space.branches[s] if choice == "parallel" else 0 for choice in cell]
            for s, cell in enumerate(self.columns)
        ]
        if self.widths is None:
            object.__setattr__(self, "widths", _tuples([[(1.0,) * n for n in c] for c in blocks]))
        _expect_length("genotype.widths", self.widths, len(space.columns), "cells")
        for s, cell in enumerate(self.widths):
            _expect_length(f"genotype.widths[{s}]", cell, space.columns[s], "columns")
            for i, widths in enumerate(cell):
                where = f"genotype.widths[{s}][{i}]"
                _expect_length(where, widths, blocks[s][i], "residual blocks")
                _expect_names(where, widths, space.widths)

    @property
    def picks(self) -> dict[str, list[Any]]:
        """The choices decision by decision, as `assemble` takes them.

        Residual blocks that no column has are of width 1.
        """
        widths = [
            width
            for cell, n in zip(self.widths, self.space.branches, strict=True)
            for column in cell
            for width in column or (1.0,) * n
        ]
        picks = {
            "columns": [choice for cell in self.columns for choice in cell],
            "attention": [name for cell in self.attention for edges in cell for name in edges],
            "widths": widths,
        }
        return {kind: picks[kind] for kind in self.space.choices}

    def to_json(self) -> str:
        """Readable JSON with a format name and version."""
        fields = {
            "format": GENOTYPE_FORMAT,
            "version": GENOTYPE_VERSION,
            "space": self.space.to_dict(),
            "columns": self.columns,
            "attention": self.attention,
            "widths": self.widths,
        }
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "genotype") -> Genotype:
        """The inverse of `to_json`.

        Args:
          text: the JSON text.
          source: its name in error messages, such as the file.

        Raises:
          UserError: not JSON, not a genotype, another version, unknown names, wrong lengths.
        """
        with reading(source, "genotype"):
            return cls._from_fields(json.loads(text), source)

    @classmethod
    def _from_fields(cls, fields: Any, source: str) -> Genotype:
        if not isinstance(fields, dict) or fields.get("format") != GENOTYPE_FORMAT:
            raise UserError(f'{source}: not a genotype (no "format": "{GENOTYPE_FORMAT}")')
        version = fields.get("version")
        if version not in range(1, GENOTYPE_VERSION + 1):
            raise UserError(
                f"{source}: genotype version {short_repr(version)}; "
                f"this program reads versions up to {GENOTYPE_VERSION}"
            )
        choices = ["columns", "attention", *(["widths"] if version > 1 else [])]
        for key in ("space", *choices):
            if key not in fields:
                raise UserError(f"{source}: the key {key!r} is missing")
        space = SearchSpace.from_dict(fields["space"])
        return cls(space, **{key: _tuples(fields[key]) for key in choices})

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON atomically."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Genotype:
        """Reads what `save` wrote.

        Raises:
          UserError: the file is missing or unreadable, or is not a genotype.
        """
        with reading(path, "genotype"):
            text = as_path(path).read_text()
        return cls.from_json(text, str(path))


def assemble(space: SearchSpace, picks: Mapping[str, Sequence[Any]]) -> Genotype:
    """The genotype of choices listed decision by decision.

    Args:
      space: the search space.
      picks: for each kind of `SearchSpace.choices` one choice per decision: of each column, of each
        edge module by module, of each residual block. Those of blocks that no column has do not
        count.

    Raises:
      UserError: the space does not have one of them.
    """
    columns, edges = iter(picks["columns"]), iter(picks["attention"])
    widths = iter(picks.get("widths", itertools.repeat(1.0)))
    chosen = [[next(columns) for _ in range(n)] for n in space.columns]
    blocks = [
        [[next(widths) for _ in range(n)] for _ in cell]
        for n, cell in zip(space.branches, chosen, strict=True)
    ]
    return Genotype(
        space,
        chosen,
        [[[next(edges) for _ in range(space.edges)] for _ in range(n)] for n in space.branches],
        [
            [row if choice == "parallel" else () for choice, row in zip(*cell, strict=True)]
            for cell in zip(chosen, blocks, strict=True)
        ],
    )


def derive(
    space: SearchSpace,
    columns: Sequence[Sequence[float]],
    attention: Sequence[Sequence[Sequence[float]]],
    widths: Sequence[Sequence[float]] | None = None,
) -> Genotype:
    """The most probable choices, except that `none` is never chosen.

    Args:
      space: the search space.
      columns: a score (logit or probability) per column and choice, columns cell by cell.
      attention: a score per module, edge and candidate, modules as in `space.modules`.
      widths: a score per residual block and width, blocks as in `space.residual_blocks`; required
        where the space has several widths.
    """
    rows = {"columns": columns, "attention": [edge for module in attention for edge in module]}
    rows |= {} if widths is None else {"widths": widths}

    def likeliest(row: Sequence[float], choices: Sequence[Any]) -> Any:
        return choices[max(derivable(choices), key=lambda i: row[i])]

    picks = {
        kind: [likeliest(row, choices) for row in rows[kind]]
        for kind, choices in space.choices.items()
    }
    return assemble(space, picks)


def random_genotype(space: SearchSpace, seed: int) -> Genotype:
    """A uniformly random genotype without `none`, a function of the seed."""
    draw = random.Random(seed)
    picks = {}
    for kind, shape in space.decisions.items():
        choices = space.choices[kind]
        allowed = [choices[i] for i in derivable(choices)]
        picks[kind] = [draw.choice(allowed) for _ in range(math.prod(shape))]
    return assemble(space, picks)


def derivable(choices: Sequence[Any]) -> list[int]:
    """Indices of the choices that a derived network may have: all but `none`."""
    return [i for i, choice in enumerate(choices) if choice != "none"]


def alternating_genotype(space: SearchSpace) -> Genotype:
    """All column choices but `identity` and all candidates but `none`, in turn."""
    columns = itertools.cycle([c for c in COLUMNS if c in space.column_choices] or ["identity"])
    names = itertools.cycle([name for name in space.candidates if name != "none"])
    return Genotype(
        space,
        tuple(tuple(next(columns) for _ in range(n)) for n in space.columns),
        tuple(
            tuple(tuple(next(names) for _ in range(space.edges)) for _ in range(n))
            for n in space.branches
        ),
    )


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_fraction(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _expect_length(where: str, value: Any, length: int, what: str) -> None:
    if not isinstance(value, tuple):
        raise UserError(f"{where}: expected a list of {length} {what}, got {value!r}")
    if len(value) != length:
        raise UserError(f"{where}: {len(value)} {what}, but its space has {length}")


def _expect_names(where: str, names: Sequence[Any], known: Sequence[str]) -> None:
    for position, name in _unknown(names, known):
        raise UserError(
            f"{where}[{position}]: unknown choice {name!r}; give {', '.join(map(str, known))}"
        )


def _unknown(names: Sequence[Any], known: Sequence[str]) -> Iterator[tuple[int, Any]]:
    return ((i, name) for i, name in enumerate(names) if name not in known)
