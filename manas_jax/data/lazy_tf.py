"""TensorFlow and TensorFlow Datasets, on the host alone and imported at first use."""

import importlib
import threading

from etils import epy


def _leave_accelerators(_: str) -> None:
    """Left alone, TensorFlow would claim the accelerator's memory that JAX needs."""
    config = importlib.import_module("tensorflow").config
    for kind in ("GPU", "TPU"):
        config.set_visible_devices([], kind)


with epy.lazy_imports(success_callback=_leave_accelerators):
    import tensorflow as tf
    import tensorflow_datasets as tfds


def import_in_background() -> None:
    """Starts to import TensorFlow in a thread; whoever uses it first waits for what is left.

    It takes seconds, which a command has while its programs are compiled or loaded.
    """
    threading.Thread(target=importlib.import_module, args=("tensorflow",)).start()


__all__ = ["import_in_background", "tf", "tfds"]
