"""What `benchmarks.speed` measures: the project's own steps, made as its commands make them.

A case's process makes its `Work`: it imports what its user imports, builds, compiles ahead where
the command does, and hands back the step. JAX and TensorFlow are therefore imported inside of the
functions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from manas_jax import cost
from manas_jax.space import COLUMNS, Genotype, SearchSpace

WEIGHTS, PICTURES = "weights.safetensors", "pictures"  # what is prepared, in a case's folder
BATCHES = 250  # of the input pipeline in a run: 1,000 after the first of five

SMALL = {"channels": (16, 32, 64, 128), "columns": (2, 2, 2)}
PAPER: Mapping[str, Any] = {}  # the defaults
NARROW = {"channels": (4, 8), "branches": (2,), "columns": (1,), "stem_blocks": 1}


@dataclasses.dataclass(frozen=True)
class Work:
    """A step that is ready to be measured.

    Attributes:
      run: does the step; arrays in what it returns are waited for.
      images: pictures or patches that a step takes in.
      compile_seconds: what compiling ahead of the first step took.
      flops: gives the operations of a step as XLA counts them; asked for after everything else.
      repeats: steps in a run.
    """

    run: Callable[[], Any]
    images: int
    compile_seconds: float = 0.0
    flops: Callable[[], float] = lambda: 0.0
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
      make: (folder) -> `Work`, in the process that is measured.
      prepare: (folder) puts files into the folder, in a process before.
      one_core: whether the process is held to one core, where the system can do that.
    """

    make: Callable[[pathlib.Path], Work]
    prepare: Callable[[pathlib.Path], None] | None = None
    one_core: bool = False


def alternating(space: SearchSpace) -> Genotype:
    """Columns parallel and fusion in turn, attention candidates in turn, none excepted."""
    columns = itertools.cycle(COLUMNS)
    names = itertools.cycle([name for name in space.candidates if name != "none"])
    return Genotype(
        space,
        [[next(columns) for _ in range(n)] for n in space.columns],
        [[[next(names) for _ in range(space.edges)] for _ in range(n)] for n in space.branches],
    )


def configure(space: Mapping[str, Any]):
    """The paper's configuration on another search space."""
    from manas_jax.config import default

    config = default()
    config.space.update(space)
    return config


def make_search_step(config, hypergradient: str = "first_order", fuse: bool = True):
    """The supernet of a configuration, its two optimizers and its search step."""
    from manas_jax.search import run as search_run
    from manas_jax.training import build, losses

    options = config.search
    network = build.network(config)
    optimizers = build.search_weight_optimizer(options), build.architecture_optimizer(options)
    step = search_run.make_step(
        network,
        *optimizers,
        hypergradient=hypergradient,
        weights=build.loss_weights(config),
        complexity_model=losses.ComplexityModel(network.space, *config.objectives.complexity_size),
        xi=options.xi,
        epsilon=options.epsilon,
        fuse=fuse,
        identity=f"{hypergradient} {fuse} {build.identity(config, 'search')}",
    )
    return network, optimizers, step


def make_train_step(config):
    """The alternating network of a configuration's space, its optimizer and its training step."""
    from manas_jax.training import build
    from manas_jax.training import run as train_run

    network = build.network(config, alternating(SearchSpace(**config.space)))
    optimizer = build.train_optimizer(config.train)
    step = train_run.make_step(
        network,
        optimizer,
        weights=build.loss_weights(config),
        ema=config.train.ema,
        identity=build.identity(config, "train", network.genotype),
    )
    return network, optimizer, step


def search_step(
    folder: pathlib.Path,
    hypergradient: str = "first_order",
    space: Mapping[str, Any] = SMALL,
    scenes: int = 4,
    versions: int = 3,
    height: int = 64,
    width: int = 64,
) -> Work:
    """A step of the search, architecture and weights, on patches of noise."""
    import jax

    import manas_jax.main  # noqa: F401  # what the command imports
    from manas_jax.runtime import malloc, sharding
    from manas_jax.training.state import init_search

    malloc.tune()
    network, optimizers, step = make_search_step(
        configure(space),
        hypergradient=hypergradient,
        fuse=jax.default_backend() != "cpu",  # as configs/manas.py has it for accelerators
    )
    mesh = sharding.make_mesh(1)
    state = sharding.replicate(init_search(network, *optimizers, seed=0), mesh)
    batches = [_batch(scenes, versions, height, width, seed) for seed in range(2)]
    compilation = _compiled(step, state, sharding.shard_batch(batches[0], mesh))

    def run():
        nonlocal state
        state, terms = step(state, *(sharding.shard_batch(batch, mesh) for batch in batches))
        return state, terms

    return Work(run, 2 * scenes * versions, compilation.seconds, lambda: compilation.flops)


