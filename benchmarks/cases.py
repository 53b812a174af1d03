"""The cases of `benchmarks.speed`: the project's own steps, built as its commands build them.

`Case.make` imports what the measured command imports, builds, compiles ahead where the command
does, and returns the step. JAX and TensorFlow are therefore imported inside functions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from manas_jax import cost
from manas_jax.space import Genotype, SearchSpace, alternating_genotype

WEIGHTS, PICTURES, LARGE = "weights.safetensors", "pictures", "large.png"  # prepared files
PICTURE = "picture.png"
BATCHES = 250  # of the input pipeline per run
LARGE_SIZE = 4000, 6000  # pixels
FILES = 1000, 10_000  # of data sets: memory must not grow with their number

SMALL = {"channels": (16, 32, 64, 128), "columns": (2, 2, 2)}
PAPER: Mapping[str, Any] = {}  # the defaults
NARROW = {"channels": (4, 8), "branches": (2,), "columns": (1,), "stem_blocks": 1}


@dataclasses.dataclass(frozen=True)
class Work:
    """A step that is ready to be measured.

    Attributes:
      run: does a step; arrays in its result are waited for.
      images: input images or patches per step.
      compile_seconds: of compiling ahead of the first step.
      flops: computes the operations of a step; called after the runs.
      repeats: steps per run.
      details: computes further results for the record; called last.
    """

    run: Callable[[], Any]
    images: int
    compile_seconds: float = 0.0
    flops: Callable[[], float] = lambda: 0.0
    repeats: int = 1
    details: Callable[[], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
      make: (folder) -> `Work`, called in the measured process.
      prepare: (folder) writes files into the folder, called in an earlier process.
      one_core: bind the process to one core, where the system supports that.
    """

    make: Callable[[pathlib.Path], Work]
    prepare: Callable[[pathlib.Path], None] | None = None
    one_core: bool = False


def configure(space: Mapping[str, Any]):
    """The paper's configuration on another search space."""
    from manas_jax.config import default

    config = default()
    config.space.update(space)
    return config


def make_search_step(config, hypergradient: str = "first_order", fuse: bool = True, ops=None):
    """The supernet of a configuration, its two optimizers and its search step."""
    from manas_jax.search.step import SearchStep
    from manas_jax.training import build, losses

    options = config.search
    network = build.network(config)
    network = network.clone(ops=ops or network.ops)
    optimizers = build.search_weight_optimizer(options), build.architecture_optimizer(options)
    step = SearchStep(
        network,
        *optimizers,
        hypergradient=hypergradient,
        loss_weights=build.loss_weights(config),
        complexity_model=losses.ComplexityModel(network.space, *config.objectives.complexity_size),
        xi=options.xi,
        epsilon=options.epsilon,
        fuse=fuse,
    )
    return network, optimizers, step


def make_train_step(config, ops=None):
    """The alternating network of a configuration's space, its optimizer and its training step."""
    from manas_jax.training import build
    from manas_jax.training.step import TrainStep

    network = build.network(config, alternating_genotype(SearchSpace(**config.space)))
    network = network.clone(ops=ops or network.ops)
    optimizer = build.train_optimizer(config.train)
    step = TrainStep(
        network,
        optimizer,
        loss_weights=build.loss_weights(config),
        ema=config.train.ema,
    )
    return network, optimizer, step


def _start() -> None:
    """Process settings of the commands; the compilation cache only if the environment names one."""
    from manas_jax.runtime import compilation, malloc

    malloc.tune_jax()
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        compilation.use_cache()


