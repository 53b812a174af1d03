"""The page cuts and blends tiles as the package does, in Node.js."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT

from manas_jax.derain import DEFAULT_WEIGHTS
from manas_jax.inference import derainer as module
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.pretrained import list_pretrained
from manas_jax.inference.tiling import TileGrid

SOURCES = (ROOT / "web" / "src").as_uri()
POOL_SIDE, OVERLAP, STEP = module.POOL_SIDE, module._OVERLAP, module._STEP

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")


def node(script, cwd=None):
    """What a module prints as JSON; SOURCES in it is the address of the page's modules."""
    script = script.replace("SOURCES", SOURCES)
    command = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


def test_the_page_has_the_constants_of_the_package():
    source = (ROOT / "web" / "src" / "derain.js").read_text()
    values = {
        name: int(value) for name, value in re.findall(r"^const (\w+) = (\d+);", source, re.M)
    }
    names = ("POOL_SIDE", "OVERLAP", "STEP")
    assert [values.get(name) for name in names] == [POOL_SIDE, OVERLAP, STEP]


@needs_node
def test_grids_and_blend_weights():
    axes = [
        (length, tile)
        for tile in (416, 512, 768, 1024)
        for length in (32, tile, tile + POOL_SIDE, 2 * tile - OVERLAP, 1504, 3008, 4000, 6016)
    ]
    made = node(f"""
        import {{ blendWeights, tileGrid }} from "SOURCES/tiling.js";
        const grids = {json.dumps(axes)}.map(([length, tile]) =>
          tileGrid(length, tile, {OVERLAP}, {POOL_SIDE}, {STEP}));
        const weights = grids.map((grid) => blendWeights(grid).map((tile) => [...tile]));
        console.log(JSON.stringify({{ grids, weights }}));
    """)
    for (length, tile), grid, weights in zip(axes, made["grids"], made["weights"], strict=True):
        want = TileGrid.make(length, tile, OVERLAP, POOL_SIDE, STEP)
        assert (grid["tile"], tuple(grid["starts"])) == (want.tile, want.starts)
        np.testing.assert_allclose(weights, want.blend_weights(), atol=1e-7)


class Engine:
    """In the network's place: what it makes of a pixel depends on the tile."""

    devices, platform = 1, "cpu"

    def __call__(self, tiles):
        return tiles * (0.5 + tiles[:, :1, :1] / 2)


@pytest.fixture(scope="module")
def derainer():
    made = Derainer.from_pretrained(DEFAULT_WEIGHTS, tile=512)
    made._run = Engine()
    return made


@pytest.mark.parametrize("size", [(45, 70), (700, 33), (1000, 1201)])
@needs_node
def test_pictures(size, derainer, tmp_path):
    height, width = size
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (height, width, 4), np.uint8)
    (tmp_path / "picture").write_bytes(picture.tobytes())
    node(
        f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ derain }} from "SOURCES/derain.js";
        const run = async (tile) => tile.map((value, i) => value * (0.5 + tile[i % 3] / 2));
        const [height, width] = [{height}, {width}];
        const source = {{ height, width, data: readFileSync("picture") }};
        const target = {{ height, width, data: new Uint8ClampedArray(height * width * 4) }};
        let last;
        for await (last of derain(source, target, {derainer.tile}, run));
        if (last.done !== last.total) throw new Error("not all tiles were done");
        writeFileSync("restored", target.data);
        """,
        cwd=tmp_path,
    )
    made = np.frombuffer((tmp_path / "restored").read_bytes(), np.uint8).reshape(picture.shape)
    np.testing.assert_array_equal(made[..., 3], picture[..., 3])
    want = derainer(np.ascontiguousarray(picture[..., :3]))
    difference = np.abs(made[..., :3].astype(int) - want)
    assert difference.max() <= 1  # where rounding falls the other way
    assert difference.mean() < 1e-2


@needs_node
def test_weights_are_those_that_ship():
    names = node("""
        import { WEIGHTS } from "SOURCES/weights.js";
        console.log(JSON.stringify(WEIGHTS.map(({ name }) => name)));
    """)
    assert names[0] == DEFAULT_WEIGHTS
    assert sorted(names) == list_pretrained()
