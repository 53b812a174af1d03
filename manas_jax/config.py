"""The defaults that every experiment in `configs/` starts from, and the checks on what they set.

The defaults are the paper's (Cai et al., TCSVT 2023). Durations are counted in steps; warm-ups are
fractions of them, so that a shorter run keeps its proportions.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from manas_jax import buckets, cost
from manas_jax.data import catalog
from manas_jax.errors import UserError, short_repr
from manas_jax.latency_table import NANOSECONDS, LatencyTable
from manas_jax.space import SearchSpace

STAGES = ("search", "train", "evaluate")
OPTIMIZERS = ("adam", "muon")
"""Of the weights; a search can also use sgd. See `training.build.train_optimizer`."""
HYPERGRADIENTS = ("first_order", "finite_difference", "exact")
"""Gradients with respect to the architecture, see `manas_jax.search.bilevel`."""
WITHOUT_SUPERNET = ("random", "halving", "uniform")
METHODS = ("bilevel", "evolution", *WITHOUT_SUPERNET)
"""Search methods, see `manas_jax.search.methods`."""
BUDGETS = {
    "gmacs": ("macs", 10**9),
    "parameters": ("parameters", 1),
    "milliseconds": ("nanoseconds", NANOSECONDS),
}
"""What a budget limits: a unit of `manas_jax.cost`, and how much of it a budget of 1 is."""
RAIN_LEVELS = ("light", "medium", "heavy", "mixed")
"""Levels of synthetic rain, see `manas_jax.data.rain`."""
RAIN_APPEARANCES = ("additive", "photographic", "mixed")
"""Of synthetic rain, see `manas_jax.data.rain`."""


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Coefficients of the loss terms; 0 disables a term.

    Attributes:
      mse: squared error to the clean image, external.
      charbonnier: a smooth absolute error to the clean image, external.
      ssim: structural dissimilarity to the clean image, external.
      tv: total variation of the outputs, external.
      internal: squared error between a scene's outputs.
      feature: distance to the clean image in the features of `train.feature_network`, external.
      entropy_columns: architecture regularization of the columns.
      entropy_attention: architecture regularization of the attention edges.
      entropy_widths: architecture regularization of the residual blocks' widths.
      complexity: expected cost of the relaxed architecture, lambda.
      complexity_macs_share: share of multiply-accumulates in it, the rest is parameters.
    """

    mse: float = 1.0
    charbonnier: float = 0.0
    ssim: float = 1.0
    tv: float = 1e-4
    internal: float = 1.0
    feature: float = 0.0
    entropy_columns: float = 0.01
    entropy_attention: float = 0.01
    entropy_widths: float = 0.01
    complexity: float = 0.01
    complexity_macs_share: float = 0.5


class Range(NamedTuple):
    """The values that a key accepts.

    Attributes:
      description: what to give, for an error message.
      contains: whether a value is one of them.
    """

    description: str
    contains: Callable[[Any], bool]


def _type_of(default: Any) -> Range:
    """Values of the type of a key's default: finite, and of a size that arrays and steps can have.

    A tuple has as many entries as the default, each of the type of its own.
    """
    if isinstance(default, tuple):
        parts = [_type_of(part) for part in default]
        return Range(
            f"{len(parts)} values, each {parts[0].description}",
            lambda value: (
                isinstance(value, (tuple, list))
                and len(value) == len(parts)
                and all(part.contains(x) for part, x in zip(parts, value, strict=True))
            ),
        )
    if isinstance(default, bool):
        return Range("True or False", lambda value: isinstance(value, bool))
    if isinstance(default, int):
        return Range(
            "a whole number of less than 10 digits",
            lambda value: _is_number(value, int) and abs(value) < _MAX_INTEGER,
        )
    if isinstance(default, float):
        return Range(
            "a finite number",
            lambda value: _is_number(value, (int, float)) and abs(value) < _MAX_FLOAT,
        )
    return Range(
        "a text of one line", lambda value: isinstance(value, str) and not set("\n\0") & set(value)
    )


def _is_number(value: Any, types: Any) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


