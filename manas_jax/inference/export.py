"""Exports a trained network to other runtimes.

    python -m manas_jax.inference.export WEIGHTS --format {stablehlo,onnx,savedmodel} --out PATH

WEIGHTS is the name of pretrained weights or the weights file of a derived network. The export is
one float32 function with the weights as constants. It does what `Derainer` does to an image without
tiles, for any N, H and W:

    images (N, H, W, 3) in [0, 1] -> restored (N, H, W, 3), clipped to [0, 1]

`stablehlo`: a file for CPU, CUDA and TPU, which needs JAX alone:

    import jax.export, pathlib
    exported = jax.export.deserialize(bytearray(pathlib.Path("PATH").read_bytes()))
    restored = exported.call(images)

`savedmodel`: a TensorFlow folder for CPU, CUDA and TPU; its signature `serving_default` takes
`images` and returns `restored`.

`onnx`: a file of opset 21 with input `images` and output `restored`. `--layout nchw` makes both
(N, 3, H, W). `--size` fixes H and W, for runtimes that need it; several sizes give one file each,
such as `net_320x480.onnx` for `net.onnx`.

Before an export is moved to PATH, a fresh process runs it in its own runtime, on the CPU, and its
outputs are compared with those of the network.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from manas_jax import registry
from manas_jax.buckets import check_local_options
from manas_jax.errors import UserError, check_extra
from manas_jax.inference import onnx_graph
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.fold_batch_norm import fold
from manas_jax.inference.jax_engine import folded_network
from manas_jax.inference.tiling import multiple
from manas_jax.models.network import Network
from manas_jax.runtime import signals

TOLERANCE = 1e-4
"""Largest accepted difference from the network's outputs, which are in [0, 1]."""

PLATFORMS = ("cpu", "cuda", "tpu")
# Shapes for checking an export for any size, the largest first; one needs no padding.
_SHAPES = tuple((2, *size, 3) for size in ((96, 160), (95, 67), (33, 130), (1, 31), (37, 29)))

Restoration = Callable[[jax.Array], jax.Array]
"""images (N, H, W, 3) in [0, 1] -> restored (N, H, W, 3) in [0, 1]."""


def restoration(derainer: Derainer) -> Restoration:
    """The function to export, for images of any size, also symbolic ones.

    It pads as `Derainer` does, so that the network has nothing to pad: `jnp.pad` cannot mirror a
    symbolic number of rows.
    """
    space = derainer.genotype.space
    network = Network(space, derainer.genotype, pool_side=derainer.pool_side)
    folded, apply = fold(derainer.variables), folded_network(network).apply
    side = multiple(space, derainer.pool_side)

    def restore(images: jax.Array) -> jax.Array:
        height, width = images.shape[1:3]
        padded = mirror_pad(mirror_pad(images, 1, side), 2, side)
        return jnp.clip(apply(folded, padded), 0, 1)[:, :height, :width]

    return restore


def mirror_pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Pads the end of an axis to a multiple with mirror images, repeated as often as needed."""
    side = x.shape[axis]
    if isinstance(side, int) and side % multiple == 0:
        return x
    index = jnp.arange((side + multiple - 1) // multiple * multiple) % (2 * side)
    return jnp.take(x, jnp.minimum(index, 2 * side - 1 - index), axis=axis, mode="clip")


def _write_stablehlo(derainer: Derainer, path: pathlib.Path) -> None:
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, h, w, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(restoration(derainer)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def _write_savedmodel(derainer: Derainer, path: pathlib.Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        restoration(derainer),
        polymorphic_shapes=["n, h, w, 3"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.restore = tf.function(
        lambda images: {"restored": converted(images)},
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, name="images")],
        autograph=False,
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.restore})


def _write_onnx(
    derainer: Derainer,
    path: pathlib.Path,
    size: tuple[int, int] | None = None,
    layout: str = onnx_graph.LAYOUT,
) -> None:
    network = derainer.genotype, derainer.variables, derainer.pool_side
    path.write_bytes(onnx_graph.build(*network, size=size, layout=layout).SerializeToString())


@dataclasses.dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
      write: writes the file or folder; with the options of `onnx_graph.build` if `options`.
      run: Python source that defines `restore`, from NumPy to NumPy, of the export at `path`.
      options: whether there are any.
      package: a package needed beyond those of de-raining, which the extra `train` brings; ''.
      is_export: whether a file or folder is an export of this format.
    """

    write: Callable[..., None]
    run: str
    is_export: Callable[[pathlib.Path], bool]
    options: bool = False
    package: str = ""


