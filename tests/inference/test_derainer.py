"""The derainer: any size and type, tiles like the whole, windows of the channel gates."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from manas_jax.errors import UserError
from manas_jax.inference import derainer as module
from manas_jax.inference.derainer import Derainer
from manas_jax.models.network import Network
from manas_jax.models.pooling import PooledFeatures
from manas_jax.models.variables import init_variables
from manas_jax.space import random_genotype
from manas_jax.workdir.weights import save_weights

SIDE = 8


@pytest.fixture(scope="module")
def derain(weights):
    return Derainer.from_pretrained(weights, pool_side=SIDE, engine="onnx")


@pytest.fixture(scope="module")
def derain_by_jax(weights):
    """Its first picture is as large as any of the tests, so they share that picture's program."""
    derain = Derainer.from_pretrained(weights, pool_side=SIDE, engine="jax")
    derain(LARGE)
    return derain


@pytest.fixture(scope="module")
def tiled(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_OVERLAP", 64)
        return Derainer.from_pretrained(weights, tile=130, pool_side=SIDE, engine="onnx")


def picture(height, width, dtype=np.uint8, seed=0):
    """Smooth colours with streaks."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(y / 9 + x / 31)[..., None] * [0.2, 0.1, 0.15] + 0.5
    rain = 0.3 * (draw.uniform(size=(height, width, 1)) > 0.95)
    pixels = np.clip(waves + rain, 0, 1)
    if np.dtype(dtype).kind == "f":
        return pixels.astype(dtype)
    return (pixels * np.iinfo(dtype).max).astype(dtype)


LARGE = picture(152, 264)


def test_windows_are_those_of_numpy():
    x = np.random.default_rng(0).uniform(size=(1, 20, 27, 3)).astype(np.float32)
    pools = PooledFeatures(jnp.asarray(x), SIDE)
    average, maximum = np.asarray(pools.average), np.asarray(pools.maximum)
    assert average.shape == maximum.shape == (1, 3, 4, 3)
    for i, j in np.ndindex(3, 4):
        window = x[0, max(0, i - 1) * SIDE : (i + 2) * SIDE, max(0, j - 1) * SIDE : (j + 2) * SIDE]
        np.testing.assert_allclose(average[0, i, j], window.mean((0, 1)), rtol=1e-5)
        np.testing.assert_array_equal(maximum[0, i, j], window.max((0, 1)))


def test_gate_is_interpolated_linearly():
    pools = PooledFeatures(jnp.zeros((1, 16, 12, 1)), 4)
    ramp = np.arange(4.0)[:, None] + 10 * np.arange(3.0)
    spread = np.asarray(pools.broadcast(jnp.asarray(ramp, jnp.float32)[None, ..., None]))[0, ..., 0]
    assert spread.shape == (16, 12)
    np.testing.assert_allclose(spread[2:14, 5], ramp[0, 0] + 10 * 0.875 + np.arange(12) / 4 + 0.125)
    np.testing.assert_allclose(spread[:2, 1], ramp[0, 0])  # kept beyond the outer samples


def test_a_window_as_large_as_the_picture_is_the_whole_picture(small):
    genotype, variables = small
    images = picture(16, 24, np.float32)[None]
    whole, windowed = (
        jax.jit(Network(genotype.space, genotype, pool_side=side).apply)(variables, images)
        for side in (None, 24)
    )
    np.testing.assert_allclose(windowed, whole, atol=1e-5)


@pytest.mark.parametrize("engine", ["derain", "derain_by_jax"])
def test_it_is_the_network(small, engine, request):
    """Whose program by JAX is for larger pictures."""
    derain = request.getfixturevalue(engine)
    genotype, variables = small
    pixels = picture(32, 48)
    images = pixels[None].astype(np.float32) / 255
    network = Network(genotype.space, genotype, pool_side=SIDE)
    expected = jax.jit(network.apply)(variables, images)[0]
    expected = np.floor(np.clip(expected, 0, 1) * 255 + 0.5)
    assert np.abs(derain(pixels).astype(int) - expected).max() <= 1  # a rounded half
    assert (derain(pixels) != pixels).mean() > 0.1 and derain(pixels).std() > 1


def test_both_engines_make_the_same_pictures_of_all_sizes(
    derain, derain_by_jax, count_compilations
):
    """Within a grey level; those of JAX share a program."""
    with count_compilations() as compilations:
        for size in np.random.default_rng(0).integers(1, 153, (12, 2)):
            pixels = picture(*size)
            assert np.abs(derain_by_jax(pixels).astype(int) - derain(pixels)).max() <= 1
        images = picture(40, 33, np.float32)
        np.testing.assert_allclose(derain(images), derain_by_jax(images), atol=1e-5)
        both = (x(picture(40, 33), self_ensemble=True) for x in (derain, derain_by_jax))
        assert np.abs(np.subtract(*both, dtype=int)).max() <= 1
    assert not compilations


@pytest.mark.parametrize(("accelerator", "engine"), [(False, "onnx"), (True, "jax")])
def test_jax_is_the_default_where_it_has_an_accelerator(weights, monkeypatch, accelerator, engine):
    monkeypatch.setattr(module, "has_accelerator", lambda: accelerator)
    assert Derainer.from_pretrained(weights).engine == engine


def test_devices_and_types_are_those_of_jax(weights):
    given = {"devices": jax.local_devices()[:1]}
    assert Derainer.from_pretrained(weights, **given).engine == "jax"
    for options in (given, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match="engine = onnx: computes in float32 on the CPU"):
            Derainer.from_pretrained(weights, engine="onnx", **options)


def test_bfloat16_is_close(weights, derain):
    rough = Derainer.from_pretrained(weights, pool_side=SIDE, dtype="bfloat16")
    pixels = picture(16, 16)
    difference = np.abs(rough(pixels).astype(int) - derain(pixels))
    assert 0 < difference.max() <= 8


def test_onnx_loads_no_jax(weights):
    """Nor does what decides that it is the engine."""
    code = """
import sys
import numpy as np
from manas_jax import Derainer, derain
restored = Derainer.from_pretrained(sys.argv[1])(np.zeros((9, 7, 3), np.uint8))
assert restored.shape == (9, 7, 3)
loaded = {"jax", "flax", "tensorflow", "scipy", "skimage"} & set(sys.modules)
assert not loaded, loaded
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, weights], check=True, timeout=60, env=environment)


