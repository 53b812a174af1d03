"""The page of a workdir that was written as a run writes it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_reader import write_events

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.report import html as blocks
from manas_jax.report import page as report
from manas_jax.report.__main__ import main
from manas_jax.space import Genotype, SearchSpace, random_genotype

SPACE = SearchSpace(channels=(8, 16), branches=(1, 2), columns=(2, 1), stem_blocks=1)


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
    write_events(folder / "search", _search_points())
    write_events(folder / "train", [(s, {"loss/total": 1.0 - s / 100}) for s in range(10)])
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


def test_page_states_results(page, workdir):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert "search (1,234 steps), training (99 steps), evaluation (2 pictures)" in text
    assert "Data: folder “rain”, 3 rainy versions of each scene." in text
    assert "raises the PSNR on luma from 22.00 dB for the rainy pictures to 26.50 dB" in text
    assert "+4.50 dB), mean over 2 pictures; 1 of them improved" in text
    assert "supernet reached 30.00 dB and the derived network, trained on its own, 31.50 dB" in text
    assert "1 h 02 min" in text and "1 min 01 s" in text and "2.5 T" in text
    assert "1 value not finite" in text  # the NaN of loss/external
    parameters = cost.derived(Genotype.load(workdir / "genotype.json"), 256, 256).parameters
    assert f"{parameters:,}" in text


def test_page_shows_pictures_with_their_scores(page):
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


def test_page_draws_all_choices_and_curves(page):
    labels = [svg["aria-label"] for svg in page.all("svg")]
    areas = [label for label in labels if ", at the end: " in label]
    assert len(areas) == 3 + 3 * 3
    assert areas[0].startswith("Cell 1 column 1, at the end: parallel 0.")
    assert areas[-1].startswith("Cell 2, branch 2 op(U0), at the end: none 0.")
    assert "Loss: total, steps 0 to 498: Loss: total from 2 to 0.004008" in labels
    assert any(label.startswith("Entropy of the architecture") for label in labels)


def test_unfinished_run_states_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing to report"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"stage": "search"}')
    text = " ".join(_Page(report.write(tmp_path).read_text()).text)
    assert "No stage has begun" in text and "No scores" in text and "no genotype.json" in text
    write_events(tmp_path / "search", list(_search_points())[:1])
    page = _Page(report.write(tmp_path).read_text())
    assert "The most probable choices of the 9 attention edges hold 11%" in " ".join(page.text)
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
    _save_picture(tmp_path / "evaluate/pictures/a_rainy.png", size=(blocks.LONGEST_SIDE + 1, 8))
    assert "shown reduced" in " ".join(_Page(report.write(tmp_path).read_text()).text)


def test_command(workdir, tmp_path, capsys):
    assert main([f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert main([f"--workdir={tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
