"""Every export runs in its own runtime, here at other sizes than those of its own check."""

import dataclasses
import importlib.util
import signal
import sys

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
from conftest import moved_variables

from manas_jax.errors import UserError
from manas_jax.inference import export, pretrained
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.tiling import multiple
from manas_jax.models import layers
from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables
from manas_jax.space import ALL_COLUMNS, CANDIDATES, Genotype, SearchSpace
from manas_jax.workdir import weights

PLAIN = Genotype(
    SearchSpace(
        channels=(4, 8),
        branches=(2, 2),
        columns=(1, 2),
        stem_blocks=1,
        attention_groups=1,
        column_choices=ALL_COLUMNS,
        widths=(0.25, 0.5, 1),
    ),
    (("parallel",), ("identity", "fusion")),
    ((("skip_connect",), ("sep_conv_3x3",)), (("SE_A_M",), ("dil_conv_3x3_spatial",))),
    (((0.5, 0.25),), ((), ())),
)
RESIDUAL = Genotype(
    SearchSpace(
        channels=(4, 8),
        branches=(2,),
        columns=(1,),
        stem_blocks=1,
        attention_groups=2,
        residual=True,
        patch=2,
    ),
    (("fusion",),),
    ((("dil_conv_3x3", "SE", "none"), ("CBAM", "sep_conv_3x3_spatial", "SE")),),
)
OTHER = 3, 15, 1  # pictures, rows and columns that no export is checked with
GENOTYPES = pytest.mark.parametrize("genotype", [PLAIN, RESIDUAL], ids=["plain", "residual"])


def trained(genotype):
    """A network, and variables away from their initial values."""
    network = Network(genotype.space, genotype, pool_side=8 if genotype is RESIDUAL else None)
    return network, moved_variables(network)


def ready(network, variables):
    """What `export` takes."""
    genotype, side = network.genotype, network.pool_side
    return Derainer(genotype, variables, pool_side=side, engine="jax")


def noise(*shape):
    return np.random.default_rng(2).uniform(size=(*shape, 3)).astype(np.float32)


def restored(network, variables, images):
    """Expected outputs, mostly inside the range, so that clipping hides nothing."""
    padded = layers.pad_to_multiple(images, multiple(network.space, network.pool_side))
    raw = np.asarray(jax.jit(network.apply)(variables, padded))
    raw = raw[:, : images.shape[1], : images.shape[2]]
    assert np.mean((raw > 0.01) & (raw < 0.99)) > 0.5
    assert np.abs(raw - images).mean() > 0.01
    return np.clip(raw, 0, 1)


@pytest.fixture(scope="module")
def small(space):
    """A network that compiles quickly."""
    return ready(*trained(Genotype(space, (("parallel",),), ((("SE",), ("SE",)),))))


@pytest.fixture
def weights_file(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save_weights(path, small.variables, small.genotype, {})
    return path


def test_both_networks_together_have_all_choices():
    columns = {name for g in (PLAIN, RESIDUAL) for cell in g.columns for name in cell}
    edges = {
        name for g in (PLAIN, RESIDUAL) for cell in g.attention for edges in cell for name in edges
    }
    assert columns == set(ALL_COLUMNS) and edges == set(CANDIDATES)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 9, 16])
def test_mirror_pad_equals_the_padding_of_the_network(side):
    x = noise(1, side, 5)
    padded = export.mirror_pad(export.mirror_pad(x, 1, 8), 2, 8)
    np.testing.assert_array_equal(padded, layers.pad_to_multiple(x, 8))


