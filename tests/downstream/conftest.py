"""Small ONNX models and folders of pictures for the measurements."""

import numpy as np
import pytest
from PIL import Image

from manas_jax.downstream import pictures


@pytest.fixture
def save_onnx(tmp_path):
    """A function that writes a model and returns its path.

    Its input is `images`; outputs are constants, or lists of nodes that make them of `images`.
    """
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def save(outputs, shape=(1, 3, 32, 32), name="model.onnx"):
        nodes, made = [], []
        for key, value in outputs.items():
            if isinstance(value, np.ndarray):
                tensor = numpy_helper.from_array(value, key)
                nodes.append(helper.make_node("Constant", [], [key], value=tensor))
                kind, sides = tensor.data_type, value.shape
            else:
                operator, options, sides = value
                nodes.append(helper.make_node(operator, ["images"], [key], **options))
                kind = onnx.TensorProto.FLOAT
            made.append(helper.make_tensor_value_info(key, kind, sides))
        taken = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
        graph = helper.make_graph(nodes, "model", [taken], made)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def no_networks(monkeypatch):
    """Networks change nothing, and nothing is compiled."""

    class Identity:
        def __init__(self, file):
            self.provenance = {"file": file.name}

        def __call__(self, picture):
            return picture

    monkeypatch.setattr(pictures.Derainer, "from_pretrained", Identity)


@pytest.fixture
def squares(tmp_path):
    """Folders clean/, rainy/ and other/ of pictures with a bright square, which rain hides."""
    draw = np.random.default_rng(0)
    for i in range(4):
        clean = np.zeros((32, 48, 3), np.uint8)
        top, left = draw.integers(0, 20, 2)
        clean[top : top + 10, left : left + 10] = 250
        rainy = clean.copy()
        if i % 2:
            rainy[top : top + 6] = 0
        for folder, pixels in (("clean", clean), ("rainy", rainy), ("other", clean)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path
