"""Folds the BatchNorm of a trained network into its convolutions: the same function, less work.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manas_jax.space import BATCH_NORM_EPSILON


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Scales each convolution's kernel by the BatchNorm after it, of which a bias remains.

    In every module that has both, a BatchNorm 'norm<i>' follows a convolution 'conv<i>'.

    Args:
      variables: 'params' and 'batch_stats' of a derived network, as arrays that NumPy takes.

    Returns:
      The 'params' for `jax_engine.folded_network`, on the host. Without 'batch_stats' nothing
      changes.
    """
    return {"params": _fold(variables["params"], variables.get("batch_stats", {}))}


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    folded = dict(params)
    for name, below in stats.items():
        own = params.get(name, {})  # a BatchNorm without scale and bias has no parameters
        if "var" not in below:
            folded[name] = _fold(own, below)
            continue
        scale = np.asarray(own.get("scale", 1), np.float64)
        scale = scale / np.sqrt(np.asarray(below["var"]) + BATCH_NORM_EPSILON)
        bias = own.get("bias", 0) - np.asarray(below["mean"]) * scale
        conv = name.replace("norm", "conv")
        kernels = dict(params[conv])
        last = "pointwise" if "pointwise" in kernels else "kernel"
        kernels[last] = (np.asarray(kernels[last]) * scale).astype(np.float32)
        folded |= {name: {"bias": bias.astype(np.float32)}, conv: kernels}
    return folded
