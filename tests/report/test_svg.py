"""Drawings: complete, within their view box, to scale."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from manas_jax.report import svg
from manas_jax.space import CANDIDATES, SearchSpace, random_genotype

SVG = "{http://www.w3.org/2000/svg}"
SPACES = [
    SearchSpace(channels=(8, 16), branches=(1, 2), columns=(2, 1), stem_blocks=1),
    SearchSpace(),
    SearchSpace(channels=(12, 24), branches=(1, 2), columns=(0, 2), attention_groups=3, patch=2),
    SearchSpace(channels=(4,), branches=(1,), columns=(1,), residual=True),
]


@pytest.mark.parametrize("space", SPACES)
def test_genotype_drawing_is_complete(space):
    genotype = random_genotype(space, 3)
    root = ElementTree.fromstring(svg.draw_genotype(genotype))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for cell, columns in enumerate(genotype.columns):
        for index, choice in enumerate(columns):
            title = f"cell {cell + 1}, column {index + 1}: {choice}"
            assert titles.count(title) == space.branches[cell]  # one mark per branch
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
    names = (*CANDIDATES, "parallel", "fusion")
    assert len({svg.colour(name) for name in names}) == len(names)


def _polyline(svg, kind="polyline"):
    (shape,) = ElementTree.fromstring(svg).iter(f"{SVG}{kind}")
    return np.array([[float(v) for v in p.split(",")] for p in shape.get("points").split()])


def test_line_chart_is_to_scale():
    steps = np.array([0, 10, 40])
    points = _polyline(svg.line_chart({"a": (steps, np.array([1.0, 3.0, 2.0]))}, "A"))
    x, y = points.T
    assert (x[1] - x[0]) * 4 == pytest.approx(x[2] - x[0], abs=0.5)
    assert (y[0] - y[1]) == pytest.approx(2 * (y[0] - y[2]), abs=0.5)  # larger is higher
    assert y[0] > y[2] > y[1]


def test_line_chart_is_logarithmic_if_asked_and_possible():
    steps = np.array([0, 1, 2])

    def heights(values, logarithmic):
        curve = {"a": (steps, np.array(values))}
        return np.diff(_polyline(svg.line_chart(curve, "A", logarithmic))[:, 1])

    assert np.ptp(heights([1.0, 10.0, 100.0], True)) < 0.5
    assert np.ptp(heights([1.0, 10.0, 100.0], False)) > 20
    assert np.ptp(heights([1.0, 2.0, 3.0], True)) < 0.5  # too narrow a span: linear
    assert np.ptp(heights([0.0, 50.0, 100.0], True)) < 0.5  # zero has no logarithm: linear


@pytest.mark.parametrize("values", [[5.0], [0.0], [2.0, 2.0, 2.0], [0.0, 1e-12], [-3.0, 1e9]])
def test_line_chart_of_degenerate_values(values):
    drawing = svg.line_chart({"a": (np.arange(len(values)), np.array(values))}, "A")
    assert np.isfinite(_polyline(drawing)).all()
    assert "nan" not in drawing and "inf" not in drawing


def test_long_curve_is_drawn_as_means_in_a_band():
    values = np.tile([0.0, 2.0, 4.0, 2.0], 100)
    drawing = svg.line_chart({"a": (np.arange(400), values)}, "A", points=100)
    mean, band = _polyline(drawing), _polyline(drawing, "polygon")
    assert len(mean) == 100 and np.ptp(mean[:, 1]) < 0.1
    top, bottom = band[:100, 1], band[100:, 1]
    np.testing.assert_allclose(mean[:, 1] - top, bottom - mean[:, 1], atol=0.2)
    assert (bottom - top).min() > 100


def test_stacked_areas_are_proportional():
    shares = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    drawing = svg.stacked_areas(shares, ("none", "SE", "CBAM"), "Edge")
    root = ElementTree.fromstring(drawing)
    _, _, width, height = map(float, root.get("viewBox").split())

    def area(polygon):
        x, y = np.array([p.split(",") for p in polygon.get("points").split()], float).T
        return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2

    areas = [area(polygon) / (width * height) for polygon in root.iter(f"{SVG}polygon")]
    np.testing.assert_allclose(areas, shares.mean(axis=0), atol=0.01)
    assert root.get("aria-label") == "Edge, at the end: none 0.20, SE 0.30, CBAM 0.50"
