"""TPU slices to compile for on a machine that has no TPU."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax

from manas_jax.errors import UserError, check_extra, one_line


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU, per JAX device, which is a chip in all of them.

    Attributes:
      accelerator: prefix of the accelerator types of Cloud TPU, such as 'v5litepod' of
        'v5litepod-16'.
      cores: that an accelerator type counts per chip.
      peak_flops: operations/s, in bfloat16.
      flops_per_cycle: of its matrix units together; 2 per multiplication and addition.
      memory: bytes that the compiler of libtpu 0.0.42 gives to a program.
      topologies: shapes of its slices.
      source: address of the peak.
    """

    accelerator: str
    cores: int
    peak_flops: float
    flops_per_cycle: int
    memory: int
    topologies: tuple[str, ...]
    source: str

    @property
    def clock(self) -> float:
        """Cycles per second at which the matrix units reach the peak."""
        return self.peak_flops / self.flops_per_cycle


_DOCS = "https://cloud.google.com/tpu/docs"
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_MIB = 2**20
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("v4", 2, 275e12, 8 * 2 * 128**2, 31_488 * _MIB, _CUBES, f"{_DOCS}/v4"),
    "v5e": Chip("v5litepod", 1, 197e12, 4 * 2 * 128**2, 16_128 * _MIB, _FLAT, f"{_DOCS}/v5e"),
    "v5p": Chip("v5p", 2, 459e12, 8 * 2 * 128**2, 98_038 * _MIB, _CUBES, f"{_DOCS}/v5p"),
    "v6e": Chip("v6e", 1, 918e12, 4 * 2 * 256**2, 32_000 * _MIB, _FLAT, f"{_DOCS}/v6e"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a pod.

    Attributes:
      topology: generation and shape, such as 'v5e:4x4'.
      chip: what it is made of.
      devices: its chips, as JAX devices that can only be compiled for.
    """

    topology: str
    chip: Chip
    devices: Sequence[jax.Device]

    @property
    def hosts(self) -> int:
        """Number of machines, each of which runs a process."""
        return len({device.process_index for device in self.devices})


def find(name: str) -> Slice:
    """The slice with a name.

    Args:
      name: a topology, such as 'v5e:4x4', or an accelerator type, such as 'v5litepod-16'.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    topology = _of_accelerator_type(name) or name
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise _unknown(name)
    check_extra("tpu", "libtpu", subject="compiling for a TPU")
    # No TPU is used, so another process may use libtpu as well.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Without these libtpu asks the metadata server of a TPU VM for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", accelerator_type(topology))
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if generation == "v4" else _host_bounds(shape)
    try:
        described = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" in str(error):
            raise _unknown(name) from None
        raise UserError(f"--topology={name}: libtpu fails ({one_line(error)})") from None
    return Slice(topology, CHIPS[generation], described.devices)


def accelerator_type(topology: str) -> str:
    """The name of a topology as an accelerator type of Cloud TPU."""
    generation, _, shape = topology.partition(":")
    chip = CHIPS[generation]
    return f"{chip.accelerator}-{chip.cores * math.prod(map(int, shape.split('x')))}"


def _of_accelerator_type(name: str) -> str | None:
    known = (f"{g}:{shape}" for g, chip in CHIPS.items() for shape in chip.topologies)
    return next((topology for topology in known if accelerator_type(topology) == name), None)


def _host_bounds(shape: str) -> dict[str, tuple[int, ...]]:
    """Slices of up to eight chips of v5e and v6e are one host, larger ones have four per host."""
    bounds = tuple(map(int, shape.split("x")))
    return {"chips_per_host_bounds": (*bounds, 1)} if bounds in ((1, 1), (2, 2), (2, 4)) else {}


def _unknown(name: str) -> UserError:
    known = "; ".join(f"{g}:{', '.join(chip.topologies)}" for g, chip in CHIPS.items())
    return UserError(
        f"--topology={name}: unknown; give one of {known}; or an accelerator type, such as "
        f"{accelerator_type('v5e:4x4')}"
    )