def search_step(
    folder: pathlib.Path,
    hypergradient: str = "first_order",
    space: Mapping[str, Any] = SMALL,
    scenes: int = 4,
    versions: int = 3,
    height: int = 64,
    width: int = 64,
) -> Work:
    """A search step, architecture and weights, on patches of noise."""
    import jax

    import manas_jax.main  # noqa: F401  # as the command does
    from manas_jax.runtime import sharding
    from manas_jax.training.state import init_search

    _start()
    network, optimizers, step = make_search_step(
        configure(space),
        hypergradient=hypergradient,
        fuse=jax.default_backend() != "cpu",  # as in configs/manas.py, for accelerators
    )
    mesh = sharding.make_mesh(1)
    state = sharding.replicate(init_search(network, *optimizers, seed=0), mesh)
    batches = [noise_batch(scenes, versions, height, width, seed) for seed in range(2)]
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
    """A training step of the alternating network on patches of noise."""
    import manas_jax.main  # noqa: F401
    from manas_jax.models.variables import init_variables
    from manas_jax.runtime import sharding
    from manas_jax.training.state import init_train

    _start()
    config = configure(space)
    network, optimizer, step = make_train_step(config)
    mesh = sharding.make_mesh(1)
    variables = init_variables(network, config.seed)
    state = init_train(variables, optimizer, ema=bool(config.train.ema))
    state = sharding.replicate(state, mesh)
    batch = noise_batch(scenes, versions, height, width)
    compilation = _compiled(step, state, sharding.shard_batch(batch, mesh))

    def run():
        nonlocal state
        state, terms = step(state, sharding.shard_batch(batch, mesh))
        return state, terms

    def flops():  # the gradient is twice the work of the function
        return 3 * scenes * versions * _network_flops(network.genotype, height, width)

    return Work(run, scenes * versions, compilation.seconds, flops)


def _compiled(step, state, batch):
    """Compiles a step while TensorFlow is imported for the batches, as the commands do."""
    from manas_jax.data import lazy_tf

    lazy_tf.import_in_background()
    compilation = step.compile(state, batch)
    lazy_tf.tf.config  # noqa: B018  # waits for it, as the first batch does
    return compilation


def prepare_weights(folder: pathlib.Path, space: Mapping[str, Any] = SMALL) -> None:
    """Writes a file of fresh weights of the alternating network."""
    from manas_jax.models.network import Network
    from manas_jax.models.variables import init_variables
    from manas_jax.workdir.weights import save_weights

    genotype = alternating_genotype(SearchSpace(**space))
    variables = init_variables(Network(genotype.space, genotype), seed=0)
    save_weights(folder / WEIGHTS, variables, genotype, {})


def inference(
    folder: pathlib.Path, height: int, width: int, whole: bool = False, frames: int = 1
) -> Work:
    """An 8-bit image, or frames, through `Derainer`; `whole`: channel gates see the whole image."""
    import numpy as np

    from manas_jax.inference.derainer import Derainer

    _start()
    derainer = Derainer.from_pretrained(folder / WEIGHTS, **({"pool_side": None} if whole else {}))
    pictures = np.stack([_picture(height, width, seed) for seed in range(frames)])
    return Work(
        lambda: derainer(pictures),
        frames,
        flops=lambda: frames * _network_flops(derainer.genotype, height, width),
    )


def shipped(folder: pathlib.Path, engine: str, sizes: Sequence[tuple[int, int]]) -> Work:
    """8-bit images through `Derainer` with the shipped weights."""
    from manas_jax.derain import DEFAULT_WEIGHTS
    from manas_jax.inference.derainer import Derainer

    _start()
    derainer = Derainer.from_pretrained(DEFAULT_WEIGHTS, engine=engine)
    pictures = [_picture(*size) for size in sizes]

    def run():
        for picture in pictures:
            derainer(picture)

    return Work(
        run,
        len(pictures),
        flops=lambda: sum(_network_flops(derainer.genotype, *size) for size in sizes),
    )


