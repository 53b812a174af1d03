"""MANAS in JAX: image de-raining networks that design themselves."""

import os

# TensorFlow serves the input pipeline and the event files; its start-up notices concern nobody.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
