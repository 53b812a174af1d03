"""Few compiled programs for arrays of many shapes.

A program for one shape runs smaller arrays as well, padded, in the time that its own shape takes.
So a further one is compiled once the elements that it would have saved take as long as that: as
with skis, which are rented until the rent has reached their price (Karlin et al., "Competitive
snoopy caching", Algorithmica 3, 1988).
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Shape = tuple[int, ...]
Program = TypeVar("Program")


class ProgramCache(Generic[Program]):
    """The programs for the shapes seen so far, compiled when needed and when worth it."""

    def __init__(
        self,
        compile: Callable[[Shape], Program],
        sides: Sequence[Sequence[int]],
        price: float,
        limit: int,
        largest: int,
    ):
        """Compiles nothing yet.

        Args:
          compile: makes the program for a shape.
          sides: for each axis, ascending, the sides of shapes that serve several sizes; the last
            one is no smaller than that of any array.
          price: elements that take as long as a compilation.
          limit: number of programs to keep; the one that was not used for longest is dropped.
          largest: elements of the largest shape that serves several sizes.
        """
        self._compile, self._price, self._limit = compile, price, limit
        self._sides, self._largest = sides, largest
        self._programs: dict[Shape, Program] = {}  # the one used last is the last
        self._saved = collections.Counter[Shape]()  # elements, had the shape been compiled

    def __call__(self, shape: Shape) -> tuple[Shape, Program]:
        """The shape to pad an array of `shape` to, and its program.

        The first array gets a program of its own shape: often all are of one size.
        """
        sufficient = [known for known in self._programs if _covers(known, shape)]
        if sufficient:
            chosen = self._worthwhile(shape, min(sufficient, key=math.prod))
        elif self._programs:
            chosen = self._rounded_up(map(max, zip(shape, *self._programs, strict=True)))
            chosen = chosen if math.prod(chosen) <= self._largest else shape
        else:
            chosen = shape
        program = self._programs.pop(chosen, None)
        if program is None:
            self._saved.clear()
            if len(self._programs) == self._limit:
                del self._programs[next(iter(self._programs))]
            program = self._compile(chosen)
        self._programs[chosen] = program
        return chosen, program

    def _worthwhile(self, shape: Shape, known: Shape) -> Shape:
        """`known`, or a smaller shape if it would by now have saved its compilation."""
        smaller = [
            candidate
            for candidate in {shape, *itertools.product(*self._sides)}
            if _covers(candidate, shape) and math.prod(candidate) < math.prod(known)
        ]
        for candidate in smaller:
            self._saved[candidate] += math.prod(known) - math.prod(candidate)
        best = max(smaller, key=self._saved.__getitem__, default=known)
        return best if self._saved[best] > self._price else known

    def _rounded_up(self, shape: Iterable[int]) -> Shape:
        pairs = zip(shape, self._sides, strict=True)
        return tuple(next(side for side in sides if side >= n) for n, sides in pairs)


def geometric_sides(largest: int, multiple: int, growth: float) -> list[int]:
    """Sides that grow by about `growth` up to `largest`, multiples of `multiple`, ascending."""
    sides, side = [], largest
    while side:
        sides.append(side)
        side = int(side / growth) // multiple * multiple
    return sides[::-1]


def _covers(larger: Shape, shape: Shape) -> bool:
    return all(a >= b for a, b in zip(larger, shape, strict=True))
