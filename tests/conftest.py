"""What several test files share: quick compilation, tiny configurations and spaces."""

import atexit
import gc
import importlib.util
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request

# Every program here is run a few times at most, so quick to compile counts; commands that the
# tests start inherit it. It has to be set before JAX starts. XLA's newer emitter of fusions takes
# most of the time of a compilation, and code in one module is quicker made than in several.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

# Compiling is most of what the tests take: pytest's workers, the tests and the commands that they
# start share what any of them has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="manas_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import numpy as np
import pytest
from PIL import Image

from manas_jax.space import ALL_COLUMNS, SearchSpace

# Tracing allocates so much that by default the collector would run thousands of times.
gc.set_threshold(50_000)

ROOT = pathlib.Path(__file__).parent.parent

# Processes that the tests start find this checkout wherever they start, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives each worker a run of neighbouring tests, which share fixtures and programs."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that share the steps of `run_stages` come first, so that one worker has them all."""
    sharing = {item.path for item in items if "run_stages" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in sharing)


NARROW = {
    "channels": (4, 8),
    "branches": (2,),
    "columns": (1,),
    "stem_blocks": 1,
    "attention_groups": 1,
    "candidates": ("none", "SE", "dil_conv_3x3_spatial"),
}
"""A space with everything of the paper's in kind, as quick to compile as can be."""


@pytest.fixture(scope="session")
def space():
    return SearchSpace(**NARROW)


def narrow_config(**changes):
    """configs/tiny.py on the narrowest space; `changes` have dots as '__' in their keys."""
    config = runpy.run_path(str(ROOT / "configs" / "tiny.py"))["get_config"]()
    config.devices = 1
    config.space.update(NARROW)
    for key, value in changes.items():
        *parents, name = key.split("__")
        part = config
        for parent in parents:
            part = part[parent]
        part[name] = value
    return config


@pytest.fixture(scope="session")
def make_config():
    return narrow_config


def scene_batch(scenes=2, versions=2, side=8, seed=0, dtype=np.float32):
    """Noise in [0, 1] in the shape of a batch of scenes."""
    draw = np.random.default_rng(seed)
    clean = draw.uniform(0, 1, (scenes, side, side, 3))
    rain = draw.uniform(0, 0.3, (scenes, versions, side, side, 3))
    rainy = np.clip(clean[:, None] + rain, 0, 1)
    return {"rainy": rainy.astype(dtype), "clean": clean.astype(dtype)}


@pytest.fixture(scope="session")
def make_batch():
    return scene_batch


@pytest.fixture(scope="session")
def make_pictures():
    """A function that writes pairs of noise as norain/N.png and rain/N.png and gives the folder."""

    def write(root, count=6, size=(40, 48), seed=0):
        draw = np.random.default_rng(seed)
        for kind in ("norain", "rain"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / kind / f"{i}.png")
        return root

    return write


@pytest.fixture
def ctrl_c():
    """Lets SIGINT interrupt: shells may have set background processes to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m manas_jax.main` as a user does; gives the finished process."""

    def run(*arguments, module="manas_jax.main", cwd=ROOT, **environment):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def experiments():
    """`get_config` of every file in configs/, by name."""
    return {p.stem: runpy.run_path(str(p))["get_config"] for p in (ROOT / "configs").glob("*.py")}


@pytest.fixture
def float64():
    """Arrays of the test are float64."""
    import jax

    with jax.enable_x64(True):
        yield


