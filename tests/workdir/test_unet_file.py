"""Files of U-Nets."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from manas_jax.errors import UserError
from manas_jax.models.unet import UNet, param_shapes
from manas_jax.workdir.unet_file import load_unet, save_unet
from manas_jax.workdir.weights import flatten

NETWORK = UNet(2, (8, 16))


@pytest.fixture
def params():
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: draw.standard_normal(x.shape).astype(np.float32), param_shapes(NETWORK)
    )


def test_what_is_written_is_read(tmp_path, params):
    save_unet(tmp_path / "new" / "a.safetensors", NETWORK, params)
    network, read = load_unet(tmp_path / "new" / "a.safetensors")
    assert network == NETWORK
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": "other"}, "not a U-Net of this version"),
        ({"version": "0"}, "not a U-Net of this version"),
        ({"widths": "[8, 24]"}, "not those of the network"),
        ({"widths": "[]"}, "out of range"),
        ({"widths": "[8.5]"}, "out of range"),
        ({"widths": "8"}, "damaged or no U-Net"),
        ({"classes": "["}, "damaged or no U-Net"),
        ({"classes": "3"}, "not those of the network"),
        ("nan", "not finite"),
        ("cut", "truncated"),
    ],
)
def test_other_files_are_one_line(tmp_path, params, metadata, words):
    file = tmp_path / "a.safetensors"
    if metadata == "nan":
        params["Conv_0"]["bias"][0] = np.nan
    save_unet(file, NETWORK, params)
    if metadata == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif metadata != "nan":
        usual = {"format": "manas_jax.unet", "version": "1", "classes": "2", "widths": "[8, 16]"}
        file.write_bytes(safetensors.numpy.save(flatten(params), usual | metadata))
    with pytest.raises(UserError, match=words) as error:
        load_unet(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
