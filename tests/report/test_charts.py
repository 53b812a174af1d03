"""Charts: to scale, on the axes that their values need."""

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from manas_jax.report import charts, svg

STEPS = np.array([0, 10, 40])


def _axes(figure):
    (axes,) = figure.axes
    return axes


def _scale(values):
    return _axes(charts.line_chart({"a": (STEPS, np.array(values))}, logarithmic=True)).get_yscale()


def test_line_chart_draws_the_values_it_is_given():
    curves = {"a": (STEPS, np.array([1.0, np.nan, 2.0])), "b": (STEPS[:2], np.array([3.0, 4.0]))}
    axes = _axes(charts.line_chart(curves))
    for line, (steps, values), colour in zip(
        axes.lines, curves.values(), charts.colours(2), strict=True
    ):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([steps, values], axis=1))
        assert line.get_color() == colour
    low, high = axes.get_ylim()
    assert low < 1 and high > 4


def test_axis_is_logarithmic_where_asked_and_possible():
    assert _scale([1.0, 4.0, 10.0]) == "log"
    assert _scale([1.0, 2.0, 3.0]) == "linear"  # too narrow a span
    assert _scale([0.0, 50.0, 100.0]) == "linear"  # zero has no logarithm
    axes = _axes(charts.line_chart({"a": (STEPS, np.array([1.0, 10.0, 100.0]))}))
    assert axes.get_yscale() == "linear"


def test_a_single_point_is_visible():
    (line,) = _axes(charts.line_chart({"a": (STEPS[:1], np.array([5.0]))})).lines
    assert line.get_marker() == "o"


@pytest.mark.parametrize(
    "values", [[5.0], [0.0], [2.0, 2.0, 2.0], [0.0, 1e-12], [-3.0, 1e9], [np.nan, np.inf]]
)
@pytest.mark.filterwarnings("error")
def test_line_chart_of_degenerate_values(values):
    figure = charts.line_chart({"_$a$": (np.arange(len(values)), np.array(values))}, True)
    root = ElementTree.fromstring(_content(charts.data_uri(figure)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "nan" not in _content(charts.data_uri(figure)).decode()


def _content(uri):
    head, content = uri.split(",")
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(content)


def test_same_chart_gives_same_bytes():
    curves = {"a": (STEPS, np.array([1.0, 3.0, 2.0]))}
    first, second = (charts.data_uri(charts.line_chart(curves)) for _ in range(2))
    assert first == second


def test_stacked_chart_fills_an_axis_from_0_to_1():
    shares = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])
    names = ("none", "SE", "CBAM")
    axes = _axes(charts.stacked_chart(STEPS, shares, names))
    assert axes.get_ylim() == (0, 1) and axes.get_xlim() == (0, 40)
    _check_stack(axes, STEPS, shares, names)


def test_strip_has_the_same_areas_at_fewer_times():
    shares = np.linspace([1.0, 0.0], [0.25, 0.75], 500)
    axes = _axes(charts.strip(shares, ("parallel", "fusion")))
    times = np.unique(axes.collections[0].get_paths()[0].vertices[:, 0]).astype(int)
    assert len(times) < 100 and {0, 499} <= set(times)
    _check_stack(axes, times, shares[times], ("parallel", "fusion"))


def _check_stack(axes, steps, shares, names):
    """Each area lies between the sums of the shares before and after it."""
    tops = np.cumsum(shares, axis=1)
    for area, name, bottom, top in zip(
        axes.collections, names, (tops - shares).T, tops.T, strict=True
    ):
        points = area.get_paths()[0].vertices
        for step, low, high in zip(steps, bottom, top, strict=True):
            heights = points[points[:, 0] == step, 1]
            np.testing.assert_allclose([heights.min(), heights.max()], [low, high], atol=1e-6)
        red, green, blue, _ = (round(255 * c) for c in area.get_facecolor()[0])
        assert f"#{red:02x}{green:02x}{blue:02x}" == svg.colour(name)


def test_one_time_has_a_width():
    axes = _axes(charts.stacked_chart(np.array([7]), np.array([[0.25, 0.75]]), ("SE", "CBAM")))
    assert axes.get_xlim() == (7, 8)
