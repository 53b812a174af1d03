"""MANAS in JAX: image de-raining networks that design themselves."""

import os

# TensorFlow serves the input pipeline and the event files. Without oneDNN its results do not
# depend on the processor's kind, and it starts without notices that concern nobody.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"
