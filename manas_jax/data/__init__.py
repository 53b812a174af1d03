"""Multi-to-one input: pictures, scenes, synthetic rain and the tf.data pipeline."""
