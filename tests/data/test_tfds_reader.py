"""Scenes of TFDS datasets that `prepare` did not write."""

import numpy as np
import pytest
from fake_data import data_config, value

from manas_jax.data import tfds_reader
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """TFDS datasets on disk: pairs, photographs, and one of unknown features."""
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    folder = str(tmp_path_factory.mktemp("tfds"))
    image = tfds.features.Image(shape=(12, 16, 3), encoding_format="png")

    def prepare(name, keys, counts):
        def examples(count, base):
            for i in range(count):
                yield {
                    key: np.full((12, 16, 3), base + i + 100 * j, np.uint8)
                    for j, key in enumerate(keys)
                }

        spec = {key: tf.TensorSpec((12, 16, 3), tf.uint8) for key in keys}
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(dict.fromkeys(keys, image)),
            split_datasets={
                part: tf.data.Dataset.from_generator(
                    lambda count=count, base=base: examples(count, base), output_signature=spec
                )
                for base, (part, count) in zip((10, 60), counts.items(), strict=True)
            },
            data_dir=folder,
            disable_shuffling=True,
        )

    prepare("tiny_pairs", ["clean", "rainy"], {"train": 5, "test": 2})
    prepare("tiny_photographs", ["image"], {"train": 5, "validation": 2})
    prepare("tiny_riddle", ["left", "right"], {"train": 2, "test": 1})
    return folder


def test_tfds_pairs(prepared):
    config = data_config(source="tfds", tfds_name="tiny_pairs", root=prepared)
    found = load_splits(config, crop=8)
    training = (*found.weights, *found.architecture, *found.validation)
    assert sorted(value(scene.clean) for scene in training) == [10, 11, 12, 13, 14]
    assert all(value(s.rainy[0]) == value(s.clean) + 100 for s in (*training, *found.test))
    assert len(found.test) == 2


def test_tfds_photographs_and_unsuitable_features(prepared):
    training, test = tfds_reader.load("tiny_photographs", prepared)
    assert (len(training), len(test)) == (5, 2)
    assert all(scene.rainy == () for scene in training)
    with pytest.raises(UserError, match=r"left.*right"):
        tfds_reader.load("tiny_riddle", prepared)
    with pytest.raises(UserError, match="no TFDS dataset 'no_such_set'"):
        tfds_reader.load("no_such_set", prepared)