@GENOTYPES
def test_stablehlo_equals_the_network_at_any_size(genotype, tmp_path):
    network, variables = trained(genotype)
    done = export.export(ready(network, variables), "stablehlo", tmp_path / "new" / "net.bin")
    assert [done.path] == list((tmp_path / "new").iterdir())
    assert done.bytes == done.path.stat().st_size and done.difference <= export.TOLERANCE

    exported = jax.export.deserialize(bytearray(done.path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    images = noise(*OTHER)
    want = restored(network, variables, images)
    np.testing.assert_allclose(exported.call(images), want, atol=1e-5)


def test_savedmodel_equals_the_network_at_any_size(tmp_path):
    import tensorflow as tf

    network, variables = trained(RESIDUAL)
    done = export.export(ready(network, variables), "savedmodel", tmp_path / "net")
    assert [done.path] == list(tmp_path.iterdir())
    assert done.bytes == sum(x.stat().st_size for x in done.path.rglob("*") if x.is_file())

    serve = tf.saved_model.load(str(done.path)).signatures["serving_default"]
    assert list(serve.structured_input_signature[1]) == ["images"]
    images = noise(*OTHER)
    want = restored(network, variables, images)
    got = serve(images=tf.constant(images))["restored"].numpy()
    np.testing.assert_allclose(got, want, atol=export.TOLERANCE)


def test_onnx_of_fixed_size_and_other_layout(small, tmp_path, capfd):
    """`test_onnx_graph.py` has those of any size."""
    options = {"size": (15, 9), "layout": "nchw"}
    done = export.export(small, "onnx", tmp_path / "net.onnx", **options)
    assert [done.path] == list(tmp_path.iterdir()) and done.difference <= export.TOLERANCE
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("images", ["N", 3, 15, 9])]
    images = noise(3, 15, 9)
    (got,) = session.run(["restored"], {"images": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(got.transpose(0, 2, 3, 1), small(images), atol=1e-5)
    assert capfd.readouterr() == ("", "")  # the runtime does not complain


def test_onnx_takes_any_size(small, tmp_path, monkeypatch):
    done = export.export(small, "onnx", tmp_path / "net.onnx")
    assert done.difference <= export.TOLERANCE
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", "H", "W", 3]


def test_a_size_larger_than_the_tile_is_compared_without_tiles(small, tmp_path):
    tiled = Derainer(
        small.genotype, small.variables, tile=386, pool_side=small.pool_side, engine="jax"
    )
    wide = noise(1, 4, 800)
    by_tiles = np.abs(tiled(wide) - small(wide)).max()
    done = export.export(tiled, "onnx", tmp_path / "net.onnx", size=(4, 800))
    assert done.difference < by_tiles / 4


def test_command(weights_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "net.bin"
    arguments = [str(weights_file), "--format=stablehlo", f"--out={out}"]
    assert export.main(arguments) == 0
    first = out.read_bytes()
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: {len(first):,} bytes") and line.count("\n") == 1

    assert export.main(arguments) == 1
    assert "exists" in error_line(capsys)
    monkeypatch.setattr(export, "verify", lambda *_: 0.0)  # slow, and just done
    assert export.main([*arguments, "--overwrite"]) == 0
    assert len(out.read_bytes()) == len(first)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "interrupted; what was written is complete\n"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_signals_leave_nothing(weights_file, tmp_path, monkeypatch, capsys, number, status, line):
    monkeypatch.setattr(export, "verify", lambda *_: signal.raise_signal(number))
    arguments = [str(weights_file), "--format=onnx", f"--out={tmp_path / 'net.onnx'}"]
    with pytest.raises(SystemExit) as stopped:
        sys.exit(export.main(arguments))
    assert (stopped.value.code, capsys.readouterr().err) == (status, line)
    assert not list(tmp_path.iterdir())


def error_line(capsys):
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_several_sizes_give_one_file_each(weights_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "verify", lambda *_: 0.0)  # slow, and tested elsewhere
    out = tmp_path / "net.onnx"
    arguments = [str(weights_file), "--format=onnx", f"--out={out}", "--size", "2x4", "3x2"]
    assert export.main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"net_2x4.onnx", "net_3x2.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "net_3x2.onnx")
    assert session.get_inputs()[0].shape == ["N", 3, 2, 3]

    (tmp_path / "net_2x4.onnx").unlink()
    assert export.main(arguments) == 1
    assert "net_3x2.onnx: exists" in error_line(capsys)
    assert not (tmp_path / "net_2x4.onnx").exists()  # checked before the work begins


@pytest.mark.parametrize("text", ["320", "0x8", "axb", "8x8x3"])
def test_malformed_size_is_refused(text, weights_file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([str(weights_file), "--format=onnx", f"--out={tmp_path}/x", "--size", text])
    assert "as in 320x480" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--size=8x8", "--layout=nchw"])
def test_options_of_onnx_are_refused_for_other_formats(option, weights_file, tmp_path, capsys):
    out = f"--out={tmp_path / 'net'}"
    assert export.main([str(weights_file), "--format=stablehlo", out, option]) == 1
    assert f"{option.split('=')[0]}: not an option of a stablehlo export" in error_line(capsys)


def test_supernet_is_refused(space, tmp_path, capsys):
    path = tmp_path / "supernet.safetensors"
    weights.save_weights(path, init_variables(Network(space), 0), space, {})
    assert export.main([str(path), "--format=stablehlo", f"--out={tmp_path / 'net'}"]) == 1
    assert f"{path}: weights of a supernet" in error_line(capsys)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_package_is_named(weights_file, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: None if "tensor" in x else find(x))
    assert export.main([str(weights_file), "--format=savedmodel", f"--out={tmp_path / 'net'}"]) == 1
    text = error_line(capsys)
    assert "needs tensorflow" in text and "requirements-train.txt" in text


def patch_write(monkeypatch, format, write):
    changed = dataclasses.replace(export.FORMATS[format], write=write)
    monkeypatch.setitem(export.FORMATS, format, changed)


def changed(change):
    """A writer of the network's outputs changed by a function of inputs and outputs."""

    def write(derainer, path):
        restore = export.restoration(derainer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "restoration", lambda _: lambda x: change(x, restore(x)))
            export._write_stablehlo(derainer, path)

    return write


def damaged(derainer, path):
    export._write_stablehlo(derainer, path)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (changed(lambda x, y: y + 1e-3 * x), "differs from the network by 1.0e-03"),
        (changed(lambda x, y: y.astype("float16")), "float16"),
        (changed(lambda x, y: y / 0 * 0), "differs from the network by nan"),
        (damaged, "does not run"),
    ],
)
def test_wrong_export_does_not_replace_the_old_one(write, message, small, tmp_path, monkeypatch):
    patch_write(monkeypatch, "stablehlo", write)
    if write is not damaged:
        monkeypatch.setattr(export, "_run", run_here)
    out = tmp_path / "net.bin"
    old = bytes(
        jax.export.export(jax.jit(jax.numpy.sin))(jax.ShapeDtypeStruct((3,), "f4")).serialize()
    )
    out.write_bytes(old)
    with pytest.raises(UserError, match=message):
        export.export(small, "stablehlo", out, overwrite=True)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == old


def run_here(format, path, batches):
    """What a process of its own does."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return [np.asarray(exported.call(images)) for images in batches]


def test_wrong_padding_is_detected(small, tmp_path, monkeypatch):
    def repeated(x, axis, multiple):
        side = x.shape[axis]
        index = jax.numpy.arange((side + multiple - 1) // multiple * multiple) % side
        return jax.numpy.take(x, index, axis=axis, mode="clip")

    monkeypatch.setattr(export, "mirror_pad", repeated)
    monkeypatch.setattr(export, "_run", run_here)
    with pytest.raises(UserError, match="differs from the network"):
        export.export(small, "stablehlo", tmp_path / "net.bin")
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_only_exports_of_the_same_format(small, tmp_path, monkeypatch):
    def write(derainer, path):
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"new")

    patch_write(monkeypatch, "savedmodel", write)
    monkeypatch.setattr(export, "verify", lambda *_: 0.0)
    out = tmp_path / "net"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for format in ("savedmodel", "stablehlo"):
        with pytest.raises(UserError, match=f"not a {format} export"):
            export.export(small, format, out, overwrite=True)
    assert (out / "thesis.tex").exists()

    (out / "thesis.tex").rename(out / "saved_model.pb")
    export.export(small, "savedmodel", out, overwrite=True)
    assert list(tmp_path.rglob("*")) == [out, out / "saved_model.pb"]
    assert (out / "saved_model.pb").read_bytes() == b"new"


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_overwrite_replaces_no_other_files(tmp_path, format):
    other = tmp_path / "net.safetensors"
    other.write_bytes(pretrained.find("general").read_bytes()[:1000])
    with pytest.raises(UserError, match=f"not a {format} export"):
        export.check(format, other, overwrite=True)


def test_unwritable_path_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"net\.bin: cannot write there"):
        export.export(small, "stablehlo", tmp_path / "file" / "net.bin")
