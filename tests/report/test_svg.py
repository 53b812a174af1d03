"""Drawings of genotypes: complete and within their view box."""

import xml.etree.ElementTree as ElementTree

import pytest

from manas_jax.report import svg
from manas_jax.space import ALL_COLUMNS, CANDIDATES, SearchSpace, random_genotype

SVG = "{http://www.w3.org/2000/svg}"
SPACES = [
    SearchSpace(channels=(8, 16), branches=(1, 2), columns=(2, 1), stem_blocks=1),
    SearchSpace(),
    SearchSpace(channels=(12, 24), branches=(1, 2), columns=(0, 2), attention_groups=3, patch=2),
    SearchSpace(channels=(4,), branches=(1,), columns=(1,), residual=True),
    SearchSpace((8, 16), (1, 2), (2, 3), column_choices=ALL_COLUMNS, widths=(0.25, 1)),
]


@pytest.mark.parametrize("space", SPACES)
def test_genotype_drawing_is_complete(space):
    genotype = random_genotype(space, 3)
    root = ElementTree.fromstring(svg.draw_genotype(genotype))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for cell, columns in enumerate(genotype.columns):
        for index, choice in enumerate(columns):
            title = f"cell {cell + 1}, column {index + 1}: {choice}"
            widths = genotype.widths[cell][index] or (1,) * space.branches[cell]
            for width in widths:  # one mark per branch
                suffix = "" if width == 1 else f", width {width:g}"
                assert titles.count(title + suffix) == widths.count(width)
    edges = svg.edge_names(space.attention_groups)
    drawn = [title for title in titles if " = " in title]
    assert drawn == [
        f"{edge} = {choice}"
        for cell, branch in space.modules
        for edge, choice in zip(edges, genotype.attention[cell][branch], strict=True)
    ]
    fusions = [
        branches
        for columns, branches in zip(genotype.columns, space.branches, strict=True)
        for choice in columns
        if choice == "fusion"
    ]
    crossings = [p for p in root.iter(f"{SVG}path") if p.get("stroke") == svg.colour("fusion")]
    # Every branch to every branch; the head brings all of them to the first.
    assert len(crossings) == sum(n * n for n in fusions) + len(space.channels)
    assert ("plus the input" in titles) == space.residual


@pytest.mark.parametrize("space", SPACES)
def test_genotype_drawing_fits_its_view_box(space):
    root = ElementTree.fromstring(svg.draw_genotype(random_genotype(space, 0)))
    left, top, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for x, y in (("x", "y"), ("x1", "y1"), ("x2", "y2"), ("cx", "cy")):
            if element.get(x) is not None:
                right = float(element.get(x)) + float(element.get("width") or 0)
                bottom = float(element.get(y)) + float(element.get("height") or 0)
                assert left <= float(element.get(x)) <= right <= left + width
                assert top <= float(element.get(y)) <= bottom <= top + height


def test_edge_names_follow_the_genotype():
    assert svg.edge_names(2) == ["op(F0)", "op(F1)", "op(U0)"]
    for groups in (1, 2, 3):
        space = SearchSpace(channels=(12,), branches=(1,), columns=(0,), attention_groups=groups)
        assert len(svg.edge_names(groups)) == space.edges


def test_every_choice_has_its_own_colour():
    names = (*CANDIDATES, *ALL_COLUMNS, "width 0.25", "width 0.5", "width 1")
    assert len({svg.colour(name) for name in names}) == len(names)
