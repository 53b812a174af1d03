"""The page of a workdir that was written as a run writes it."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_reader import write_events

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.report import page as report
from manas_jax.report import pictures
from manas_jax.report.__main__ import main
from manas_jax.space import ALL_COLUMNS, Genotype, SearchSpace, random_genotype

SPACE = SearchSpace(
    (8, 16), (1, 2), (2, 1), stem_blocks=1, column_choices=ALL_COLUMNS, widths=(0.5, 1)
)


def _softmax(logits):
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return shares.astype(np.float32)


def _search_points():
    rng = np.random.default_rng(0)
    columns, attention, widths = (rng.normal(size=s) for s in ((3, 3), (3, 3, 9), (4, 2)))
    for step in range(0, 500, 2):
        yield (
            step,
            {
                "loss/restoration": 2.0 / (step + 1),
                "loss/mse": float("nan") if step == 4 else 1.0,
                "loss/psnr": 20 + step / 100,
                "learning_rate": 1e-3,
                "architecture/entropy_columns": 0.3,
                "architecture/entropy_attention": 0.2,
                "architecture/columns": _softmax(columns * step / 100),
                "architecture/attention": _softmax(attention * step / 100),
                "architecture/widths": _softmax(widths * step / 100),
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
        "note": "</pre><script>alert(1)</script> & {{ 7 * 7 }}",
        "data": {"source": "folder", "root": "x/rain", "versions": 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    random_genotype(SPACE, 1).save(folder / "genotype.json")
    write_events(folder / "search", _search_points())
    write_events(folder / "train", [(s, {"loss/restoration": 1.0 - s / 100}) for s in range(10)])
    summary = {
        "steps": 1234,
        "seconds": 3700.0,
        "flops_per_step": 2.5e12,
        "validation": {"psnr": 30},
        "derived": {"psnr": 12.5, "ssim": 0.25},
        "spending": {"found": [0.75, 0.25], "random": [0.5, 0.496]},
        "warnings": ["gap: a sentence that would make a table wide"],
    }
    (folder / "search/summary.json").write_text(json.dumps(summary))
    summary = {"steps": 99, "seconds": 61.0, "devices": 2, "validation": {"psnr": 31.5}}
    (folder / "train/summary.json").write_text(json.dumps(summary))
    images = [
        {"name": "a.png", "input": _scores(20.0), "output": _scores(30.0), "seconds": 0.5},
        {"name": "b/1.png", "input": _scores(24.0), "output": _scores(23.0), "seconds": 0.5},
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
        self.elements, self.open, self.text, self.scripts = [], [], [], []
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
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def plain(self):
        """The text with single spaces."""
        return " ".join(" ".join(self.text).split())


def _cells(html, caption):
    """Rows of text of the table with a caption."""
    table = html[html.index(f"<caption>{caption}") :].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


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
    assert not page.all("link") and page.all("script") == [{}]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    kinds = {image["src"].split(",")[0] for image in page.all("img")}
    assert kinds == {"data:image/png;base64", "data:image/svg+xml;base64"}
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
    (script,) = page.scripts  # the page's own
    assert "alert" not in script and html.count("<script") == 1
    assert "run <1> & more" in page.plain()
    # In the remark and in the configuration.
    assert page.plain().count("</pre><script>alert(1)</script> & {{ 7 * 7 }}") == 2


def test_names_inject_nothing(tmp_path):
    name = '" onerror="alert(1)'
    images = [{"name": f"{name}.png", "input": _scores(20.0), "output": _scores(30.0)}]
    _save_picture(tmp_path / f"evaluate/pictures/{name}_rainy.png")
    _save_picture(tmp_path / f"evaluate/pictures/{name}_clean.png")
    (tmp_path / "evaluate/scores.json").write_text(json.dumps({"images": images}))
    write_events(tmp_path / "train", [(1, {"<script>/$x$ {{ 7 * 7 }}": 1.0})])
    page = _Page(report.write(tmp_path).read_text())
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert len(page.all("script")) == 1
    assert "<script>: $x$ {{ 7 * 7 }}" in page.plain()
    assert page.all("img")[0]["alt"] == f"Rainy picture {name}, 20.00 dB · 0.4000"


def test_page_states_results(page, workdir):
    text = page.plain()
    assert "search (1,234 steps), training (99 steps), evaluation (2 pictures)" in text
    assert "Data: folder “rain”, 3 rainy versions of each scene." in text
    assert "raises the PSNR on luma from 22.00 dB for the rainy pictures to 26.50 dB" in text
    assert "+4.50 dB), mean over 2 test pictures; 1 of them improved" in text
    assert "supernet reached 30.00 dB and the derived network, trained on its own, 31.50 dB" in text
    assert "not finite: 1" in text  # the NaN of loss/mse
    parameters = cost.derived(Genotype.load(workdir / "genotype.json"), 256, 256).parameters
    assert f"{parameters:,}" in text


def test_tables(html):
    assert _cells(html, "Time and size of the stages") == [
        ["", "Search", "Training"],
        ["Steps", "1,234", "99"],
        ["Wall time", "1 h 02 min", "1 min 01 s"],
        ["FLOP per step", "2.5 T", "–"],
        ["Devices", "–", "2"],
    ]
    assert _cells(html, "Shares of the scales in the MACs of the searched parts") == [
        ["", "This network", "Random networks of the budget, mean"],
        ["Finest scale", "75%", "50%"],
        ["1/2 of the finest scale", "25%", "50%"],
    ]
    assert _cells(html, "Validation scenes") == [
        ["", "PSNR", "SSIM"],
        ["Relaxed supernet", "30.00", "–"],
        ["Derived network with the supernet’s weights", "12.50", "0.2500"],
        ["Derived network, trained on its own", "31.50", "–"],
    ]
    assert _cells(html, "Mean of the test pictures (2)")[1:] == [
        ["Rainy", "22.00", "0.4400", "21.00", "0.5000"],
        ["Restored", "26.50", "0.5300", "25.50", "0.5000"],
    ]
    first = ["a.png", "20.00", "30.00", "0.4000", "0.6000", "19.00", "29.00", "0.5000", "0.5000"]
    assert _cells(html, "Scores of each picture")[1] == first


@pytest.mark.parametrize("split", ["test", "validation"])
def test_scores_say_which_pictures_they_are_of(tmp_path, split):
    scores = {"input": {"y_psnr": 20.0}, "output": {"y_psnr": 30.0}}
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "scores.json").write_text(
        json.dumps({"split": split, "mean": scores, "images": [{"name": "a.png", **scores}]})
    )
    html = report.write(tmp_path).read_text()
    assert f"Mean of the {split} pictures (1)" in html and f"mean over 1 {split} picture;" in html


def test_pictures_are_compared_with_their_scores(page):
    shown = [i for i in page.all("img") if i["src"].startswith("data:image/png")]
    assert [image["alt"] for image in shown] == [
        "Rainy picture a, 20.00 dB · 0.4000",
        "Restored picture a, 30.00 dB · 0.6000",
        "Clean picture a",
        "Rainy picture b_1, 24.00 dB · 0.4800",
        "Restored picture b_1, 23.00 dB · 0.4600",
        "Clean picture b_1",
    ]
    assert len({image["src"] for image in shown}) == 3  # a and b_1 share their pixels
    sliders = [i for i in page.all("input") if i["type"] == "range"]
    assert len(sliders) == 2 and all("hidden" in s for s in sliders)  # shown by the script
    pairs = [i["value"] for i in page.all("input") if i.get("name") == "pair-1"]
    assert pairs == ["rainy restored", "rainy clean", "restored clean"]


def test_page_draws_all_choices_and_curves(page):
    texts = [i["alt"] for i in page.all("img") if i["src"].startswith("data:image/svg")]
    areas = [text for text in texts if ", at the end: " in text]
    assert len(areas) == 1 + 3 + 1 + 3 * 3 + 1 + 4
    assert areas[0].startswith("Mean of all columns, at the end: parallel 0.")
    assert areas[1].startswith("Cell 1 column 1, at the end: parallel 0.")
    assert areas[4].startswith("Mean of all widths of residual blocks, at the end: width 0.5 0.")
    assert areas[-1].startswith("Cell 2, branch 2 op(U0), at the end: none 0.")
    losses = "Losses, steps 0 to 498: restoration: the weighted sum from 2 to 0.004008; MSE from"
    assert any(text.startswith(losses) for text in texts)
    assert "PSNR, dB, steps 0 to 498: training batches from 20 to 24.98" in texts
    assert any(text.startswith("Entropy of the architecture") for text in texts)


def test_other_ways_to_search_have_no_relaxed_supernet(tmp_path):
    (tmp_path / "search").mkdir()
    summary = {"steps": 9, "validation": {"psnr": 30.0, "ssim": 0.5}, "generations": [20.5, 21.0]}
    (tmp_path / "search" / "summary.json").write_text(json.dumps(summary))
    for method, scored in (
        ("evolution", "Chosen network with the supernet’s weights"),
        ("halving", "Best training of the search"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"search": {"method": method}}))
        html = report.write(tmp_path).read_text()
        assert _cells(html, "Validation scenes")[1] == [scored, "30.00", "0.5000"]
        assert (
            "Best genotype of the evolution, PSNR in dB, generations 1 to 2: from 20.5 to 21"
            in html
        )


def test_unfinished_run_states_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing to report"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"stage": "search"}')
    text = _Page(report.write(tmp_path).read_text()).plain()
    assert "No stage has begun" in text and "No scores" in text and "no genotype.json" in text
    write_events(tmp_path / "search", list(_search_points())[:1])
    page = _Page(report.write(tmp_path).read_text())
    assert "The most probable choices of the 9 attention edges hold 11%" in page.plain()
    assert "No network yet" in page.plain()


def test_a_search_that_runs_has_the_names_of_its_space(tmp_path):
    space = SearchSpace(
        (8, 16),
        (1, 2),
        (2, 1),
        stem_blocks=1,
        attention_groups=1,
        candidates=("none", "SE"),
        column_choices=("fusion", "parallel"),
        widths=(0.5, 1),
    )
    config = {"space": space.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = {"columns": (3, 2), "attention": (3, 1, 2), "widths": (4, 2)}
    even = {f"architecture/{kind}": np.full(shape, 0.5) for kind, shape in rows.items()}
    write_events(tmp_path / "search", [(0, even)])
    page = _Page(report.write(tmp_path).read_text())
    texts = [image["alt"] for image in page.all("img")]
    for text in (
        "Cell 2 column 1, at the end: fusion 0.50, parallel 0.50",
        "Cell 2, column 1 branch 2, at the end: width 0.5 0.50, width 1 0.50",
        "Cell 2, branch 2 op(F0), at the end: none 0.50, SE 0.50",
    ):
        assert text in texts
    config["space"]["depth"] = 3  # of another version: the names are unknown
    (tmp_path / "config.json").write_text(json.dumps(config))
    page = _Page(report.write(tmp_path).read_text())
    texts = [image["alt"] for image in page.all("img")]
    assert "column 3, at the end: choice 1 0.50, choice 2 0.50" in texts
    assert "Module 3 op(F0), at the end: candidate 1 0.50, candidate 2 0.50" in texts


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
    _save_picture(tmp_path / "evaluate/pictures/a_rainy.png", size=(pictures.MAX_SIDE + 1, 8))
    assert "shown reduced" in _Page(report.write(tmp_path).read_text()).plain()


def test_command(workdir, tmp_path, capsys):
    assert main([f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert main([f"--workdir={tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    (tmp_path / "full").mkdir()
    shutil.copytree(workdir / "train", tmp_path / "full" / "train")
    (tmp_path / "full" / "report.html").mkdir()
    capsys.readouterr()
    assert main([f"--workdir={tmp_path}/full"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/full: ")