def train_step(
    folder: pathlib.Path,
    space: Mapping[str, Any] = SMALL,
    scenes: int = 4,
    versions: int = 3,
    height: int = 64,
    width: int = 64,
) -> Work:
    """A step of the final training of the alternating network, on patches of noise."""
    import manas_jax.main  # noqa: F401
    from manas_jax.models.network import init_variables
    from manas_jax.runtime import malloc, sharding
    from manas_jax.training.state import init_train

    malloc.tune()
    config = configure(space)
    network, optimizer, step = make_train_step(config)
    mesh = sharding.make_mesh(1)
    variables = init_variables(network, config.seed)
    state = init_train(variables, optimizer, average=bool(config.train.ema))
    state = sharding.replicate(state, mesh)
    batch = _batch(scenes, versions, height, width)
    compilation = _compiled(step, state, sharding.shard_batch(batch, mesh))

    def run():
        nonlocal state
        state, terms = step(state, sharding.shard_batch(batch, mesh))
        return state, terms

    def flops():  # the gradient is twice the work of the function
        return 3 * scenes * versions * _network_flops(network, height, width)

    return Work(run, scenes * versions, compilation.seconds, flops)


def _compiled(step, state, batch):
    """Compiles a step as the commands do, while TensorFlow is imported; their batches need it."""
    from manas_jax.data import lazy_tf

    lazy_tf.import_in_background()
    compilation = step.compile(state, batch)
    lazy_tf.tf.config  # noqa: B018  # waits for it, as the first batch would
    return compilation


def prepare_weights(folder: pathlib.Path, space: Mapping[str, Any] = SMALL) -> None:
    """Writes fresh weights of the alternating network as a weights file."""
    from manas_jax.models.network import Network, init_variables
    from manas_jax.workdir.weights import save_weights

    genotype = alternating(SearchSpace(**space))
    variables = init_variables(Network(genotype.space, genotype), seed=0)
    save_weights(folder / WEIGHTS, variables, genotype, {})


def inference(
    folder: pathlib.Path, height: int, width: int, whole: bool = False, frames: int = 1
) -> Work:
    """An 8-bit picture, or frames, de-rained; `whole`: its channel gates see all of it."""
    import numpy as np

    from manas_jax.inference.derainer import Derainer
    from manas_jax.runtime import malloc

    malloc.tune()  # as `manas_jax.derain` does
    derainer = Derainer.from_pretrained(folder / WEIGHTS, **({"pool_cell": None} if whole else {}))
    pictures = np.stack([_picture(height, width, seed) for seed in range(frames)])
    network = derainer.network.clone(pool_cell=None)  # of a picture that nothing is added to
    return Work(
        lambda: derainer(pictures),
        frames,
        flops=lambda: frames * _network_flops(network, height, width),
    )


def video_frames(folder: pathlib.Path, height: int, width: int) -> Work:
    """As many frames as are de-rained of a video at a time."""
    from manas_jax.inference import video

    return inference(folder, height, width, frames=video.BATCH)


def prepare_pictures(
    folder: pathlib.Path, count: int = 12, height: int = 320, width: int = 480
) -> None:
    """Writes photographs as PNG files, each with three synthetic rains."""
    from PIL import Image

    from manas_jax.data import images, photographs, rain
    from manas_jax.data.lazy_tf import tf
    from manas_jax.data.scene import read

    for number, scene in enumerate(photographs.load(crop=64)[0][:count]):
        photograph = Image.fromarray(read(scene.clean)).resize((width, height))
        clean = tf.constant(photograph, tf.float32) / 255
        images.write_png(folder / PICTURES / "clean" / f"{number}.png", _uint8(clean))
        for version in range(3):
            rainy = rain.synthesize(clean, tf.constant([number, version], tf.int64), "mixed", 0.0)
            images.write_png(folder / PICTURES / "rainy" / f"{number}_{version}.png", _uint8(rainy))


def input_pipeline(
    folder: pathlib.Path,
    cache_gib: float = 0.0,
    on_disk: bool = False,
    scenes: int = 4,
    repeats: int = BATCHES,
) -> Work:
    """A batch of the final training from PNG files, decoded each time unless a cache holds them.

    Nothing is taken while nothing is measured, so the batches made ahead are a few of a run's many.
    """
    import manas_jax.main  # noqa: F401
    from manas_jax.data.sources import load_splits
    from manas_jax.runtime import sharding
    from manas_jax.training import build
    from manas_jax.training import run as train_run

    config = configure(SMALL)
    config.data.update(root=str(folder / PICTURES), validation_scenes=0, cache_gib=cache_gib)
    config.data.cache_dir = str(folder) if on_disk else ""
    config.train.scenes = scenes
    splits = load_splits(config.data, config.train.crop)
    found = splits.weights + splits.architecture
    batches = build.batches(config, found, "train", train_run.ROLE, sharding.make_mesh(1)).iterate(
        0
    )
    return Work(lambda: next(batches), scenes * config.data.versions, repeats=repeats)


