"""Which programs are compiled for arrays of many shapes, and which of them run what."""

import math

import numpy as np
import pytest

from manas_jax.inference.program_cache import ProgramCache, geometric_sides

SIDES = geometric_sides(1024, 32, 1.25)


@pytest.fixture
def compiled():
    return []


@pytest.fixture
def make(compiled):
    def make(price, limit=8, largest=1024**2):
        def compile(shape):
            compiled.append(shape)
            return shape

        return ProgramCache(compile, (SIDES, SIDES), price, limit, largest)

    return make


def test_sides_grow_to_the_largest():
    assert SIDES[:2] == [32, 64] and SIDES[-3:] == [640, 800, 1024]
    assert not np.any(np.array(SIDES) % 32) and (np.diff(SIDES) > 0).all()
    assert geometric_sides(256, 256, 1.25) == [256]


def test_arrays_of_one_shape_have_a_program_of_that_shape(make, compiled):
    programs = make(price=1)
    for _ in range(3):
        assert programs((96, 320)) == ((96, 320), (96, 320))
    assert compiled == [(96, 320)]


def test_smaller_arrays_share_a_program_until_another_is_worth_it(make, compiled):
    programs = make(price=2.5 * (320 - 96) * 320)
    shapes = [programs(shape)[0] for shape in [(320, 320), *[(96, 320)] * 4, (320, 96)]]
    assert shapes == [(320, 320)] * 3 + [(96, 320)] * 2 + [(320, 320)]
    assert compiled == [(320, 320), (96, 320)]


def test_larger_arrays_have_a_program_for_several_sizes(make, compiled):
    programs = make(price=math.inf)
    shapes = [programs(shape)[0] for shape in [(480, 320), (320, 480), (500, 500), (1024, 32)]]
    assert shapes == [(480, 320), (512, 512), (512, 512), (1024, 512)]
    assert compiled == [(480, 320), (512, 512), (1024, 512)]


def test_no_program_for_several_sizes_is_too_large(make, compiled):
    programs = make(price=math.inf, largest=512 * 512)
    shapes = [(64, 1024), (1024, 64), (32, 1024)]
    assert [programs(shape)[0] for shape in shapes] == [(64, 1024), (1024, 64), (64, 1024)]


def test_the_program_unused_for_longest_is_dropped(make, compiled):
    programs = make(price=0, limit=2)
    for side in (96, 64, 96, 32, 96, 64):
        assert programs((side, side))[0] == (side, side)
    assert compiled == [(96, 96), (64, 64), (32, 32), (64, 64)]


@pytest.mark.parametrize("smallest", [32, 256, 512])
def test_many_sizes_compile_a_few_programs(make, compiled, smallest):
    """And take about twice as long at most as if each size had its own at no cost."""
    price, sizes = 5e6, np.random.default_rng(0).integers(smallest // 32, 33, (1000, 2)) * 32
    programs = make(price, limit=99)
    run = sum(math.prod(programs(tuple(size))[0]) for size in sizes.tolist())
    ideal = sizes.prod(1).sum()
    assert len(compiled) <= 12
    assert run + price * len(compiled) < 2.1 * ideal