def runtime_alone(folder: pathlib.Path, sizes: Sequence[tuple[int, int]]) -> Work:
    """Float images through ONNX Runtime with its own settings: the export of `shipped`."""
    import numpy as np
    import onnxruntime

    from manas_jax.derain import DEFAULT_WEIGHTS
    from manas_jax.inference import onnx_graph
    from manas_jax.inference.derainer import Derainer
    from manas_jax.runtime.onnx_session import available_cores

    derainer = Derainer.from_pretrained(DEFAULT_WEIGHTS, engine="onnx")
    model = onnx_graph.build(derainer.genotype, derainer.variables, derainer.pool_side)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    batches = [_picture(*size)[None].astype(np.float32) / 255 for size in sizes]

    def run():
        for images in batches:
            session.run(None, {"images": images})

    return Work(run, len(batches))


def random_sizes(count: int, largest: int = 640) -> list[tuple[int, int]]:
    """Heights and widths of pictures, from 64 pixels on, always the same."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(64, largest, (count, 2), endpoint=True)
    return [(int(height), int(width)) for height, width in drawn]


def prepare_picture(folder: pathlib.Path) -> None:
    """Writes a picture as a PNG file."""
    from manas_jax.data import images

    images.write_png(folder / PICTURE, _picture(320, 480))


def command(folder: pathlib.Path, engine: str) -> Work:
    """The command in a process of its own, from start to end, on one picture."""
    arguments = [str(folder / PICTURE), "-o", str(folder / "restored.png"), "--overwrite"]

    def run():
        program = [sys.executable, "-m", "manas_jax.derain", *arguments, "--engine", engine]
        subprocess.run(program, check=True, capture_output=True)

    return Work(run, 1)


def video_frames(folder: pathlib.Path, height: int, width: int) -> Work:
    """As many frames as are restored of a video at a time."""
    from manas_jax.inference import video

    return inference(folder, height, width, frames=video.BATCH)


def prepare_pictures(
    folder: pathlib.Path, count: int = 12, height: int = 320, width: int = 480
) -> None:
    """Writes photographs as PNG files, each with three versions of synthetic rain."""
    from manas_jax.data import images, rain
    from manas_jax.data.lazy_tf import tf

    for number, photograph in enumerate(itertools.islice(_photographs(height, width), count)):
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
    """A training batch from PNG files, decoded each time unless a cache holds them.

    Batches are prefetched while nothing is measured, but those are few of the many in a run.
    """
    import manas_jax.main  # noqa: F401
    from manas_jax.data.sources import load_splits
    from manas_jax.runtime import sharding
    from manas_jax.training import build

    config = configure(SMALL)
    config.data.update(root=str(folder / PICTURES), validation_scenes=0, cache_gib=cache_gib)
    config.data.cache_dir = str(folder) if on_disk else ""
    config.train.scenes = scenes
    splits = load_splits(config.data, config.train.crop)
    batches = build.batches(config, splits, build.Role.TRAIN, sharding.make_mesh(1)).iterate(0)
    return Work(lambda: next(batches), scenes * config.data.versions, repeats=repeats)


def losses(folder: pathlib.Path, scenes: int = 4, versions: int = 3, side: int = 64) -> Work:
    """Gradients of all losses, with respect to the outputs and the architecture's logits."""
    import jax

    from manas_jax.config import LossWeights
    from manas_jax.models.network import init_architecture
    from manas_jax.runtime.compilation import ParallelCompiler
    from manas_jax.training import losses

    space = SearchSpace(**SMALL)
    model = losses.ComplexityModel(space, *configure(SMALL).objectives.complexity_size)
    weights = LossWeights()

    def total(outputs, logits, clean):
        restoration, _ = losses.restoration_loss(outputs, clean, weights)
        return restoration + losses.architecture_loss(logits, weights, model)[0]

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    batch = jax.device_put(noise_batch(scenes, versions, side, side))
    arguments = batch["rainy"], init_architecture(space, 0), batch["clean"]
    with ParallelCompiler() as compiler:
        compiler(gradients, *arguments)
    stats = compiler.stats
    return Work(
        lambda: gradients(*arguments), scenes * versions, stats.seconds, lambda: stats.flops
    )


