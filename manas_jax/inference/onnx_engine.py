"""The network run by ONNX Runtime on the CPU: one model for all sizes."""

from __future__ import annotations

import numpy as np
import onnx

from manas_jax.inference import onnx_graph
from manas_jax.runtime.onnx_session import open_session


class OnnxEngine:
    """An `Engine` that compiles nothing."""

    devices, platform = 1, "cpu"

    def __init__(self, model: onnx.ModelProto):
        """Args:
        model: made by `onnx_graph.build`, in its default layout."""
        self._session = open_session(model.SerializeToString())

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) float32 in [0, 1], of any size, to the same, restored."""
        return self._session.run([onnx_graph.OUTPUT], {onnx_graph.INPUT: pictures})[0]