def _is_stablehlo(path: pathlib.Path) -> bool:
    try:
        jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception:  # no file, or another program's bytes, which fail in many ways
        return False
    return True


def _is_onnx(path: pathlib.Path) -> bool:
    """Whether the name of the producer, which comes first, is that of `onnx_graph`."""
    try:
        with path.open("rb") as file:
            return onnx_graph.PRODUCER.encode() in file.read(64)
    except OSError:  # such as a folder
        return False


FORMATS = {
    "stablehlo": Format(
        _write_stablehlo,
        """
import jax.export, pathlib
restore = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
""",
        _is_stablehlo,
    ),
    "onnx": Format(
        _write_onnx,
        """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
nchw = session.get_inputs()[0].shape[1] == 3
def restore(images):
    images = images.transpose(0, 3, 1, 2) if nchw else images
    (restored,) = session.run(["restored"], {"images": images})
    return restored.transpose(0, 2, 3, 1) if nchw else restored
""",
        _is_onnx,
        options=True,
    ),
    "savedmodel": Format(
        _write_savedmodel,
        """
import tensorflow as tf
serve = tf.saved_model.load(path).signatures["serving_default"]
restore = lambda images: serve(images=tf.constant(images))["restored"]
""",
        lambda path: (path / "saved_model.pb").is_file(),
        package="tensorflow",
    ),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
      path: the file or folder.
      difference: the largest difference from the network's outputs.
      bytes: total size of its files.
      seconds: duration of export and check.
    """

    path: pathlib.Path
    difference: float
    bytes: int
    seconds: float


def export(
    derainer: Derainer,
    format: str,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Exports a trained network; writes nothing unless the export is complete and correct.

    Args:
      derainer: the network, run by JAX, which the export is compared with.
      format: a name in `FORMATS`.
      out: the file or folder to write.
      overwrite: whether an export of the same format may be replaced.
      **options: of an ONNX export, `size` and `layout` of `onnx_graph.build`.

    Raises:
      UserError: a package is missing, `out` exists or cannot be written, or the outputs of the
        export differ from those of the network.
    """
    out, kind, start = pathlib.Path(out), FORMATS[format], time.monotonic()
    check(format, out, overwrite)
    size = options.get("size")
    shapes = ((1, *size, 3), (2, *size, 3)) if size else _SHAPES
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            new = pathlib.Path(temporary) / "new"
            kind.write(derainer, new, **options)
            difference = verify(format, new, derainer, shapes)
            files = [new, *new.rglob("*")]
            total = sum(file.stat().st_size for file in files if file.is_file())
            if out.is_dir():  # a rename cannot replace a folder with files in it
                os.replace(out, pathlib.Path(temporary) / "old")
            os.replace(new, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror or error})") from None
    return Exported(out, difference, total, time.monotonic() - start)


def check(format: str, out: pathlib.Path, overwrite: bool) -> None:
    """Checks what an export needs, before the work begins.

    Raises:
      UserError: a package of the format is missing, or `out` exists and may not be replaced.
    """
    kind = FORMATS[format]
    if kind.package:
        check_extra("train", kind.package, subject=f"--format {format}:")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"--out {out}: exists; choose another path or give --overwrite")
    if not kind.is_export(out):
        raise UserError(
            f"--out {out}: not a {format} export, and --overwrite replaces nothing else; "
            "choose another path"
        )


