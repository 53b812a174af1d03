"""Sessions of ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime


def open_session(model: bytes | str | os.PathLike) -> onnxruntime.InferenceSession:
    """A session on the CPU, silent, for inputs of many shapes.

    Args:
      model: a serialised ONNX model, or its file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # As many threads as this process may use, which taskset and containers may restrict.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Else it plans, and holds, the memory of each shape of inputs apart: twice as much or more.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors are raised as well
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