_MAX_INTEGER = 10**9
_MAX_FLOAT = 1e38  # in float32


def one_of(*names: str) -> Range:
    """These texts."""
    return Range(f"one of {', '.join(names)}", lambda value: value in names)


def at_least(least: int) -> Range:
    """Numbers from `least` on."""
    return Range(f"at least {least}", lambda value: value >= least)


# Of the type of the default; files and names are checked where they are used.
ANY = Range("any value", lambda _: True)
_LOCAL = Range("a local path", lambda value: not buckets.scheme(value))
_PATH = Range(
    "a local path or gs://BUCKET/NAME",
    lambda value: buckets.scheme(value) in ("", buckets.SCHEME),
)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
_PREFERENCE = Range("from 0 to 10", lambda value: 0 <= value <= 10)
_POSITIVE = Range("more than 0", lambda value: value > 0)
_SHARE = Range("a share from 0 to 1", lambda value: 0 <= value <= 1)
_LEVEL = one_of(*RAIN_LEVELS)
_DECAY = Range("at least 0 and less than 1", lambda value: 0 <= value < 1)
_TWO_DECAYS = Range(_DECAY.description, lambda value: all(map(_DECAY.contains, value)))
_TWO_SIZES = Range("two sizes", lambda value: min(value) > 0)

