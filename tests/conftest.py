"""What several test files share: quick compilation, tiny configurations and spaces."""

import os
import pathlib
import runpy
import subprocess
import sys

# Every program here is run a few times at most, so quick to compile counts; commands that the
# tests start inherit it. It has to be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import numpy as np
import pytest
from PIL import Image

from manas_jax.space import SearchSpace

ROOT = pathlib.Path(__file__).parent.parent
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


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m manas_jax.main` as a user does; gives the finished process."""

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "manas_jax.main", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def experiments():
    """`get_config` of every file in configs/, by name."""
    return {p.stem: runpy.run_path(str(p))["get_config"] for p in (ROOT / "configs").glob("*.py")}