def verify(
    format: str, path: pathlib.Path, original: Derainer, shapes: Sequence[tuple[int, ...]]
) -> float:
    """Runs an export on noise in a fresh process and compares it with the network.

    Args:
      format: a name in `FORMATS`.
      path: the export.
      original: the network.
      shapes: of the batches of images.

    Returns:
      The largest difference.

    Raises:
      UserError: the export does not run, or differs by more than `TOLERANCE`.
    """
    original = _without_tiles(original, max(max(shape[1:3]) for shape in shapes))
    draw = np.random.default_rng(0)
    batches = [draw.uniform(size=shape).astype(np.float32) for shape in shapes]
    with jax.default_matmul_precision("highest"):  # accelerators round products by default
        wanted = [original(images) for images in batches]
    differences = []
    for want, got in zip(wanted, _run(format, path, batches), strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise UserError(
                f"--format {format}: the export returns {got.dtype} of shape {got.shape}, the "
                f"network {want.dtype} of {want.shape}; nothing was written"
            )
        differences.append(np.abs(got - want).max())
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:  # also for NaN
        raise UserError(
            f"--format {format}: the export differs from the network by {largest:.1e}, more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )
    return largest


def _without_tiles(derainer: Derainer, side: int) -> Derainer:
    """The derainer, with tiles as large as pictures of this side, which an export does not cut."""
    if side <= derainer.tile:
        return derainer
    return Derainer(
        derainer.genotype,
        derainer.variables,
        tile=side,
        pool_side=derainer.pool_side,
        engine=derainer.engine,
        source=derainer.source,
    )


def _run(format: str, path: pathlib.Path, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of an export for each batch, from a process that does not know the network."""
    code = f"""
import sys
import numpy as np
path, images, restored = sys.argv[1:]
{FORMATS[format].run}
with np.load(images) as batches:
    np.savez(restored, *[restore(batches[name]) for name in batches.files])
"""
    with tempfile.TemporaryDirectory() as folder:
        images, restored = (os.path.join(folder, name) for name in ("images.npz", "restored.npz"))
        np.savez(images, *batches)
        # This process may hold the accelerator, which may also round differently.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(path.absolute()), images, restored],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise UserError(
                f"--format {format}: the export does not run ({reason}); nothing was written"
            )
        with np.load(restored) as results:
            return [results[name] for name in results.files]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.inference.export",
        description="Exports a trained network to another runtime and checks it there.",
    )
    parser.add_argument("weights", help="name of pretrained weights, or a weights file")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="file or folder to write")
    parser.add_argument(
        "--size",
        type=_size,
        nargs="+",
        metavar="HxW",
        help="onnx: fix height and width of the images, such as 320x480; one file per size",
    )
    parser.add_argument(
        "--layout",
        choices=onnx_graph.LAYOUTS,
        help=f"onnx: axes of input and output (default: {onnx_graph.LAYOUT})",
    )
    registry.add_import_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    args = parser.parse_args(arguments)
    return signals.run_command(lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    """Writes the exports that the options ask for.

    Raises:
      UserError: what the user can correct.
    """
    check_local_options(args)
    registry.import_modules(args.imports)
    options = {"layout": args.layout} if args.layout else {}
    if (args.size or options) and not FORMATS[args.format].options:
        given = "--size" if args.size else "--layout"
        raise UserError(f"{given}: not an option of a {args.format} export; omit it")
    targets = _targets(args.out, args.size or [None])
    for path in targets:
        check(args.format, path, args.overwrite)
    derainer = Derainer.from_pretrained(args.weights, engine="jax")
    for path, size in targets.items():
        fixed = {"size": size} if size else {}
        done = export(derainer, args.format, path, overwrite=args.overwrite, **options, **fixed)
        print(_summary(done))


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give height and width as in 320x480")
    return height, width


def _targets(
    out: pathlib.Path, sizes: Sequence[tuple[int, int] | None]
) -> dict[pathlib.Path, tuple[int, int] | None]:
    """File -> size, None for any."""
    if len(sizes) == 1:
        return {out: sizes[0]}
    return {out.with_name(f"{out.stem}_{h}x{w}{out.suffix}"): (h, w) for h, w in sizes}


def _summary(exported: Exported) -> str:
    return (
        f"{exported.path}: {exported.bytes:,} bytes, differs from the network by at most "
        f"{exported.difference:.1e}, {exported.seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
