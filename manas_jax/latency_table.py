"""Tables of milliseconds that `python -m manas_jax.latency` has measured, as costs of choices."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

from manas_jax.buckets import as_path
from manas_jax.errors import UserError, reading
from manas_jax.space import Genotype, SearchSpace

FORMAT, VERSION = "manas_jax.latency", 1
NANOSECONDS = 10**6
"""In a millisecond: costs are whole numbers, so that their sums are exact."""

Rows = dict[str, list[list[int]]]


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """What the networks of a space take for one picture, in nanoseconds.

    Attributes:
      source: the file.
      device: that it was measured on, see `provenance.device`.
      space: the search space.
      size: height and width of the picture.
      fixed: of everything that is not searched.
      rows: of every choice of every decision, by kind, as `cost.tables` has them.
    """

    source: str
    device: str
    space: SearchSpace
    size: tuple[int, int]
    fixed: int
    rows: Rows

    def cost(self, genotype: Genotype) -> int:
        """What the derived network of a genotype takes: the sum over its choices and `fixed`."""
        space, columns = genotype.space, genotype.picks["columns"]
        widths = [column for cell in genotype.widths for column in cell]
        total = self.fixed
        for row, choice in zip(self.rows["columns"], columns, strict=True):
            total += row[space.column_choices.index(choice)]
        for row, name in zip(self.rows["attention"], genotype.picks["attention"], strict=True):
            total += row[space.candidates.index(name)]
        for row, (column, b) in zip(self.rows["widths"], space.residual_blocks, strict=True):
            if columns[column] == "parallel":
                total += row[space.widths.index(widths[column][b])]
        return total

    def check(self, space: SearchSpace, size: tuple[int, int]) -> None:
        """Checks that it was measured for a space and a size.

        Raises:
          UserError: it was not; names what differs.
        """
        ours, theirs = space.to_dict(), self.space.to_dict()
        differ = [f"space.{key}" for key in ours if ours[key] != theirs.get(key)]
        if differ:
            raise UserError(
                f"{self.source}: measured for another {', '.join(differ)}: measure this space with "
                "python -m manas_jax.latency"
            )
        if tuple(size) != self.size:
            (rows, columns), (height, width) = self.size, size
            raise UserError(
                f"{self.source}: measured for pictures of {rows}x{columns} pixels, and "
                f"objectives.complexity_size is {height}x{width}: set it to them, or measure again"
            )

    def check_device(self, device: str) -> None:
        """Checks that it was measured on this kind of device.

        Raises:
          UserError: it was not.
        """
        if device != self.device:
            raise UserError(
                f"{self.source}: measured on {self.device}, and this is {device}: search there, or "
                "measure here with python -m manas_jax.latency"
            )

    @classmethod
    def load(cls, file: str | os.PathLike) -> LatencyTable:
        """Reads what `manas_jax.latency` wrote.

        Raises:
          UserError: missing, damaged or of another kind, or a time is NaN or negative.
        """
        with reading(file, "latency table", "measure one with python -m manas_jax.latency"):
            fields = json.loads(as_path(file).read_text())
            if fields["format"] != FORMAT or fields["version"] != VERSION:
                raise ValueError(f"not of format {FORMAT}, version {VERSION}")
            space = SearchSpace.from_dict(fields["space"])
            height, width = map(int, fields["size"])
            times = fields["milliseconds"]
            rows = {kind: times[kind] for kind in ("columns", "attention", "widths")}
            for kind, shape in _shapes(space).items():
                if [len(row) for row in rows[kind]] != [shape[1]] * shape[0]:
                    raise ValueError(f"milliseconds.{kind} has not {shape[0]} rows of {shape[1]}")
            rows = {
                kind: [
                    [_nanoseconds(f"{kind}[{i}][{j}]", ms) for j, ms in enumerate(row)]
                    for i, row in enumerate(of_kind)
                ]
                for kind, of_kind in rows.items()
            }
            fixed = _nanoseconds("fixed", times["fixed"])
            return cls(str(file), str(fields["device"]), space, (height, width), fixed, rows)


def _shapes(space: SearchSpace) -> dict[str, tuple[int, int]]:
    return {
        "columns": (sum(space.columns), len(space.column_choices)),
        "attention": (len(space.modules) * space.edges, len(space.candidates)),
        "widths": (len(space.residual_blocks), len(space.widths)),
    }


def _nanoseconds(where: str, milliseconds: Any) -> int:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        raise ValueError(f"milliseconds.{where} is no number")
    if not (0 <= milliseconds < math.inf):
        raise ValueError(f"milliseconds.{where} is {milliseconds}, not 0 or more")
    return round(milliseconds * NANOSECONDS)