def evaluation(
    folder: pathlib.Path,
    space: Mapping[str, Any] = SMALL,
    height: int = 320,
    width: int = 480,
) -> Work:
    """An image restored and scored before and after, as in the evaluation."""
    import manas_jax.main  # noqa: F401
    from manas_jax import evaluate, metrics
    from manas_jax.models.network import Network
    from manas_jax.models.variables import init_variables

    genotype = alternating_genotype(SearchSpace(**space))
    network = Network(genotype.space, genotype)
    variables = init_variables(network, seed=0)
    restore = evaluate.restorer(network, variables)
    rainy, clean = _picture(height, width), _picture(height, width, seed=1)

    def run():
        restored = restore(rainy)
        return metrics.score(rainy, clean), metrics.score(restored, clean)

    flops = functools.partial(_network_flops, genotype, height, width)
    return Work(run, 1, flops=flops)


def prepare_large(folder: pathlib.Path, side: int = 500) -> None:
    """Writes an enlarged photograph with synthetic rain as a PNG file; rain is drawn by patches."""
    from manas_jax.data import images, rain
    from manas_jax.data.lazy_tf import tf

    pixels = next(_photographs(*LARGE_SIZE))
    for top, left in itertools.product(*(range(0, size, side) for size in LARGE_SIZE)):
        patch = pixels[top : top + side, left : left + side]
        clean = tf.constant(patch, tf.float32) / 255
        patch[:] = _uint8(rain.synthesize(clean, tf.constant([top, left], tf.int64), "heavy", 0.0))
    images.write_png(folder / LARGE, pixels)


def derain_large(folder: pathlib.Path) -> Work:
    """The command with the shipped weights, from file to file."""
    from manas_jax import derain
    from manas_jax.inference.derainer import Derainer

    source, weights = folder / LARGE, derain.DEFAULT_WEIGHTS
    arguments = [str(source), "-o", str(folder / "restored.png"), "--overwrite", "--quiet"]

    def run():
        if status := derain.main(arguments):
            raise RuntimeError(f"manas_jax.derain ended with status {status}")

    return Work(
        run,
        1,
        flops=lambda: _network_flops(Derainer.from_pretrained(weights).genotype, *LARGE_SIZE),
        details=functools.partial(tile_differences, source, weights),
    )


def tile_differences(source: pathlib.Path, weights: str, side: int = 1536) -> dict[str, Any]:
    """Largest differences in grey levels between tiles and the whole, on a part of a picture."""
    from manas_jax.data import images
    from manas_jax.inference.derainer import Derainer

    part = images.read(source)[:side, :side]

    def restored(tile):
        return Derainer.from_pretrained(weights, tile=tile)(part).astype(int)

    whole = restored(side)
    largest = {tile: int(abs(restored(tile) - whole).max()) for tile in (512, 768, 1024)}
    return {"largest_difference_of_tiles": largest}


