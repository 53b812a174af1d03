"""What an output does not keep, as the local page shows it; needs no Gradio."""

import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from manas_jax import derain
from manas_jax.inference import image_files, page


@pytest.fixture
def gradio(monkeypatch):
    """Takes all calls, in place of the package."""
    module = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", module)
    return module


def test_losses_are_shown(tmp_path, monkeypatch, gradio):
    """With the functions of the command and of the page, and an identity as the network."""
    monkeypatch.setattr(derain, "_network", lambda _: (lambda picture: picture, {}))
    monkeypatch.setattr(page, "serve", lambda derain_file, *_: made.append(derain_file))
    made = []
    assert derain.main(["--serve"]) == 0
    page.make_page(made[0], "general")
    remove_rain = gradio.Button().click.call_args[0][0]

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    *_, result = remove_rain(str(tmp_path / "a.bmp"), "general", mock.Mock())
    assert image_files.read(result).frames[0].shape == pixels.shape
    gradio.Warning.assert_not_called()
    Image.fromarray(pixels).save(tmp_path / "b.jpg")
    with (tmp_path / "b.jpg").open("ab") as file:
        file.write(b"\0\0\0\x18ftypmp42")
    remove_rain(str(tmp_path / "b.jpg"), "general", mock.Mock())
    gradio.Warning.assert_called_once_with("b.jpg: written without its film")
