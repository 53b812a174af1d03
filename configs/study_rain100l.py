"""Is the search worth its cost? Many small networks, trained alike on the pairs of Rain100L.

XLA_FLAGS="--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true" \\
python -m manas_jax.study --config=configs/study_rain100l.py --workdir=runs/study \\
    --config.data.root=DIR

DIR holds train/{rain,norain}; the test pairs are not used. The space is small, one cell of two
scales, three columns and two attention modules, with 2 million architectures: one core trains and
scores a network in about 40 s, half of which is compilation with the flags above, which speed it
up. All cells take about two hours. The learning rate of the architecture is high, so that few steps
suffice for a decision. Its weight decay, 1e-3 in the paper, is off except in the source "decay":
inside Adam it exceeds the gradients of the attention logits here, and returns them to their initial
values.
"""

from ml_collections import ConfigDict

from manas_jax.config import default

SEEDS = 6


def get_config() -> ConfigDict:
    """The grid, its budget and the space."""
    config = default()
    config.devices = 1
    config.log_every = 50
    config.space.update(
        channels=(12, 24), branches=(2,), columns=(3,), stem_blocks=1, patch=2, residual=True
    )
    config.data.update(
        real=1.0, transfer=1.0, versions=3, validation_scenes=24, limit=100, cache_gib=1.0
    )
    config.search.update(
        steps=150,
        scenes=3,
        crop=32,
        learning_rate=0.02,
        final_learning_rate=1e-3,
        clip=5.0,
        architecture_learning_rate=0.1,
        architecture_weight_decay=0.0,
        architecture_warmup=0.2,
        checkpoint_every=150,
        validation_crop=256,
    )
    config.train.update(
        steps=250,
        scenes=3,
        crop=32,
        learning_rate=4e-3,
        ema=0.98,
        checkpoint_every=250,
        validation_crop=256,
    )

    study = config.study = ConfigDict()
    study.seeds = SEEDS  # of initial weights and batches; cell i of a source has seed i % seeds
    study.judged_batches = 8  # of architecture scenes, when a supernet scores architectures
    study.candidates = 48  # random genotypes, of which "proxy" has the one the supernet scores best
    study.tolerance = 0.03  # relative difference of the MACs of matched genotypes
    study.searches = ConfigDict(
        {
            "first_order": {},
            "finite_difference": {"search": {"hypergradient": "finite_difference"}},
            "exact": {"search": {"hypergradient": "exact"}},
            "decay": {"search": {"architecture_weight_decay": 1e-3}},
            "frozen": {"search": {"architecture_learning_rate": 0.0}},
            "unregularized": {"objectives": {"entropy_columns": 0.0, "entropy_attention": 0.0}},
            "complexity_0": {"objectives": {"complexity": 0.0}},
            "complexity_01": {"objectives": {"complexity": 0.1}},
            "complexity_1": {"objectives": {"complexity": 1.0}},
        }
    )
    study.sources = ConfigDict()

    def source(name: str, **fields) -> None:
        study.sources[name] = ConfigDict(fields)

    # The main question first: searched against random, and at equal cost.
    source("first_order", choice="derived", search="first_order", cells=SEEDS, rank=True)
    source("matched", choice="matched", search="first_order", cells=2 * SEEDS)
    source("random", choice="random", cells=3 * SEEDS)
    for name in ("perturbation", "proxy"):
        source(name, choice=name, search="first_order")
    source("complexity_0", choice="derived", search="complexity_0")
    for name in ("all_parallel", "all_fusion", "all_skip", "hand_made"):
        source(name, choice=name, tier=1)
    # The same genotypes, trained four times as long: are their differences noise?
    long = ConfigDict({"train": {"steps": 1000, "checkpoint_every": 1000}})
    source(
        "first_order_long", choice="derived", search="first_order", cells=SEEDS, tier=2,
        changes=long,
    )  # fmt: skip
    source(
        "matched_long", choice="matched", search="first_order", cells=SEEDS, tier=2, changes=long
    )
    source("random_long", choice="random", cells=SEEDS, tier=2, changes=long)
    one = ConfigDict(
        {"data": {"versions": 1}, "train": {"scenes": 9}, "objectives": {"internal": 0.0}}
    )
    source("one_to_one", choice="derived", search="first_order", tier=3, changes=one)
    for name in ("finite_difference", "unregularized", "decay"):
        source(name, choice="derived", search=name, tier=3)
    source("frozen", choice="derived", search="frozen", tier=4)
    for name in ("complexity_01", "complexity_1"):
        source(name, choice="derived", search=name, tier=5)
    source("exact", choice="derived", search="exact", tier=6)
    return config