def prepare_pairs(folder: pathlib.Path, count: int, side: int = 64) -> None:
    """Writes `count` files of noise in the layout of Rain100L, a tenth of the pairs for testing."""
    import numpy as np

    from manas_jax.data import images

    draw = np.random.default_rng(0)
    for number in range(count // 2):
        split = "test" if number % 10 == 9 else "train"
        clean = draw.integers(0, 200, (side, side, 3), np.uint8)
        for kind, pixels in {"norain": clean, "rain": clean + np.uint8(55)}.items():
            images.write_png(folder / PICTURES / split / kind / f"{number}.png", pixels)


def prepare_set(folder: pathlib.Path, count: int) -> None:
    """Writes the files of `prepare_pairs` and a TFDS data set of them."""
    prepare_pairs(folder, count)
    _write_set(folder, folder)


def set_writing(folder: pathlib.Path, count: int, buffer_mib: int | None = None) -> Work:
    """The files of `prepare_pairs` checked and written as a TFDS data set.

    TFDS sorts up to `buffer_mib` (1000 by default) in memory and beyond that on disk.
    """
    if buffer_mib:
        from tensorflow_datasets.core import shuffle

        shuffle.MAX_MEM_BUFFER_SIZE = buffer_mib * 2**20
    return Work(lambda: _write_set(folder, tempfile.mkdtemp(dir=folder)), count)


def _write_set(folder: pathlib.Path, data_dir: str | pathlib.Path) -> None:
    from manas_jax.data import prepare

    root = str(folder / PICTURES)
    arguments = ["rain100l", "--root", root, "--data_dir", str(data_dir), "--partial"]
    if status := prepare.main(arguments):
        raise RuntimeError(f"manas_jax.data.prepare ended with status {status}")


def set_reading(folder: pathlib.Path, count: int) -> Work:
    """All pictures of the data set of `prepare_set` read."""
    from manas_jax.data.scene import read
    from manas_jax.data.sources import load_splits

    config = configure(SMALL).data
    config.update(source="tfds", root=str(folder), tfds_name="derain/rain100l", validation_scenes=0)

    def run():
        splits = load_splits(config, crop=64)
        for scene in (*splits.weights, *splits.architecture, *splits.test):
            for picture in (scene.clean, *scene.rainy):
                read(picture)

    return Work(run, count)


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
    **{
        f"shipped_320x480_{engine}": Case(
            functools.partial(shipped, engine=engine, sizes=[(320, 480)])
        )
        for engine in ("onnx", "jax")
    },
    "shipped_320x480_runtime_alone": Case(functools.partial(runtime_alone, sizes=[(320, 480)])),
    "shipped_200_sizes_onnx": Case(
        lambda folder: shipped(folder, engine="onnx", sizes=random_sizes(200))
    ),
    "shipped_200_sizes_runtime_alone": Case(
        lambda folder: runtime_alone(folder, sizes=random_sizes(200))
    ),
    **{
        f"command_{engine}": Case(functools.partial(command, engine=engine), prepare_picture)
        for engine in ("onnx", "jax")
    },
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
    "derain_24mp": Case(derain_large, prepare_large),
    **{
        f"prepare_{count}{name}": Case(
            functools.partial(set_writing, count=count, buffer_mib=buffer_mib),
            functools.partial(prepare_pairs, count=count),
        )
        for name, buffer_mib in (("", None), ("_small_buffer", 8))
        for count in FILES
    },
    **{
        f"read_{count}": Case(
            functools.partial(set_reading, count=count),
            functools.partial(prepare_set, count=count),
        )
        for count in FILES
    },
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
TINY = {  # for tests
    "tiny": Case(
        lambda folder: Work(lambda: (folder / WEIGHTS).read_text(), 1),
        lambda folder: (folder / WEIGHTS).touch(),
    )
}


def _network_flops(genotype: Genotype, height: int, width: int) -> float:
    """Operations of a derived network on one image, two per multiplication in its definition.

    Not as XLA counts them, which includes multiplications by zero in some forms of a convolution.
    """
    return 2.0 * cost.derived(genotype, height, width).macs


def noise_batch(scenes: int, versions: int, height: int, width: int, seed: int = 0):
    """A batch of noise in [0, 1]: 'rainy' and 'clean'."""
    import numpy as np

    shapes = {"rainy": (scenes, versions, height, width, 3), "clean": (scenes, height, width, 3)}
    draw = np.random.default_rng(seed)
    return {key: draw.random(shape, np.float32) for key, shape in shapes.items()}


def _photographs(height: int, width: int) -> Iterator[Any]:
    """Photographs resized to uint8 (height, width, 3)."""
    import numpy as np
    from PIL import Image

    from manas_jax.data import photographs
    from manas_jax.data.scene import read

    for scene in photographs.load(crop=64)[0]:
        yield np.array(Image.fromarray(read(scene.clean)).resize((width, height)))


def _picture(height: int, width: int, seed: int = 0):
    """Noise as uint8 (height, width, 3)."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _uint8(picture):
    """A tensor in [0, 1] in 8 bits."""
    import numpy as np

    return np.round(picture.numpy() * 255).astype(np.uint8)
