"""TensorFlow, for the input pipeline: on the host alone."""

import tensorflow as tf

# Left alone, TensorFlow would claim the accelerator's memory that JAX needs.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

__all__ = ["tf"]