def test_unknown_engine_is_refused(weights):
    with pytest.raises(UserError, match="engine = torch: give one of onnx, jax"):
        Derainer.from_pretrained(weights, engine="torch")


@pytest.mark.parametrize("self_ensemble", [False, True])
def test_tiles_give_what_the_whole_gives(tiled, derain, self_ensemble):
    pixels = picture(150, 260)
    assert tiled.tile == 136
    whole = derain(pixels, self_ensemble=self_ensemble)
    parts = tiled(pixels, self_ensemble=self_ensemble)
    assert np.abs(whole.astype(int) - parts).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (31, 33)])
def test_any_size(derain, size):
    pixels = picture(*size)
    restored = derain(pixels)
    assert restored.shape == pixels.shape and restored.dtype == np.uint8


def test_types_agree(derain):
    fine = derain(picture(16, 16, np.float32))
    assert fine.dtype == np.float32 and fine.min() >= 0 and fine.max() <= 1
    for dtype, step in ((np.uint8, 1 / 255), (np.uint16, 1 / 65535)):
        restored = derain((picture(16, 16, np.float32) / step + 0.5).astype(dtype))
        assert restored.dtype == dtype
        np.testing.assert_allclose(restored * step, fine, atol=4 * step)
    assert derain(picture(16, 16, np.float16)).dtype == np.float16


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
def test_both_byte_orders_are_taken(derain, dtype):
    pixels = picture(20, 30, np.uint16)
    restored = derain(pixels.astype(dtype))
    assert restored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(restored, derain(pixels))


def test_several_at_once_are_each_alone(derain):
    stack = np.stack([picture(16, 24, seed=i) for i in range(3)])
    np.testing.assert_array_equal(derain(stack)[1], derain(stack[1]))


@pytest.mark.parametrize(("platform", "groups"), [("cpu", [1, 1, 1]), ("gpu", [2, 1])])
def test_no_more_pictures_at_once_than_a_tile_is_large(weights, monkeypatch, platform, groups):
    """On a CPU one by one; elsewhere two of these are as large as a tile."""
    monkeypatch.setattr(module, "_OVERLAP", 8)
    stack = np.stack([picture(16, 24, seed=i) for i in range(3)])
    several, sizes = Derainer.from_pretrained(weights, tile=32, pool_side=SIDE), []

    def identity(pictures):
        sizes.append(len(pictures))
        return pictures

    identity.devices, identity.platform = 1, platform
    monkeypatch.setattr(several, "_run", identity)
    np.testing.assert_array_equal(several(stack), stack)
    assert sizes == groups


