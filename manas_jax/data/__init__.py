"""Multi-to-one input: pictures, scenes, synthetic rain and the tf.data pipeline."""

import tensorflow as tf

# The input pipeline runs on the host. Left alone, TensorFlow would claim the accelerator's memory
# that JAX needs.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")
