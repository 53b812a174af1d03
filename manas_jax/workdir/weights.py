"""Weights files: one `.safetensors` file with the variables and the description of a network.

Tensors are float32 under their path in the variables, such as
`params/cell0_column0/parallel/branch0/layer0/conv/kernel`; those of a supernet may include its
logits, under `architecture/`. The metadata holds `format`, `version`, `provenance` (JSON of free
text by name) and either `genotype` (of a derived network) or `space` (of a supernet), in the JSON
of `manas_jax.space`. Unlike a pickle, such a file is read without executing its content.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from manas_jax import cost
from manas_jax.buckets import reading_copy
from manas_jax.errors import UserError, reading
from manas_jax.files import first_few, replacing
from manas_jax.space import Genotype, SearchSpace

if TYPE_CHECKING:
    import jax

WEIGHTS_FORMAT, WEIGHTS_VERSION = "manas_jax.weights", "1"
WEIGHTS_FILE = "weights.safetensors"  # of a workdir: what `manas_jax.derain` and others open

Variables = Mapping[str, Any]
"""'params' and 'batch_stats' of `manas_jax.models.network.Network`; of a supernet perhaps
'architecture' as well, its logits."""


def save_weights(
    path: str | os.PathLike,
    variables: Variables,
    network: Genotype | SearchSpace,
    provenance: Mapping[str, str],
) -> None:
    """Writes a weights file atomically.

    Args:
      path: the file to write or replace.
      variables: the network's arrays, stored as float32.
      network: the genotype of a derived network, or the space of a supernet.
      provenance: origin of the weights, free text by name.

    Raises:
      ValueError: the variables are not those of this network.
    """
    tensors = {name: np.array(x, np.float32, order="C") for name, x in flatten(variables).items()}
    if problem := mismatch(tensors, network):
        raise ValueError(problem)
    metadata = {
        "format": WEIGHTS_FORMAT,
        "version": WEIGHTS_VERSION,
        "provenance": json.dumps(dict(provenance)),
    }
    if isinstance(network, Genotype):
        metadata["genotype"] = network.to_json()
    else:
        metadata["space"] = json.dumps(network.to_dict())
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def load_weights(
    path: str | os.PathLike, *, compare: bool = True
) -> tuple[dict[str, Any], Genotype | SearchSpace, dict[str, str]]:
    """Reads what `save_weights` wrote.

    Args:
      path: the file.
      compare: whether to compare the tensors with the network, which loads JAX; else only their
        number is.

    Returns:
      The variables as NumPy arrays, the genotype or the supernet's space, the provenance.

    Raises:
      UserError: the file cannot be read, is not a weights file or has another version, or its
        tensors are not those of the network that it describes.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise UserError(
            f'{path}: not a weights file (no "format": "{WEIGHTS_FORMAT}" in its metadata)'
        )
    if metadata.get("version") != WEIGHTS_VERSION:
        raise UserError(
            f"{path}: weights file of version {metadata.get('version')}; "
            f"this program reads version {WEIGHTS_VERSION}"
        )
    with reading(path, "weights file"):
        network: Genotype | SearchSpace
        if "genotype" in metadata:
            network = Genotype.from_json(metadata["genotype"], str(path))
        else:
            network = SearchSpace.from_dict(json.loads(metadata["space"]))
        provenance = dict(json.loads(metadata["provenance"]))
    if problem := (mismatch if compare else _too_few)(tensors, network):
        raise UserError(f"{path}: {problem}")
    return unflatten(tensors), network, provenance


def load_derived(
    path: str | os.PathLike, *, compare: bool = True
) -> tuple[dict[str, Any], Genotype, dict[str, str]]:
    """Like `load_weights`, but accepts derived networks only.

    Raises:
      UserError: as `load_weights`, or the file holds a supernet.
    """
    variables, network, provenance = load_weights(path, compare=compare)
    if not isinstance(network, Genotype):
        raise UserError(f"{path}: weights of a supernet; derive and train a network first")
    return variables, network, provenance


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of any `.safetensors` file.

    Raises:
      UserError: missing, unreadable, truncated or of another format.
    """
    with (
        reading(path, "safetensors file"),
        reading_copy(path) as copy,
        safetensors.safe_open(copy, framework="np") as file,
    ):
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


@functools.cache  # tracing a network takes a second, and both ends of an import ask
def network_shapes(network: Genotype | SearchSpace) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Flat names and shapes of 'params' and 'batch_stats' of a derived network or a supernet."""
    from manas_jax.models.network import Network
    from manas_jax.models.variables import variable_shapes

    if isinstance(network, Genotype):
        return flatten(variable_shapes(Network(network.space, network)))
    return flatten(variable_shapes(Network(network)))


def flatten(variables: Variables) -> dict[str, Any]:
    """Nested to flat, keys joined by '/'."""
    # Not flax.traverse_util, for which a short command would wait a second.
    flat = {}
    for name, value in variables.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{below}": leaf for below, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, leaf in tensors.items():
        *parents, name = path.split("/")
        below = nested
        for parent in parents:
            below = below.setdefault(parent, {})
        below[name] = leaf
    return nested


def mismatch(tensors: Mapping[str, np.ndarray], network: Genotype | SearchSpace) -> str | None:
    """What is wrong with the flat tensors of this network, if anything."""
    from manas_jax.models.network import init_architecture

    if problem := _too_few(tensors, network):
        return problem
    wanted = {name: leaf.shape for name, leaf in network_shapes(network).items()}
    given = {name: x.shape for name, x in tensors.items()}
    if isinstance(network, SearchSpace) and any(n.startswith("architecture/") for n in given):
        logits = init_architecture(network, seed=0)
        wanted |= {f"architecture/{name}": x.shape for name, x in logits.items()}
    if missing := wanted.keys() - given.keys():
        return f"missing tensors: {first_few(sorted(missing))}"
    if extra := given.keys() - wanted.keys():
        return f"tensors that the network does not have: {first_few(sorted(extra))}"
    for name, shape in wanted.items():
        if given[name] != shape:
            return f"{name}: shape {given[name]}, but the network has {shape}"
    return None


def _too_few(tensors: Mapping[str, np.ndarray], network: Genotype | SearchSpace) -> str | None:
    """What is wrong if the network is too large even to list its tensors."""
    whole = cost.derived if isinstance(network, Genotype) else cost.supernet
    described, held = whole(network, 1, 1).parameters, sum(x.size for x in tensors.values())
    if described > 2 * held:
        return f"describes a network of {described:,} parameters, but holds {held:,} numbers"
    return None