# Every key as it is written after `--config.`, with its default and range. Those of `space` are the
# fields of `SearchSpace`, which checks them.
_KEYS: dict[str, tuple[Any, Range]] = {
    "stage": ("all", one_of(*STAGES, "all")),
    "note": ("", ANY),  # on the run, for the top of its report
    "seed": (0, at_least(0)),
    "log_every": (50, at_least(1)),  # steps
    "devices": (0, at_least(0)),  # how many to use, in all processes together; 0 = all
    "height_shards": (1, at_least(1)),  # devices per image, which share its height
    # How often a diverged run may return to its newest checkpoint and continue with other batches.
    "max_rollbacks": (0, at_least(0)),

    "network.dtype": ("float32", one_of("float32", "bfloat16")),  # of activations, not parameters
    # Of float32 products on GPU and TPU.
    "network.precision": ("default", one_of("default", "high", "highest")),
    # Devices that share BatchNorm's statistics; 0 = all, as if the batch were on one device.
    "network.batch_norm_group": (0, at_least(0)),
    "network.remat": (False, ANY),  # compute activations twice to save memory
    "network.scan": (False, ANY),  # loop over the supernet's columns: compiles less, slow on CPU

    **{f"objectives.{f.name}": (f.default, NOT_NEGATIVE) for f in dataclasses.fields(LossWeights)},
    "objectives.complexity_macs_share": (LossWeights.complexity_macs_share, _SHARE),
    "objectives.complexity_size": ((320, 480), _TWO_SIZES),  # pixels at which MACs are counted

    "data.source": ("folder", one_of("folder", "photographs", "tfds", *catalog.DATASETS)),
    "data.root": ("", _PATH),  # the folder; for tfds its data_dir
    "data.tfds_name": ("", ANY),
    "data.versions": (3, at_least(1)),  # K, rainy versions of a scene in a batch
    "data.real": (1.0, NOT_NEGATIVE),  # relative frequency of each kind of rain
    "data.transfer": (0.0, NOT_NEGATIVE),
    "data.synthetic": (0.0, NOT_NEGATIVE),
    "data.level": ("mixed", _LEVEL),  # of synthetic rain: light, medium, heavy or mixed
    "data.appearance": ("additive", one_of(*RAIN_APPEARANCES)),  # of synthetic rain, in training
    "data.stripes": (0.0, _SHARE),  # share of scenes with a fence drawn into the clean image
    "data.veil": (0.0, _SHARE),  # haze behind synthetic rain, 0 to 1
    "data.evaluation_level": ("medium", _LEVEL),  # where test scenes have no rain of their own
    "data.validation_scenes": (8, at_least(1)),
    "data.architecture_share": (0.5, _SHARE),  # of the other training scenes
    "data.split_seed": (0, at_least(0)),
    "data.cache_gib": (1.0, NOT_NEGATIVE),  # decoded images are cached in memory if all fit
    "data.cache_dir": ("", _LOCAL),  # folder to cache larger ones in; "" = decode each time
    "data.limit": (0, at_least(0)),  # use this many training scenes; 0 = all

    "search.method": ("bilevel", one_of(*METHODS)),
    "search.candidates": (16, at_least(1)),  # of random and halving; a single one is not trained
    # Standard deviation of a candidate's shared logits, see sampling.random_preferences; 0 = none.
    "search.preference": (0.0, _PREFERENCE),
    "search.population": (50, at_least(2)),  # of the method evolution, in each generation
    "search.generations": (20, at_least(1)),
    "search.hypergradient": ("first_order", one_of(*HYPERGRADIENTS)),
    "search.steps": (200_000, at_least(1)),
    "search.scenes": (16, at_least(1)),  # a batch has scenes x versions rainy patches
    "search.crop": (64, at_least(8)),  # pixels
    "search.architecture_warmup": (0.05, _SHARE),  # of the steps, before its updates
    "search.internal_warmup": (0.025, _SHARE),  # of the steps, without the internal loss
    "search.optimizer": ("sgd", one_of("sgd", *OPTIMIZERS)),  # of the weights
    "search.learning_rate": (2e-3, NOT_NEGATIVE),
    "search.final_learning_rate": (1e-4, NOT_NEGATIVE),  # of the cosine schedule
    "search.momentum": (0.9, _DECAY),  # of sgd
    "search.weight_decay": (3e-4, NOT_NEGATIVE),
    "search.clip": (0.0, NOT_NEGATIVE),  # bound on the global norm of the gradient; 0 = none
    "search.architecture_learning_rate": (3e-4, NOT_NEGATIVE),
    "search.architecture_betas": ((0.5, 0.999), _TWO_DECAYS),
    "search.architecture_weight_decay": (1e-3, NOT_NEGATIVE),
    # Highest cost of the derived network, 0 = no limit: billions of multiply-accumulates or
    # milliseconds for an image of objectives.complexity_size, or parameters.
    "search.budget": (0.0, NOT_NEGATIVE),
    "search.budget_of": ("gmacs", one_of(*BUDGETS)),
    "search.latency": ("", _PATH),  # file of milliseconds that manas_jax.latency has measured
    "search.budget_rate": (0.02, _POSITIVE),  # of the multiplier that holds the budget
    # Which choices make the genotype: the most probable ones, or those whose removal lowers the
    # supernet's score most.
    "search.choice": ("likeliest", one_of("likeliest", "perturbation")),
    # Batches of architecture scenes on which perturbation and evolution score.
    "search.choice_batches": (8, at_least(1)),
    "search.xi": (1.0, NOT_NEGATIVE),  # length of the unrolled step in units of the real one
    "search.epsilon": (0.01, _POSITIVE),  # of the finite difference
    "search.accumulate": (1, at_least(1)),  # microbatches of a batch, to save memory
    "search.fuse": (False, ANY),  # compile each half of a step as one program: for accelerators
    "search.checkpoint_every": (1000, at_least(1)),  # steps; also when validation is scored
    "search.validation_crop": (128, at_least(16)),  # pixels, centre of each validation image

    "train.genotype": ("", _PATH),  # file; "" = what the search found in this workdir
    "train.inherit": (False, ANY),  # start from the supernet's weights
    "train.weights": ("", _PATH),  # start from this name or file, and take its genotype
    "train.feature_network": ("", _PATH),  # file of the U-Net that objectives.feature compares with
    "train.steps": (100_000, at_least(1)),
    "train.scenes": (32, at_least(1)),
    "train.crop": (64, at_least(8)),
    "train.internal_warmup": (0.025, _SHARE),
    "train.optimizer": ("adam", one_of(*OPTIMIZERS)),
    "train.learning_rate": (1e-3, NOT_NEGATIVE),
    "train.final_learning_rate": (0.0, NOT_NEGATIVE),
    "train.decay": (1.0, _SHARE),  # share of the steps, at the end, in which the rate decays
    "train.batch_norm": (1.0, _SHARE),  # of the steps, before its statistics are frozen
    "train.weight_decay": (0.0, NOT_NEGATIVE),  # decoupled, as in AdamW
    "train.clip": (0.0, NOT_NEGATIVE),
    "train.accumulate": (1, at_least(1)),
    "train.ema": (0.0, _DECAY),  # decay of the weights' moving average, which is scored; 0 = none
    "train.checkpoint_every": (1000, at_least(1)),
    "train.validation_crop": (128, at_least(16)),

    # `validation` leaves the test set unused.
    "evaluate.split": ("test", one_of("test", "validation")),
    "evaluate.pictures": (6, at_least(0)),  # how many are stored for the report
}  # fmt: skip


