"""The report against a workdir written with the very writers that a run uses."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from clu import metric_writers
from PIL import Image

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.report import page as report
from manas_jax.report import svg
from manas_jax.space import CANDIDATES, Genotype, SearchSpace, random_genotype

SPACE = SearchSpace(channels=(8, 16), branches=(1, 2), columns=(2, 1), stem_blocks=1)
SVG = "{http://www.w3.org/2000/svg}"


def _log(folder, points):
    """One event file: points of (step, {tag: scalar or array})."""
    writer = metric_writers.create_default_writer(str(folder), asynchronous=False)
    for step, values in points:
        arrays = {tag: value for tag, value in values.items() if np.ndim(value)}
        writer.write_scalars(step, {t: v for t, v in values.items() if t not in arrays})
        writer.write_summaries(step, arrays)
    writer.close()


def _softmax(logits):
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return shares.astype(np.float32)


def _search_points():
    rng = np.random.default_rng(0)
    columns, attention = rng.normal(size=(3, 2)), rng.normal(size=(3, 3, 9))
    for step in range(0, 500, 2):
        yield (
            step,
            {
                "loss/total": 2.0 / (step + 1),
                "loss/external": float("nan") if step == 4 else 1.0,
                "learning_rate": 1e-3,
                "architecture/entropy_columns": 0.3,
                "architecture/entropy_attention": 0.2,
                "architecture/columns": _softmax(columns * step / 100),
                "architecture/attention": _softmax(attention * step / 100),
            },
        )


def _scores(psnr):
    return {"y_psnr": psnr, "y_ssim": psnr / 50, "rgb_psnr": psnr - 1, "rgb_ssim": 0.5}


def _save_picture(path, size=(16, 12), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run <1> & more"
    folder.mkdir()
    config = {
        "stage": "all",
        "note": "</pre><script>",
        "data": {"source": "folder", "root": "x/rain", "versions": 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    random_genotype(SPACE, 1).save(folder / "genotype.json")
    _log(folder / "search", _search_points())
    _log(folder / "train", [(s, {"loss/total": 1.0 - s / 100}) for s in range(10)])
    summary = {
        "steps": 1234,
        "seconds": 3700.0,
        "flops_per_step": 2.5e12,
        "validation": {"psnr": 30},
    }
    (folder / "search/summary.json").write_text(json.dumps(summary))
    summary = {"steps": 99, "seconds": 61.0, "devices": ["cpu"], "validation": {"psnr": 31.5}}
    (folder / "train/summary.json").write_text(json.dumps(summary))
    images = [
        {"name": "a.png", "input": _scores(20.0), "output": _scores(30.0), "seconds": 0.5},
        {"name": "b_1.png", "input": _scores(24.0), "output": _scores(23.0), "seconds": 0.5},
    ]
    mean = {"input": _scores(22.0), "output": _scores(26.5)}
    for seed, kind in enumerate(("rainy", "restored", "clean")):
        _save_picture(folder / f"evaluate/pictures/a_{kind}.png", seed=seed)
        _save_picture(folder / f"evaluate/pictures/b_1_{kind}.png", seed=seed)
    (folder / "evaluate/scores.json").write_text(json.dumps({"images": images, "mean": mean}))
    return folder


class _Page(HTMLParser):
    """Checks that tags nest, and collects elements and text."""

    EMPTY = frozenset({"meta", "img", "input", "br"})

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(workdir):
    path = report.write(workdir)
    assert path == workdir / "report.html"
    assert not list(path.parent.glob("*.tmp*"))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return _Page(html)


def test_page_stands_alone(html, page):
    assert not page.all("script") and not page.all("link")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert all(i["src"].startswith("data:image/png;base64,") for i in page.all("img"))
    assert "url(" not in html and "@import" not in html


def test_page_is_accessible(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(header["scope"] in ("row", "col") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} == ids


def test_page_escapes_what_it_quotes(html, page):
    assert "<script" not in html
    assert "run <1> & more" in "".join(page.text)
    assert '"note": "</pre><script>"' in "".join(page.text)


def test_page_tells_the_results(page, workdir):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert "search (1,234 steps), training (99 steps), evaluation (2 pictures)" in text
    assert "Data: folder “rain”, 3 rainy versions of each scene." in text
    assert "raises the PSNR on luma from 22.00 dB for the rainy pictures to 26.50 dB" in text
    assert "+4.50 dB), mean over 2 pictures; 1 of them got better" in text
    assert "supernet reached 30.00 dB and the found network, trained by itself, 31.50 dB" in text
    assert "1 h 02 min" in text and "1 min 01 s" in text and "2.5 T" in text
    assert "1 value not finite" in text  # the NaN of loss/external
    parameters = cost.derived(Genotype.load(workdir / "genotype.json"), 256, 256).parameters
    assert f"{parameters:,}" in text


def test_page_pairs_pictures_with_their_scores(page):
    alts = [image["alt"] for image in page.all("img")]
    assert alts == [
        "Rainy picture a, 20.00 dB, 0.4000",
        "Restored picture a, 30.00 dB, 0.6000",
        "Clean picture a",
        "Rainy picture b_1, 24.00 dB, 0.4800",
        "Restored picture b_1, 23.00 dB, 0.4600",
        "Clean picture b_1",
    ]
    assert len({image["src"] for image in page.all("img")}) == 3  # a and b_1 share their pixels


def test_page_draws_every_choice_and_curve(page):
    labels = [svg["aria-label"] for svg in page.all("svg")]
    areas = [label for label in labels if ", at the end: " in label]
    assert len(areas) == 3 + 3 * 3
    assert areas[0].startswith("Cell 1 column 1, at the end: parallel 0.")
    assert areas[-1].startswith("Cell 2, branch 2 op(U0), at the end: none 0.")
    assert "Loss: total, steps 0 to 498: Loss: total from 2 to 0.004008" in labels
    assert any(label.startswith("Entropy of the architecture") for label in labels)


def test_unfinished_runs_say_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing to report"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"stage": "search"}')
    text = " ".join(_Page(report.write(tmp_path).read_text()).text)
    assert "No stage has begun" in text and "No scores" in text and "no genotype.json" in text
    _log(tmp_path / "search", list(_search_points())[:1])
    page = _Page(report.write(tmp_path).read_text())
    assert "The likeliest choices of the 9 attention edges hold 11%" in " ".join(page.text)
    assert "No network yet" in " ".join(page.text)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"stage": ')
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('["stage"]')
    with pytest.raises(UserError, match=r"config\.json: expected a JSON object"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"stage": "all"}')
    (tmp_path / "evaluate/pictures").mkdir(parents=True)
    (tmp_path / "evaluate/pictures/a_clean.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a_clean\.png: not readable as a picture"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_large_pictures_are_reduced(tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "all"}')
    _save_picture(tmp_path / "evaluate/pictures/a_rainy.png", size=(report.LONGEST_SIDE + 1, 8))
    assert "shown reduced" in " ".join(_Page(report.write(tmp_path).read_text()).text)


def test_command(workdir, tmp_path, capsys):
    assert report.main([f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert report.main([f"--workdir={tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


# Events


def _values(curve):
    return dict(zip(curve[0].tolist(), curve[1].tolist(), strict=True))


def test_events_of_a_resumed_run(tmp_path):
    _log(tmp_path, [(s, {"loss": float(s), "table": np.full((2, 2), s)}) for s in (1, 2, 3, 5)])
    # From a checkpoint of step 2 on: takes step 3 again, and never comes to report step 5.
    _log(tmp_path, [(3, {"loss": 30.0}), (4, {"loss": 40.0})])
    events = report.read_events(tmp_path)
    assert _values(events["loss"]) == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert events["table"][0].tolist() == [1, 2, 3, 5]  # the later file says nothing of it
    assert events["table"][1].shape == (4, 2, 2)


def test_events_of_a_repeated_step_and_of_a_torn_file(tmp_path):
    _log(tmp_path, [(1, {"loss": 1.0}), (1, {"loss": 7.0}), (2, {"loss": 2.0})])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert _values(report.read_events(tmp_path)["loss"]) == {1: 7.0}


def test_events_of_no_folder(tmp_path):
    assert report.read_events(tmp_path / "none") == {}


# Judging the search


def _run(columns, attention, genotype):
    steps = np.array([1])
    events = {
        "architecture/columns": (steps, np.array([columns], np.float32)),
        "architecture/attention": (steps, np.array([attention], np.float32)),
    }
    stages = {"search": report.Stage({}, events)}
    return report.Run("run", {}, genotype, stages, {}, {})


def test_trust_by_hand():
    tiny = SearchSpace(channels=(8,), branches=(1,), columns=(2,))
    genotype = Genotype(tiny, [["fusion", "parallel"]], [[["skip_connect", "SE", "CBAM"]]])
    one_hot = np.eye(9)
    # Edge 1: none 0.6, skip 0.4; edges 2 and 3 are certain.
    edges = [0.6 * one_hot[0] + 0.4 * one_hot[1], one_hot[6], one_hot[8]]
    columns, attention, skips = report.trust(_run([[0.1, 0.9], [0.7, 0.3]], [edges], genotype))
    entropy = -sum(p * np.log2(p) for p in (0.1, 0.9, 0.7, 0.3)) / 2
    assert "derived choices of the 2 columns hold 80%" in columns
    assert f"Entropy is {entropy:.0%} of" in columns and "leans" in columns
    assert "derived choices of the 3 attention edges hold 80%" in attention
    assert "undecided search: 11%" in attention and "has settled" in attention
    assert skips.startswith("Skips make up 33% of the found attention edges")
    assert "likeliest choice of 33% of the edges and holds 20% of all" in skips


def test_trust_of_an_undecided_search():
    sentences = report.trust(_run(np.full((3, 2), 0.5), np.full((3, 3, 9), 1 / 9), None))
    assert len(sentences) == 2 and all("hardly decided" in s for s in sentences)
    assert all("Entropy is 100%" in s for s in sentences)


def test_trust_without_a_search():
    run = report.Run("run", {}, random_genotype(SPACE, 0), {}, {}, {})
    assert report.trust(run) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4213, "0.421 s"),
        (59.0, "59 s"),
        (125.4, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3700, "1 h 02 min"),
    ],
)
def test_duration(seconds, text):
    assert report.duration(seconds) == text


# Drawings


SPACES = [
    SPACE,
    SearchSpace(),
    SearchSpace(channels=(12, 24), branches=(1, 2), columns=(0, 2), attention_groups=3, patch=2),
    SearchSpace(channels=(4,), branches=(1,), columns=(1,), residual=True),
]


@pytest.mark.parametrize("space", SPACES)
def test_genotype_is_drawn_whole(space):
    genotype = random_genotype(space, 3)
    root = ElementTree.fromstring(svg.draw_genotype(genotype))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for cell, columns in enumerate(genotype.columns):
        for index, choice in enumerate(columns):
            title = f"cell {cell + 1}, column {index + 1}: {choice}"
            assert titles.count(title) == space.branches[cell]  # one mark a branch
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
def test_genotype_stays_on_its_sheet(space):
    root = ElementTree.fromstring(svg.draw_genotype(random_genotype(space, 0)))
    left, top, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for x, y in (("x", "y"), ("x1", "y1"), ("x2", "y2"), ("cx", "cy")):
            if element.get(x) is not None:
                right = float(element.get(x)) + float(element.get("width") or 0)
                bottom = float(element.get(y)) + float(element.get("height") or 0)
                assert left <= float(element.get(x)) <= right <= left + width
                assert top <= float(element.get(y)) <= bottom <= top + height


def test_edges_are_named_in_the_genotypes_order():
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


def test_line_chart_is_logarithmic_where_asked_and_possible():
    steps = np.array([0, 1, 2])

    def heights(values, logarithmic):
        curve = {"a": (steps, np.array(values))}
        return np.diff(_polyline(svg.line_chart(curve, "A", logarithmic))[:, 1])

    assert np.ptp(heights([1.0, 10.0, 100.0], True)) < 0.5
    assert np.ptp(heights([1.0, 10.0, 100.0], False)) > 20
    assert np.ptp(heights([1.0, 2.0, 3.0], True)) < 0.5  # too narrow a span: linear
    assert np.ptp(heights([0.0, 50.0, 100.0], True)) < 0.5  # zero has no logarithm: linear


@pytest.mark.parametrize("values", [[5.0], [0.0], [2.0, 2.0, 2.0], [0.0, 1e-12], [-3.0, 1e9]])
def test_line_chart_of_awkward_values(values):
    drawing = svg.line_chart({"a": (np.arange(len(values)), np.array(values))}, "A")
    assert np.isfinite(_polyline(drawing)).all()
    assert "nan" not in drawing and "inf" not in drawing


def test_long_curves_become_means_in_a_band():
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
