"""Multi-to-one input: images, scenes, synthetic rain and the tf.data pipeline."""
