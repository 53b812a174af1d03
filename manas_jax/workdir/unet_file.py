"""Files of `manas_jax.models.unet.UNet`: one `.safetensors` file.

Tensors are float32 under their path in the parameters. The metadata holds `format`, `version`,
`classes` (their number) and `widths`, both in JSON.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import safetensors.numpy

from manas_jax.errors import UserError, reading
from manas_jax.files import output_file
from manas_jax.models.unet import UNet, param_shapes
from manas_jax.workdir.weights import flatten, read_safetensors, unflatten

PyTree = Any

FORMAT, VERSION = "manas_jax.unet", "1"
_MAX_LEVELS, _MAX_CHANNELS = 8, 4096


def save_unet(path: str | os.PathLike, network: UNet, params: PyTree) -> None:
    """Writes the file atomically.

    Raises:
      UserError: it cannot be written.
    """
    tensors = {name: np.array(x, np.float32, order="C") for name, x in flatten(params).items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "classes": json.dumps(network.classes),
        "widths": json.dumps(list(network.widths)),
    }
    with output_file(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def load_unet(path: str | os.PathLike) -> tuple[UNet, PyTree]:
    """The network and its parameters, NumPy arrays.

    Raises:
      UserError: the file cannot be read, is of another network or version, or a value is not
        finite.
    """
    tensors, metadata = read_safetensors(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{path}: not a U-Net of this version; give a file that python -m manas_jax.downstream "
            "segmentation --train has left in the cache"
        )
    with reading(path, "U-Net"):
        classes, widths = json.loads(metadata["classes"]), json.loads(metadata["widths"])
        if not 0 < len(widths) <= _MAX_LEVELS or not all(
            type(n) is int and 0 < n <= _MAX_CHANNELS for n in (classes, *widths)
        ):
            raise ValueError("classes or widths out of range")
        network = UNet(classes, tuple(widths))
        shapes = flatten(param_shapes(network))
        if {k: x.shape for k, x in tensors.items()} != {k: x.shape for k, x in shapes.items()}:
            raise ValueError("its tensors are not those of the network that it describes")
        if not all(x.dtype == np.float32 and np.isfinite(x).all() for x in tensors.values()):
            raise ValueError("a value is not finite")
    return network, unflatten(tensors)