def draw(*shapes):
    """Normal arrays of the shapes, the same at each call, in JAX's default float."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.fixture(scope="session")
def count_compilations():
    """A context manager that yields the list of compilations within it."""
    import contextlib

    import jax

    lists = []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            for compilations in lists:
                compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)

    @contextlib.contextmanager
    def counting():
        lists.append(compilations := [])
        try:
            yield compilations
        finally:
            lists.remove(compilations)

    return counting


class _CompiledOnce:
    """A step that is compiled at the first run and shared by all later ones."""

    def __init__(self, step):
        self._step, self._compilation = step, None

    def __call__(self, *args):
        return self._step(*args)

    def compile(self, *args):
        if self._compilation is None:
            self._compilation = self._step.compile(*args)
        return self._compilation


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, make_pictures):
    """A folder of six pairs to train on and, in test/, three of sizes that 2 does not divide."""
    root = tmp_path_factory.mktemp("pictures")
    make_pictures(root / "train")
    make_pictures(root / "test", count=3, size=(33, 21), seed=1)
    return root


BUDGET_SPACE = SearchSpace(
    channels=(4, 8),
    branches=(1, 2),
    columns=(1, 3),
    stem_blocks=1,
    attention_groups=1,
    candidates=("skip_connect", "SE"),
    column_choices=ALL_COLUMNS,
    widths=(0.25, 0.5, 1),
)
"""A small space in which a budget has everything to choose: columns, widths, attention."""


def moved_variables(network, seed=0):
    """Variables of a network away from their initial values: zeros and ones would hide mistakes."""
    import jax

    from manas_jax.models.variables import init_variables

    draw = np.random.default_rng(seed + 1)

    def moved(path, x):
        if path[1].key == "head_conv":  # zero where the network adds its output to the image
            return draw.uniform(0, 0.1, x.shape).astype(np.float32)
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(path[-1].key, (-0.1, 0.1))
        return x if x.ndim == 4 else draw.uniform(low, high, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, init_variables(network, seed))


@pytest.fixture(scope="session")
def small():
    """A residual network at half resolution whose outputs resemble its inputs."""
    import jax

    from manas_jax.models.network import Network
    from manas_jax.models.variables import init_variables
    from manas_jax.space import derive

    space = SearchSpace(
        channels=(4, 8), branches=(2,), columns=(1,), stem_blocks=1, patch=2, residual=True
    )
    genotype = derive(space, np.eye(2)[[1]], np.eye(9)[[[6, 7, 8], [2, 7, 6]]])
    draw = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: x + 0.03 * draw.standard_normal(x.shape).astype(np.float32),
        init_variables(Network(space, genotype), 0),
    )
    return genotype, variables


@pytest.fixture(scope="session")
def weights(small, tmp_path_factory):
    """The file of `small`."""
    from manas_jax.workdir.weights import save_weights

    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    genotype, variables = small
    save_weights(file, variables, genotype, {"seed": "0"})
    return file


@pytest.fixture(scope="session")
def loop_changes(pictures):
    """What `finished` changes in the narrow configuration."""
    return {
        "data__source": "folder",
        "data__root": str(pictures),
        "data__real": 0.5,
        "data__synthetic": 0.5,
        "search__hypergradient": "finite_difference",
        "search__crop": 16,
        "train__crop": 16,
        "train__ema": 0.5,
        "train__inherit": True,
        "search__validation_crop": 16,
        "train__validation_crop": 16,
    }


@pytest.fixture(scope="session")
def loop_config(loop_changes):
    """A function that makes the configuration of `finished`, changed at wish."""
    return lambda **changes: narrow_config(**{**loop_changes, **changes})


@pytest.fixture(scope="session")
def run_stages(loop_config):
    """A function (workdir, **changes) that runs the stages; all its runs share compiled steps.

    They may, because their configurations differ in nothing that a step is made of. That a fresh
    compilation gives the same bits is shown by a slow test in a process of its own.
    """
    from manas_jax import main
    from manas_jax.search import supernet
    from manas_jax.training import run as train_run
    from manas_jax.training.validation import Validation

    compiled, programs = {}, {}

    class ValidationOnce(Validation):
        """Scores of a network by the program that the first run has compiled."""

        def __init__(self, network, *args):
            super().__init__(network, *args)
            self._apply = programs.setdefault(network, self._apply)

    def once(module, name):
        step_class = getattr(module, name)

        def construct(*args, **options):
            if name not in compiled:
                compiled[name] = _CompiledOnce(step_class(*args, **options))
            return compiled[name]

        return construct

    def run(workdir, **changes):
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((supernet, "SearchStep"), (train_run, "TrainStep")):
                patch.setattr(module, name, once(module, name))
                patch.setattr(module, "Validation", ValidationOnce)
            return main.run(loop_config(**changes), workdir)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, run_stages):
    """The workdir of a run of all stages that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    run_stages(workdir)
    return workdir


@pytest.fixture(scope="session")
def bucket_process():
    """A server of the bucket gs://bucket on this machine, which all clients of the tests use."""
    if not all(map(importlib.util.find_spec, ("gcp_storage_emulator", "gcsfs"))):
        pytest.skip("needs gcsfs and gcp-storage-emulator")
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "bucket_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = process.stdout.readline().strip()
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
    yield address
    process.kill()
    process.communicate()


@pytest.fixture
def bucket(bucket_process):
    """A function that has the bucket refuse all requests with a status, 0 to serve them again."""

    def refuse(status):
        urllib.request.urlopen(f"{bucket_process}/refuse/{status}").close()

    urllib.request.urlopen(f"{bucket_process}/wipe?keep-buckets=true").close()
    yield refuse
    refuse(0)


@pytest.fixture
def save_onnx(tmp_path):
    """A function that writes an ONNX model and returns its path.

    Its input is `images`; outputs are constants, or lists of nodes that make them of `images`.
    """
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def save(outputs, shape=(1, 3, 32, 32), name="model.onnx"):
        nodes, made = [], []
        for key, value in outputs.items():
            if isinstance(value, np.ndarray):
                tensor = numpy_helper.from_array(value, key)
                nodes.append(helper.make_node("Constant", [], [key], value=tensor))
                kind, sides = tensor.data_type, value.shape
            else:
                operator, options, sides = value
                nodes.append(helper.make_node(operator, ["images"], [key], **options))
                kind = onnx.TensorProto.FLOAT
            made.append(helper.make_tensor_value_info(key, kind, sides))
        taken = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
        graph = helper.make_graph(nodes, "model", [taken], made)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def no_networks(monkeypatch):
    """Networks of the downstream measurements change nothing, and nothing is compiled."""
    from manas_jax.downstream import pictures

    class Identity:
        def __init__(self, file):
            self.provenance = {"file": file.name}

        def __call__(self, picture):
            return picture

    monkeypatch.setattr(pictures.Derainer, "from_pretrained", Identity)


@pytest.fixture
def squares(tmp_path):
    """Folders clean/, rainy/ and other/ of pictures with a bright square, which rain hides."""
    draw = np.random.default_rng(0)
    for i in range(4):
        clean = np.zeros((32, 48, 3), np.uint8)
        top, left = draw.integers(0, 20, 2)
        clean[top : top + 10, left : left + 10] = 250
        rainy = clean.copy()
        if i % 2:
            rainy[top : top + 6] = 0
        for folder, pixels in (("clean", clean), ("rainy", rainy), ("other", clean)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def refused(squares, capsys):
    """A function (status, words): a measurement ended with one line and wrote nothing."""

    def check(status, words):
        assert status == 1
        written = capsys.readouterr()
        assert written.err.startswith("error: ") and written.err.count("\n") == 1
        assert words in written.err and not written.out
        assert not (squares / "result.json").exists()

    return check