def test_the_ensemble_does_not_care_how_the_picture_lies(derain):
    pixels = picture(24, 32, np.float32)
    restored = derain(pixels, self_ensemble=True)
    turned = np.rot90(derain(np.rot90(pixels), self_ensemble=True), -1)
    np.testing.assert_allclose(turned, restored, atol=1e-5)
    assert np.abs(np.rot90(derain(np.rot90(pixels)), -1) - derain(pixels)).max() > 1e-4


def test_pillow_images_keep_their_mode_and_alpha(derain):
    image = Image.fromarray(picture(16, 24)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    restored = derain(image)
    assert (restored.mode, restored.size) == ("RGBA", (24, 16))
    np.testing.assert_array_equal(restored.getchannel("A"), image.getchannel("A"))
    grey = image.convert("L")
    grey.info = {"icc_profile": b"a profile", "exif": b"Exif\0\0"}
    restored = derain(grey)
    assert (restored.mode, restored.info) == ("L", grey.info)
    grey.info["transparency"] = grey.getpixel((0, 0))
    restored = derain(grey)
    assert restored.mode == "LA" and restored.getpixel((0, 0))[1] == 0
    assert restored.info.keys() == {"icc_profile", "exif"}
    palette = image.convert("RGB").quantize(16)
    restored = derain(palette)
    assert restored.mode == "RGB"
    np.testing.assert_array_equal(restored, derain(np.array(palette.convert("RGB"))))
    palette.info["transparency"] = 0
    restored = derain(palette)
    assert restored.mode == "RGBA"
    np.testing.assert_array_equal(restored.getchannel("A"), 255 * (np.array(palette) != 0))
    assert derain(image.convert("1")).mode == "L"
    print_ = Image.merge("CMYK", [Image.new("L", (24, 16))] * 3 + [image.getchannel("A")])
    restored = np.asarray(derain(print_))
    assert np.all(restored[..., 3] <= np.asarray(print_)[..., 3]) and restored[..., 3].any()
    deep = picture(16, 24, np.uint16)[..., 0]
    restored = derain(Image.fromarray(deep))
    assert restored.mode == "I;16"
    wide = Image.fromarray(deep.astype(np.int32))
    assert wide.mode == derain(wide).mode == "I"
    np.testing.assert_array_equal(derain(wide), restored)
    for wrong in (np.int32([[70_000]]), np.float32([[0.5]])):
        with pytest.raises(ValueError, match="give"):
            derain(Image.fromarray(wrong))
    difference = np.abs(np.asarray(restored).astype(int) - deep)
    assert 0 < difference.mean() < 4000 and deep.mean() > 30000


def test_files_come_back_as_upright_pillow_images(derain, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "someone"
    pixels, path = picture(16, 24), tmp_path / "a b.png"
    Image.fromarray(pixels).save(path, exif=exif, icc_profile=b"icc" * 50)
    for name in (str(path), path, path.as_uri()):
        restored = derain(name)
        np.testing.assert_array_equal(restored, derain(np.rot90(pixels, -1)))
    assert restored.info["icc_profile"] == b"icc" * 50
    restored.save(tmp_path / "c.jpg", exif=restored.info["exif"])
    kept = Image.open(tmp_path / "c.jpg").getexif()
    assert kept[ExifTags.Base.Artist] == "someone" and ExifTags.Base.Orientation not in kept
    again = derain(tmp_path / "c.jpg")  # has no orientation
    again.save(tmp_path / "d.jpg", quality=95, **again.info)
    assert Image.open(tmp_path / "d.jpg").getexif()[ExifTags.Base.Artist] == "someone"
    with pytest.raises(UserError, match="no such image"):
        derain(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("P", "RGBA"), ("RGB", "RGBA"), ("L", "LA"), ("1", "LA"), ("I;16", "I;16")],
)
def test_files_keep_their_transparency(derain, tmp_path, mode, expected):
    image = Image.fromarray(picture(16, 24)).convert(mode, palette=Image.Palette.ADAPTIVE)
    transparent = 0 if mode == "P" else image.getpixel((0, 0))
    image.save(tmp_path / "logo.png", transparency=transparent)
    with Image.open(tmp_path / "logo.png") as image:
        restored, same = derain(tmp_path / "logo.png"), derain(image)
    assert restored.mode == same.mode == expected
    if expected == "I;16":
        assert restored.info["transparency"] == same.info["transparency"] == transparent
        return
    alpha = restored.getchannel("A")
    assert alpha.getextrema() == (0, 255)
    np.testing.assert_array_equal(alpha, same.getchannel("A"))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 4, 4)), np.zeros((0, 4, 3))])