def default() -> ml_collections.ConfigDict:
    """The paper's settings on a folder of data that the user names."""
    fields: dict[str, Any] = {"space": dataclasses.asdict(SearchSpace())}
    for key, (value, _) in _KEYS.items():
        section, _, name = key.rpartition(".")
        (fields.setdefault(section, {}) if section else fields)[name] = value
    return ml_collections.ConfigDict(fields)


def check_values(config: ml_collections.ConfigDict, keys: Mapping[str, tuple[Any, Range]]) -> None:
    """Checks types and values of keys.

    Args:
      config: with these keys.
      keys: as they are written after `--config.`, with a value of their type and their range.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    for key, (example, allowed) in keys.items():
        try:
            value = functools.reduce(operator.getitem, key.split("."), config)
        except (KeyError, TypeError):
            raise UserError(f"{key} is missing: give {allowed.description}") from None
        for part in (_type_of(example), allowed):
            if not part.contains(value):
                raise UserError(f"{key} = {short_repr(value)}: give {part.description}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks names, types and values of the keys, and their combinations.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    _check_names(config)
    check_values(config, _KEYS)
    buckets.check(
        config.data.root, config.train.genotype, config.train.weights, config.search.latency,
        config.train.feature_network,
    )  # fmt: skip
    if not isinstance(config.get("space"), ml_collections.ConfigDict):
        raise UserError("space is missing: give the fields of the search space")
    space = SearchSpace.from_dict(config.space)
    cost.check_parameters(cost.supernet(space, 1, 1), "space")
    if config.stage in ("search", "all") and not sum(space.columns):
        raise UserError(f"space.columns = {space.columns}: a search needs a column to choose")
    _check_budget(config)
    if not config.data.real + config.data.transfer + config.data.synthetic:
        raise UserError("data.real, data.transfer and data.synthetic are 0: give one of them")
    if config.data.source not in ("photographs", "tfds") and not config.data.root:
        raise UserError("data.root is empty: name the folder, --config.data.root=DIR")
    if config.data.source == "photographs" and config.data.root:
        raise UserError(
            f"data.root = {short_repr(config.data.root)} is not read with data.source = "
            "photographs: give data.source=folder, or leave it out"
        )
    if config.data.source == "tfds" and not config.data.tfds_name:
        raise UserError("data.tfds_name is empty: name the set, --config.data.tfds_name=NAME")
    if config.data.tfds_name and config.data.source != "tfds":
        raise UserError(
            f"data.tfds_name = {short_repr(config.data.tfds_name)} is not read with data.source = "
            f"{config.data.source}: give data.source=tfds, or leave it out"
        )
    if config.search.fuse and config.search.accumulate > 1:
        raise UserError("search.fuse and search.accumulate > 1 exclude each other")
    if config.search.method == "uniform" and not config.search.budget:
        raise UserError("search.method = uniform needs a budget: set search.budget")
    if config.search.method in WITHOUT_SUPERNET and config.train.inherit:
        raise UserError(
            f"train.inherit needs the weights of a supernet, and search.method = "
            f"{config.search.method} has none: leave it out"
        )
    if config.search.method != "bilevel" and config.search.choice != "likeliest":
        raise UserError(
            f"search.choice = {config.search.choice}: search.method = {config.search.method} "
            "has no probabilities; leave it out"
        )
    starts = [key for key in ("inherit", "genotype", "weights") if config.train[key]]
    if len(starts) > 1:
        raise UserError(f"{' and '.join(f'train.{key}' for key in starts)} exclude each other")
    for key in ("genotype", "weights"):
        if config.train[key] and config.stage in ("search", "all"):
            raise UserError(f"train.{key} brings its network: leave out the search, stage=train")
    _check_feature(config)


def without_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy for commands that read no data, which is valid without a folder of them."""
    config = config.copy_and_resolve_references()
    if config.data.source not in ("photographs", "tfds"):
        config.data.root = config.data.root or "none"
    return config