def losses(folder: pathlib.Path, scenes: int = 4, versions: int = 3, side: int = 64) -> Work:
    """Gradients of all losses: by the outputs and, for those of the architecture, by its logits."""
    import jax

    from manas_jax.config import LossWeights
    from manas_jax.models.network import init_architecture
    from manas_jax.runtime.compilation import Ahead
    from manas_jax.training import losses

    space = SearchSpace(**SMALL)
    model = losses.ComplexityModel(space, *configure(SMALL).objectives.complexity_size)
    weights = LossWeights()

    def total(outputs, logits, clean):
        restoration, _ = losses.restoration(outputs, clean, weights)
        return restoration + losses.architecture(logits, weights, model)[0]

    gradients = Ahead(jax.jit(jax.grad(total, argnums=(0, 1))))
    batch = jax.device_put(_batch(scenes, versions, side, side))
    arguments = batch["rainy"], init_architecture(space, 0), batch["clean"]
    compilation = gradients.compile(*arguments)
    return Work(
        lambda: gradients(*arguments),
        scenes * versions,
        compilation.seconds,
        lambda: compilation.flops,
    )


def evaluation(
    folder: pathlib.Path,
    space: Mapping[str, Any] = SMALL,
    height: int = 320,
    width: int = 480,
) -> Work:
    """What evaluation does with a picture: restore it, score it before and after."""
    import manas_jax.main  # noqa: F401
    from manas_jax import evaluate, metrics
    from manas_jax.models.network import Network, init_variables

    genotype = alternating(SearchSpace(**space))
    network = Network(genotype.space, genotype)
    variables = init_variables(network, seed=0)
    restore = evaluate.restorer(network)
    rainy, clean = _picture(height, width), _picture(height, width, seed=1)

    def run():
        restored = restore(variables, rainy)
        return metrics.score(rainy, clean), metrics.score(restored, clean)

    flops = functools.partial(_network_flops, network, height, width)
    return Work(run, 1, flops=flops)


def _inference(space: Mapping[str, Any], height: int, width: int, whole: bool = False) -> Case:
    return Case(
        functools.partial(inference, height=height, width=width, whole=whole),
        functools.partial(prepare_weights, space=space),
    )


CASES = {
    "search_first_order_small": Case(search_step),
    "search_finite_difference_small": Case(
        functools.partial(search_step, hypergradient="finite_difference")
    ),
    "search_exact_small": Case(functools.partial(search_step, hypergradient="exact")),
    "search_first_order_paper": Case(functools.partial(search_step, space=PAPER)),
    "train_small": Case(train_step),
    "train_paper": Case(functools.partial(train_step, space=PAPER)),
    "inference_320x480_small": _inference(SMALL, 320, 480),
    "inference_320x480_paper": _inference(PAPER, 320, 480),
    "inference_320x480_whole_small": _inference(SMALL, 320, 480, whole=True),
    "inference_320x480_whole_paper": _inference(PAPER, 320, 480, whole=True),
    "inference_512x512_small": _inference(SMALL, 512, 512),
    "inference_512x512_paper": _inference(PAPER, 512, 512),
    "inference_1080p_small": _inference(SMALL, 1080, 1920),
    "inference_1080p_frames_small": Case(
        functools.partial(video_frames, height=1080, width=1920), prepare_weights
    ),
    "inference_4k_small": _inference(SMALL, 2160, 3840),
    "pipeline_files": Case(input_pipeline, prepare_pictures, one_core=True),
    "pipeline_cached": Case(
        functools.partial(input_pipeline, cache_gib=1.0), prepare_pictures, one_core=True
    ),
    "pipeline_disk": Case(
        functools.partial(input_pipeline, on_disk=True), prepare_pictures, one_core=True
    ),
    "losses": Case(losses),
    "evaluation_small": Case(evaluation),
}
BASES = {"search_first_order_small": search_step, "train_small": train_step}
DOUBLED = {
    "pixels": {"width": 128},
    "scenes": {"scenes": 8},
    "columns": {"space": {**SMALL, "columns": (4, 4, 4)}},
    "versions": {"versions": 6},
}
CASES |= {
    f"{base}_{what}_doubled": Case(functools.partial(make, **change))
    for base, make in BASES.items()
    for what, change in DOUBLED.items()
}
TINY = {"tiny": _inference(NARROW, 16, 24)}  # for tests


def _network_flops(network, height: int, width: int) -> float:
    """Operations of a derived network on one picture, two a multiplication of its definition.

    Not as XLA counts them: some forms of a convolution multiply by zeros, too.
    """
    return 2.0 * cost.derived(network.genotype, height, width).macs


def _batch(scenes: int, versions: int, height: int, width: int, seed: int = 0):
    """Noise in [0, 1] in the shape of a batch."""
    import numpy as np

    shapes = {"rainy": (scenes, versions, height, width, 3), "clean": (scenes, height, width, 3)}
    draw = np.random.default_rng(seed)
    return {key: draw.random(shape, np.float32) for key, shape in shapes.items()}


def _picture(height: int, width: int, seed: int = 0):
    """Noise as uint8 (height, width, 3)."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _uint8(picture):
    """A tensor in [0, 1] in 8 bits."""
    import numpy as np

    return np.round(picture.numpy() * 255).astype(np.uint8)
