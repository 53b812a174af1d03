"""The notebooks: valid and without outputs; run from top to bottom in the slow tests.

Settings are overridden by a cell after the one tagged 'parameters', as papermill does.
"""

import ast
import importlib
import io
import pathlib
import shutil
import sys
import zipfile

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

from manas_jax import metrics
from manas_jax.data import images, photographs
from notebooks import address

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [file.stem for file in FILES]


def _read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _parameters(notebook):
    (index,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    return index


def test_notebooks_are_found():
    assert NAMES == ["derain", "search"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_valid_and_without_outputs(name):
    notebook = _read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in _code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
    assert notebook.cells[_parameters(notebook)] is _code(notebook)[1]


@pytest.mark.parametrize("name", NAMES)
def test_imports_of_the_package_resolve(name):
    code = "\n".join(TransformerManager().transform_cell(c.source) for c in _code(_read(name)))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("manas_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_address_is_that_of_pyproject():
    """All notebooks have the address in pyproject.toml, and another one can be filled in."""
    texts = [file.read_text() for file in address.FILES]
    assert [set(address.found(text)) for text in texts] == [{address.repository()}] * len(texts)
    changed = [address.fill(text, "somebody/else") for text in texts]
    assert not any(address.repository() in text for text in changed)
    assert [set(address.found(text)) for text in changed] == [{"somebody/else"}] * len(texts)
    assert [address.fill(text, address.repository()) for text in changed] == texts


def test_derains_a_folder_and_names_what_it_cannot(monkeypatch, tmp_path, capsys):
    """The cells that find pictures and de-rain them, with a network that does nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (20, 16)).save(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "b.png").write_bytes(b"not a picture")

    class Identity:
        def __call__(self, pixels, self_ensemble):
            return pixels

        @classmethod
        def from_pretrained(cls, weights):
            return cls()

    monkeypatch.setattr("manas_jax.Derainer", Identity)
    _, parameters, find, derain, *_ = (cell.source for cell in _code(_read("derain")))
    scope = {"pathlib": pathlib, "sys": sys}
    for cell in (parameters, "PICTURES = 'mine'", find, derain):
        exec(TransformerManager().transform_cell(cell), scope)
    assert "1 of 2 de-rained" in (printed := capsys.readouterr().out) and "b.png" in printed
    assert {path.name for path in (tmp_path / "derained").iterdir()} == {
        "a.png",
        "a.png.compare.png",
    }


def test_makes_a_rainy_picture_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, parameters, find, *_ = (cell.source for cell in _code(_read("derain")))
    scope = {"pathlib": pathlib, "sys": sys}
    for cell in (parameters, find):
        exec(TransformerManager().transform_cell(cell), scope)
    (made,) = (tmp_path / "pictures").iterdir()
    clean = images.read(photographs.load(crop=64)[1][0].clean)
    assert 15 < metrics.score(images.read(made), clean).y_psnr < 35


class _Shell:
    """IPython that records commands; cloning creates the folder of the repository."""

    def __init__(self):
        self.ran = []

    def system(self, command):
        self.ran.append(command)
        pathlib.Path("manas_jax", "configs").mkdir(parents=True)
        pathlib.Path("manas_jax", "configs", "quickstart.py").touch()

    def run_line_magic(self, name, line):
        self.ran.append(f"%{name} {line}")


def _install(name, monkeypatch, folder, path, gpu=False):
    """Runs the cell that installs; returns the commands that it ran, and sys.path after it."""
    shell = _Shell()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.setattr(shutil, "which", lambda program: program if gpu else None)
    cell = TransformerManager().transform_cell(_code(_read(name))[0].source)
    exec(cell, {"get_ipython": lambda: shell})
    return shell.ran, sys.path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", [ROOT, ROOT / "notebooks"], ids=["root", "notebooks"])
def test_installs_nothing_in_a_checkout(name, folder, monkeypatch):
    ran, path = _install(name, monkeypatch, folder, [])
    assert ran == [] and path == [str(ROOT)]


@pytest.mark.parametrize("name", NAMES)
def test_clones_the_repository_once_elsewhere(name, monkeypatch, tmp_path):
    ran, path = _install(name, monkeypatch, tmp_path, ["/nowhere"])
    assert [command.split()[0] for command in ran] == ["git", "%pip"]
    assert address.repository() in ran[0] and "manas_jax/requirements.txt" in ran[1]
    assert path[0] == str(tmp_path / "manas_jax")
    again, path = _install(name, monkeypatch, tmp_path, ["/nowhere"])
    assert again == [] and path[0] == str(tmp_path / "manas_jax")


def test_installs_gpu_requirements_with_a_gpu(monkeypatch, tmp_path):
    ran, _ = _install("derain", monkeypatch, tmp_path, [], gpu=True)
    assert "requirements-gpu.txt" in ran[-1]
    assert (ROOT / "requirements-gpu.txt").exists()


@pytest.fixture
def run_notebook(monkeypatch, tmp_path):
    """A function of a name and a cell of settings that runs the notebook in `tmp_path`."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / ".cache"))

    def run(name, settings):
        from nbclient import NotebookClient

        notebook = _read(name)
        notebook.cells.insert(_parameters(notebook) + 1, nbformat.v4.new_code_cell(settings))
        client = NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
        )
        try:
            client.execute()
        finally:
            nbformat.write(notebook, tmp_path / f"{name}.ipynb")  # for debugging
        return notebook

    return run


def _shown(notebook, kind):
    """All outputs of a MIME type, in order."""
    outputs = (output for cell in _code(notebook) for output in cell.outputs)
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_derain_improves_its_sample_photograph(run_notebook, tmp_path):
    notebook = run_notebook("derain", "")
    (name,) = (path.name for path in (tmp_path / "pictures").iterdir())
    clean = images.read(photographs.load(crop=64)[1][0].clean)
    rainy, restored = (images.read(tmp_path / folder / name) for folder in ("pictures", "derained"))
    assert metrics.score(restored, clean).y_psnr > metrics.score(rainy, clean).y_psnr + 3
    (shown,) = _shown(notebook, "image/png")
    assert shown  # before and after
    with zipfile.ZipFile(tmp_path / "derained.zip") as archive:
        assert set(archive.namelist()) == {name, f"{name}.compare.png"}


COLAB = """
import types

google, files = types.ModuleType("google.colab"), types.SimpleNamespace()
files.upload = lambda: {"mine.png": %r}
files.download = lambda path: print("downloaded", pathlib.Path(path).name)
google.files, google.output = files, None  # JAX imports the latter
sys.modules["google.colab"] = google
WEIGHTS, OUT = %r, "clean"
"""


@pytest.mark.slow
def test_derain_in_colab_uploads_and_downloads(run_notebook, tmp_path, weights):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    notebook = run_notebook("derain", COLAB % (file.getvalue(), str(weights)))
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine.png"]
    restored = images.read(tmp_path / "clean" / "mine.png")
    assert restored.shape == pixels.shape and np.any(restored != pixels)
    assert len(_shown(notebook, "image/png")) == 1
    printed = "".join(o.get("text", "") for c in _code(notebook) for o in c.outputs)
    assert "1 of 1 de-rained" in printed and "downloaded clean.zip" in printed


@pytest.mark.slow
def test_search_derives_trains_and_shows_a_network(run_notebook, tmp_path):
    notebook = run_notebook(
        "search",
        """
SEARCH_STEPS, TRAIN_STEPS, WORKDIR = 6, 6, "run"
MORE = {
    "space.channels": (4, 8),
    "space.branches": (1, 2),
    "space.columns": (1, 1),
    "search.crop": 32,
    "search.validation_crop": 32,
    "train.crop": 32,
    "train.validation_crop": 32,
    "data.limit": 8,
    "data.validation_scenes": 2,
    "evaluate.pictures": 2,
}
""",
    )
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"genotype.json", "weights.safetensors", "report.html"} <= left
    (network,) = _shown(notebook, "image/svg+xml")
    assert "cell 1" in network.lower()
    charts = _shown(notebook, "image/png")
    assert len(charts) == 2 + 2  # of search and training, and pictures
    (page,) = [x for x in _shown(notebook, "text/html") if "srcdoc" in x]
    assert "The derived network" in page
    printed = "".join(o.get("text", "") for c in _code(notebook) for o in c.outputs)
    assert "progress: " in printed and "Entropy is" in printed
