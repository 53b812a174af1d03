"""The local page, asked by Gradio's own client."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from manas_jax.errors import UserError
from manas_jax.inference import page
from manas_jax.inference.derainer import Derainer

gradio = pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")


def _derain_file(weights, source, target, progress):
    """Inverts a picture, in place of a network."""
    if weights == "rain100l":
        raise UserError(f"{source}: truncated")
    progress(1, 1, 0)
    with Image.open(source) as image:
        Image.fromarray(255 - np.asarray(image)).save(target)
    return [f"{source}: written without its film"]


@pytest.fixture(scope="module")
def caller():
    blocks = page.make_page(_derain_file, "own.safetensors")
    address = blocks.launch(prevent_thread_lock=True, quiet=True)[1]
    yield client.Client(address, verbose=False)
    blocks.close()


def test_the_result_comes_back_in_its_format(tmp_path, caller):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rainy.png")
    file = client.handle_file(tmp_path / "rainy.png")
    slider, film, result = caller.predict(file, "own.safetensors", api_name="/derain")
    assert pathlib.Path(result).name == "rainy_own.png"
    np.testing.assert_array_equal(np.asarray(Image.open(result)), 255 - pixels)
    before, after = (np.asarray(Image.open(shown)) for shown in slider["value"])
    assert before.shape == after.shape == pixels.shape
    assert film["visible"] is False


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_shown_in_eight(tmp_path, suffix):
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(path := tmp_path / f"a{suffix}")
    shown = np.asarray(page._preview(path))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[..., 0], grey // 257)


def test_a_file_that_is_refused_is_one_sentence(tmp_path, caller):
    Image.new("RGB", (8, 8)).save(tmp_path / "rainy.png")
    file = client.handle_file(tmp_path / "rainy.png")
    with pytest.raises(client.exceptions.AppError, match=r"^rainy\.png: truncated$"):
        caller.predict(file, "rain100l", api_name="/derain")


def test_no_file_is_one_sentence(caller):
    with pytest.raises(client.exceptions.AppError, match="Choose a picture or a video first"):
        caller.predict(None, "general", api_name="/derain")


def test_the_command_serves_its_network(tmp_path, weights):
    command = [sys.executable, "-m", "manas_jax.derain", "--serve", "--weights", str(weights)]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        address = next(re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)[0]
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "rainy.png")
        file = client.handle_file(tmp_path / "rainy.png")
        asked = client.Client(address, verbose=False)
        result = asked.predict(file, str(weights), api_name="/derain")[2]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
    expected = Derainer.from_pretrained(weights)(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(result)), expected)