def test_other_shapes_are_refused(derain, wrong):
    with pytest.raises(ValueError, match="H, W, 3"):
        derain(wrong)


@pytest.mark.parametrize("wrong", [picture(8, 8).astype(np.float32), np.full((4, 4, 3), np.nan)])
def test_floats_beyond_white_are_refused(derain, wrong):
    with pytest.raises(ValueError, match=r"give floats in \[0, 1\], not from (0|nan|\d+) to"):
        derain(wrong)
    derain(np.float32([[[-0.1, 0.5, 1.1]]]))  # as after resizing


def test_other_types_are_refused(derain):
    with pytest.raises(ValueError, match="int32"):
        derain(np.zeros((4, 4, 3), np.int32))


def test_weights_gone_wrong_are_said(small):
    genotype, variables = small
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(UserError, match="NaN"):
        Derainer(genotype, broken, pool_side=SIDE)(LARGE)


def test_unknown_weights_and_tiles_too_small(weights):
    with pytest.raises(UserError, match="neither a file nor one of"):
        Derainer.from_pretrained("no_such")
    with pytest.raises(UserError, match="tile = 100: give more than 384"):
        Derainer.from_pretrained(weights, tile=100)


def test_a_supernet_is_refused(tmp_path, space):
    save_weights(tmp_path / "s.safetensors", init_variables(Network(space), 0), space, {})
    with pytest.raises(UserError, match="supernet"):
        Derainer.from_pretrained(tmp_path / "s.safetensors")


@pytest.mark.parametrize("name", module.pretrained.list_pretrained())
def test_every_pretrained_network_opens(name):
    assert Derainer.from_pretrained(name).provenance["commit"]
    assert module.pretrained.find(name).stat().st_size < 8e6


@pytest.mark.parametrize("name", ["general", pytest.param("rain100l", marks=pytest.mark.slow)])
def test_every_pretrained_network_removes(name):
    pixels = picture(40, 56)
    assert Derainer.from_pretrained(name)(pixels).std() < pixels.std()


def test_random_genotypes_work_with_windows(space):
    genotype = random_genotype(space, 3)
    variables = init_variables(Network(space, genotype), 0)
    assert Derainer(genotype, variables, pool_side=4)(picture(9, 9)).shape == (9, 9, 3)


def test_tiles_fit_into_memory(small):
    space = small[0].space
    assert [module.fitting_tile(space, free) for free in (2**40, 100e6, 1)] == [1536, 768, 512]


# Only one of the pictures needs the network to show that its parts fit together.
DEVICES = """
import json, sys
import numpy as np
from manas_jax.inference import derainer
derainer._OVERLAP = 64
derain = derainer.Derainer.from_pretrained(sys.argv[1], tile=136, pool_side=8, engine="jax")
engine = derain._run
programs, compile = {}, engine._compile
def noted(count, size):
    where = engine._sharding(size[0])
    shard = where.shard_shape((count, *size, 3))
    programs[name].append([size[0], shard[1], len(where.device_set)])
    return compile(count, size) if name == "168" else lambda images, inside: images
engine._compile = noted
restored = {}
with np.load(sys.argv[2]) as pictures:
    for name in pictures.files:
        engine._programs.clear()  # as if it came first
        programs[name] = []
        restored[name] = derain(pictures[name])
np.savez(sys.argv[3], **restored)
print(json.dumps(programs))
"""


def test_height_is_split_over_devices(tmp_path, weights, derain):
    """Rows of the tiles, rows a device, and devices, for pictures of several heights."""
    tiles = {
        "320": [[320, 80, 4]],  # comes out even
        "168": [[160, 40, 4]],  # does not: two tiles that do
        "600": [[352, 88, 4]],  # more than four devices can hold: two, of what they need
        "90": [[96, 24, 4]],  # no more than a tile
        "70": [[72, 72, 4]],  # as small and uneven: everywhere the same
    }
    pixels = {height: picture(int(height), 40) for height in tiles}
    np.savez(tmp_path / "in.npz", **pixels)
    flags = os.environ.get("XLA_FLAGS", "")
    files = [str(weights), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, *files],
        env={**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tiles
    with np.load(tmp_path / "out.npz") as restored:
        np.testing.assert_array_equal(restored["320"], pixels["320"])
        assert np.abs(derain(pixels["168"]).astype(int) - restored["168"]).max() <= 1
