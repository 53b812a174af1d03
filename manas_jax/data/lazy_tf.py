"""TensorFlow and TensorFlow Datasets, on the CPU only and imported at first use."""

import importlib
import threading

from etils import epy


def _hide_accelerators(_: str) -> None:
    """Keeps TensorFlow from allocating the accelerator memory that JAX needs."""
    config = importlib.import_module("tensorflow").config
    for kind in ("GPU", "TPU"):
        config.set_visible_devices([], kind)


with epy.lazy_imports(success_callback=_hide_accelerators):
    import tensorflow as tf
    import tensorflow_datasets as tfds


def import_in_background() -> None:
    """Imports TensorFlow in a thread; its first use waits for the rest of the import.

    The import takes seconds, during which a command can compile or load its programs.
    """
    threading.Thread(target=importlib.import_module, args=("tensorflow",)).start()


__all__ = ["import_in_background", "tf", "tfds"]
