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
    options.intra_op_num_threads = available_cores()
    # Else it plans, and holds, the memory of each shape of inputs apart: twice as much or more.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors are raised as well
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])


def available_cores() -> int:
    """The cores that this process may use, which taskset and containers may restrict."""
    if hasattr(os, "sched_getaffinity"):  # neither on macOS nor on Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
