"""The defaults that every experiment in `configs/` starts from, and the checks on what they set.

The defaults are the paper's (Cai et al., TCSVT 2023). Durations are counted in steps;
warm-ups are shares of them, so that a shorter run keeps its proportions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from manas_jax.data import datasets
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.search import bilevel
from manas_jax.space import SearchSpace
from manas_jax.training import losses

STAGES = ("search", "train", "evaluate")

# What may change between two starts in one workdir: it does not alter what is computed, but for
# the rounding that comes with another number of devices.
FREE_KEYS = (
    "stage", "log_every", "devices", "height_shards", "max_rollbacks", "evaluate.pictures",
    "data.cache_gib", "data.cache_dir", "search.fuse",
)  # fmt: skip


def default() -> ml_collections.ConfigDict:
    """The paper's settings on a folder of data that the user names."""
    config = ml_collections.ConfigDict()
    config.stage = "all"  # or one of STAGES
    config.seed = 0
    config.log_every = 50  # steps
    config.devices = 0  # how many to use, in all processes together; 0 = all
    config.height_shards = 1  # how many of them share a picture's height; the rest split a batch
    config.max_rollbacks = 0  # a run that diverges goes back so often, on with other batches

    config.space = ml_collections.ConfigDict(dataclasses.asdict(SearchSpace()))

    network = config.network = ml_collections.ConfigDict()
    network.dtype = "float32"  # of the computation; or "bfloat16". Parameters stay float32
    network.precision = "default"  # of products in float32 on GPU and TPU; or "high", "highest"
    network.remat = False  # compute activations twice to save memory
    network.scan = False  # loop over the supernet's columns: less to compile, slow on CPU

    config.objectives = ml_collections.ConfigDict(dataclasses.asdict(losses.Weights()))
    config.objectives.complexity_size = (320, 480)  # pixels at which MACs are counted

    data = config.data = ml_collections.ConfigDict()
    data.source = "folder"  # or "photographs" (embedded), "tfds", or a benchmark's name
    data.root = ""  # the folder; for tfds its data_dir
    data.tfds_name = ""
    data.versions = 3  # K, rainy versions of a scene in a batch
    data.real, data.transfer, data.synthetic = 1.0, 0.0, 0.0  # how often each kind is drawn
    data.level = "mixed"  # of synthetic rain: light, medium, heavy or mixed
    data.veil = 0.0  # haze behind synthetic rain, 0 to 1
    data.evaluation_level = "medium"  # where test scenes have no rain of their own
    data.validation_scenes = 8
    data.architecture_share = 0.5  # of the other training scenes
    data.split_seed = 0
    data.cache_gib = 1.0  # decoded pictures are kept in memory up to this size
    data.cache_dir = ""  # larger ones on disk, in this folder; "" decodes them each time
    data.limit = 0  # use this many training scenes; 0 = all

    search = config.search = ml_collections.ConfigDict()
    search.hypergradient = "first_order"  # or "finite_difference", "exact"
    search.steps = 200_000
    search.scenes = 16  # a batch has scenes x versions rainy patches
    search.crop = 64  # pixels
    search.architecture_warmup = 0.05  # share of the steps before the architecture moves
    search.internal_warmup = 0.025  # share of the steps before the internal loss counts
    search.learning_rate = 2e-3
    search.final_learning_rate = 1e-4  # of the cosine
    search.momentum = 0.9
    search.weight_decay = 3e-4
    search.clip = 0.0  # bound on the norm of the weights' gradient; 0 = none
    search.architecture_learning_rate = 3e-4
    search.architecture_betas = (0.5, 0.999)
    search.architecture_weight_decay = 1e-3
    search.choice = "likeliest"  # or "perturbation": what the supernet misses most
    search.choice_batches = 8  # of architecture scenes, for the latter
    search.xi = 1.0  # length of the virtual step in units of the real one
    search.epsilon = 0.01  # of the finite difference
    search.accumulate = 1  # parts of a batch, one after the other: less memory
    search.fuse = False  # compile a step as one program: for accelerators
    search.checkpoint_every = 1000  # steps; also when validation is scored
    search.validation_crop = 128  # pixels, centre of each validation picture

    train = config.train = ml_collections.ConfigDict()
    train.genotype = ""  # file; empty = what the search found in this workdir
    train.inherit = False  # start from the supernet's weights
    train.weights = ""  # or from those in this file, with the genotype in it
    train.steps = 100_000
    train.scenes = 32
    train.crop = 64
    train.internal_warmup = 0.025
    train.learning_rate = 1e-3
    train.final_learning_rate = 0.0
    train.weight_decay = 0.0  # decoupled, as AdamW
    train.clip = 0.0
    train.accumulate = 1
    train.ema = 0.0  # decay of the weights' moving average, which is then scored; 0 = none
    train.checkpoint_every = 1000
    train.validation_crop = 128

    evaluate = config.evaluate = ml_collections.ConfigDict()
    evaluate.split = "test"  # or "validation", to look without spending the test set
    evaluate.pictures = 6  # kept for the report
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks values and how they go together.

    Raises:
      UserError: names the key, its value and what it may be.
    """
    SearchSpace(**config.space)
    choices = {
        "stage": (*STAGES, "all"),
        "network.dtype": ("float32", "bfloat16"),
        "network.precision": ("default", "high", "highest"),
        "data.source": ("folder", "photographs", "tfds", *datasets.BENCHMARKS),
        "search.hypergradient": bilevel.HYPERGRADIENTS,
        "search.choice": ("likeliest", "perturbation"),
        "evaluate.split": ("test", "validation"),
    }
    for key, allowed in choices.items():
        _demand(config, key, _get(config, key) in allowed, f"one of {', '.join(allowed)}")
    at_least = {
        "data.versions": 1,
        "search.steps": 1,
        "search.scenes": 1,
        "search.crop": 8,
        "search.choice_batches": 1,
        "search.checkpoint_every": 1,
        "search.validation_crop": 16,
        "train.steps": 1,
        "train.scenes": 1,
        "train.crop": 8,
        "train.checkpoint_every": 1,
        "train.validation_crop": 16,
        "log_every": 1,
        "devices": 0,
        "height_shards": 1,
        "max_rollbacks": 0,
        "search.accumulate": 1,
        "train.accumulate": 1,
        "data.validation_scenes": 0,
        "data.limit": 0,
        "evaluate.pictures": 0,
    }
    for key, least in at_least.items():
        _demand(config, key, _get(config, key) >= least, f"at least {least}")
    for key in ("search.architecture_warmup", "search.internal_warmup", "train.internal_warmup",
                "train.ema", "objectives.complexity_macs_share"):  # fmt: skip
        _demand(config, key, 0 <= _get(config, key) <= 1, "a share from 0 to 1")
    not_negative = [f"objectives.{f.name}" for f in dataclasses.fields(losses.Weights)]
    not_negative += [
        f"{stage}.{name}"
        for stage, names in {
            "search": ("learning_rate", "weight_decay", "clip", "architecture_learning_rate", "xi"),
            "train": ("learning_rate", "weight_decay", "clip"),
        }.items()
        for name in names
    ]
    for key in not_negative:
        _demand(config, key, _get(config, key) >= 0, "0 or more")
    _demand(config, "search.epsilon", config.search.epsilon > 0, "more than 0")
    sizes = config.objectives.complexity_size
    _demand(config, "objectives.complexity_size", len(sizes) == 2 and min(sizes) > 0, "two sizes")
    if config.data.source not in ("photographs", "tfds") and not config.data.root:
        raise UserError("data.root is empty: name the folder, --config.data.root=DIR")
    if config.data.source == "tfds" and not config.data.tfds_name:
        raise UserError("data.tfds_name is empty: name the set, --config.data.tfds_name=NAME")
    if config.search.fuse and config.search.accumulate > 1:
        raise UserError("search.fuse and search.accumulate > 1 exclude each other")
    starts = [key for key in ("inherit", "genotype", "weights") if config.train[key]]
    if len(starts) > 1:
        raise UserError(f"{' and '.join(f'train.{key}' for key in starts)} exclude each other")
    if config.train.weights and config.stage in ("search", "all"):
        raise UserError("train.weights brings its network: leave out the search, stage=train")


def claim_workdir(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
    """Makes the folder, or checks that what is in it came from the same config.

    The config is kept as `config.json`. `FREE_KEYS` may differ.

    Returns:
      The folder.

    Raises:
      UserError: it cannot be written, or was made with another config; names the keys that differ.
    """
    workdir = pathlib.Path(workdir)
    fields = json.loads(config.to_json_best_effort())
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        before = json.loads(file.read_text()) if file.exists() else None
        if before is not None:
            if not isinstance(before, dict):
                raise ValueError("not an object")
            # A key that is newer than the workdir had its default, whose meaning is "as before".
            defaults = json.loads(default().to_json_best_effort())
            old = dict(_leaves(defaults)) | dict(_leaves(before))
            new = dict(_leaves(fields))
            changed = [
                f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
                for key in sorted(old.keys() | new.keys())
                if key not in FREE_KEYS and old.get(key) != new.get(key)
            ]
            if changed:
                raise UserError(
                    f"{workdir} was made with another config ({'; '.join(changed)}): "
                    "take those values or another --workdir"
                )
        write_json(file, fields)
    except ValueError:  # not JSON, not text or not an object
        raise UserError(f"{file} is damaged: mend it or take another --workdir") from None
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give another"
        ) from None
    return workdir


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _demand(config: Any, key: str, fine: bool, wish: str) -> None:
    if not fine:
        raise UserError(f"{key} = {_get(config, key)!r}: give {wish}")