def search_budget(config: ml_collections.ConfigDict) -> cost.Budget | None:
    """What the network that the search finds may cost; None for anything.

    Raises:
      UserError: the table of milliseconds is missing, damaged, or of another space or size.
    """
    unit, size = BUDGETS[config.search.budget_of]
    if not config.search.budget:
        return None
    table = None
    if config.search.budget_of == "milliseconds":
        if not config.search.latency:
            raise UserError(
                "search.latency is empty: name a table of milliseconds; python -m "
                "manas_jax.latency measures one"
            )
        table = LatencyTable.load(config.search.latency)
        table.check(SearchSpace.from_dict(config.space), config.objectives.complexity_size)
    limit = round(config.search.budget * size)
    return cost.Budget(limit, unit, *config.objectives.complexity_size, table)


def _check_names(config: ml_collections.ConfigDict) -> None:
    """Refuses keys that nothing reads; the fields of `space` and `study` are checked elsewhere."""
    sections = {key.partition(".")[0] for key in _KEYS if "." in key}
    known = [*_KEYS, *sections, "space", "study"]
    for name in config:
        fields = config[name] if name in sections else None
        inner = fields if isinstance(fields, ml_collections.ConfigDict) else ()
        for key in (str(name), *(f"{name}.{field}" for field in inner)):
            if key not in known:
                (closest,) = difflib.get_close_matches(key, known, n=1, cutoff=0)
                raise UserError(
                    f"unknown config key '{key}' (did you mean '{closest}'?); see "
                    "manas_jax/config.py for all of them"
                )


def _check_feature(config: ml_collections.ConfigDict) -> None:
    weight, file = config.objectives.feature, config.train.feature_network
    if weight and not file:
        raise UserError(
            f"objectives.feature = {weight:g}: give train.feature_network=FILE as well, "
            "or leave it out"
        )
    if file and not weight:
        raise UserError(
            f"train.feature_network = {short_repr(file)}: give a weight, "
            "objectives.feature=WEIGHT, as well, or leave it out"
        )
    if weight and config.stage in ("search", "all"):
        raise UserError(
            f"objectives.feature = {weight:g}: the search has no feature loss; set it in a new "
            "workdir, with stage=train"
        )


def _check_budget(config: ml_collections.ConfigDict) -> None:
    if config.search.latency and config.search.budget_of != "milliseconds":
        raise UserError(
            f"search.latency is not read with search.budget_of = {config.search.budget_of}: give "
            "search.budget_of=milliseconds, or leave it out"
        )
    if config.search.latency and not config.search.budget:
        raise UserError(
            "search.latency is not read without a budget: set search.budget, or leave it out"
        )
    budget = search_budget(config)
    if budget is None:
        return
    _, size = BUDGETS[config.search.budget_of]
    space = SearchSpace.from_dict(config.space)
    cheapest, most_expensive = budget.extremes(space)
    if budget.limit < cheapest:
        raise UserError(
            f"search.budget = {config.search.budget:g} {config.search.budget_of}: networks of this "
            f"space cost {cheapest / size:,.10g} to {most_expensive / size:,.10g}: give a larger "
            "budget or a smaller space"
        )
    if config.search.choice != "likeliest":
        raise UserError(
            f"search.choice = {config.search.choice}: a budget needs the choice 'likeliest'"
        )
