"""Imports checkpoints of the authors' PyTorch code.

    python -m manas_jax.inference.import_torch CHECKPOINT [--genotype FILE] --out DIR

writes `DIR/weights.safetensors` (see `manas_jax.workdir.weights`) and `DIR/genotype.json`.
CHECKPOINT holds the state dictionary of a supernet or a derived network, as

- a PyTorch file: a state dictionary, or a dictionary with one under `state_dict`. It needs PyTorch,
  which loads it with `weights_only=True`, so that no code in it can run;
- an `.npz` or `.safetensors` file with the same tensors under the same names, without PyTorch.

Beside the state dictionary there may be `arch_param` (a row of two logits per column), `auto_param`
(a row of nine logits per attention edge) and `attention` (the index of the chosen candidate per
edge), each a tensor or a list of one tensor. Channels and numbers of blocks, columns and branches
follow from the shapes. Weights of candidates and columns that the network does not run are dropped;
any other missing, additional or misshapen tensor is an error.

The state dictionary of a derived network does not say which candidates it runs. They are read from
`--genotype` (a genotype.json, or the checkpoint of the search), else from `attention`, else from
`auto_param` as the authors' code does: see `released_derivation`.

Supernet weights run here as the paper describes: a softmax over all logits, and both choices of a
column applied to its input. The authors' search ran differently, so its outputs are not reproduced.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import pickle
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from manas_jax import __version__
from manas_jax.buckets import check_local_options
from manas_jax.errors import UserError, reading
from manas_jax.files import first_few
from manas_jax.runtime import signals
from manas_jax.space import CANDIDATES, COLUMNS, Genotype, SearchSpace, derive
from manas_jax.workdir import weights

State = Mapping[str, np.ndarray]
"""A PyTorch state dictionary as NumPy arrays: dotted names, channels first."""

_NESTING = 4  # lists around a tensor
_COMPRESSION = 100  # times that an .npz is smaller than its content, at most

RESAVE = (
    "a pickled module runs code when it is loaded, which this importer never does. If you trust "
    "the file, save its tensors where the authors' code runs: m = torch.load(FILE, "
    "map_location='cpu'); torch.save({'state_dict': m.state_dict(), 'attention': [int(x.weights) "
    "for x in m.modules() if type(x).__name__ == 'FixedMixOp']}, NEW_FILE)"
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
      state: the state dictionary.
      columns: logits, (columns, 2); None if the file has none.
      attention: logits, (edges of all modules, 9); None if the file has none.
      chosen: (edges of all modules,), index into `CANDIDATES`; None if the file has none.
    """

    state: State
    columns: np.ndarray | None = None
    attention: np.ndarray | None = None
    chosen: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint as variables of this project.

    Attributes:
      variables: 'params' and 'batch_stats'; for a supernet with logits also 'architecture'.
      space: the search space.
      supernet: whether the variables are those of the supernet.
      genotype: of the derived network, or the most probable one of a supernet, None without logits.
      dropped: names of the tensors that the network does not use.
    """

    variables: dict[str, Any]
    space: SearchSpace
    supernet: bool
    genotype: Genotype | None
    dropped: tuple[str, ...]

    @property
    def network(self) -> Genotype | SearchSpace:
        """The argument `network` of `weights.save_weights`."""
        return self.space if self.supernet or self.genotype is None else self.genotype


# A rule renames the head of one of our paths, then the rules are applied to the rest. The groups of
# the pattern are passed as integers. Rules also apply to paths within single modules.
_RULES: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"stem_block(\d+)", lambda i: f"stage1.{i}"),
    (r"cell(\d+)_transition", lambda s: f"transition{s + 1}"),
    (r"cell(\d+)_column(\d+)", lambda s, i: f"stage{s + 2}.{i}"),
    (r"cell(\d+)_attention(\d+)", lambda s, b: f"auto{s + 1}.{b}"),
    (r"head_fusion", lambda: "final_fuse"),
    (r"head_conv", lambda: "final_conv.0"),
    # Columns and transitions.
    (r"parallel", lambda: "horizontal"),
    (r"fusion", lambda: "fuse"),
    (r"branch(\d+)(?=/layer)", lambda b: f"branches.{b}.0"),
    (r"from(\d+)_to(\d+)", lambda source, to: f"fuse_layers.{to}.{source}"),
    (r"from(\d+)_to(\d+)_step(\d+)", lambda source, to, k: f"fuse_layers.{to}.{source}.{k}"),
    (r"branch(\d+)", lambda b: f"transition_layers.{b}"),
    (r"branch(\d+)_step(\d+)", lambda b, k: f"transition_layers.{b}.{k}"),
    # Blocks of the stem and of parallel columns.
    (r"shortcut", lambda: "downsample"),
    (r"layer(\d+)/conv", lambda i: f"conv{i + 1}"),
    (r"layer(\d+)/norm", lambda i: f"bn{i + 1}"),
    # Attention modules.
    (r"merge(\d+)/conv", lambda i: f"channel_back.{3 * i}"),
    (r"merge(\d+)/norm", lambda i: f"channel_back.{3 * i + 1}"),
    (r"group_gate", lambda: "se"),
    (r"module_gate", lambda: "se2"),
    (r"edge(\d+)", lambda e: f"ops.{e}"),
    # Candidates.
    (r"CBAM/conv", lambda: "ops.8.SpatialGate.spatial.conv"),
    (r"CBAM/norm", lambda: "ops.8.SpatialGate.spatial.bn"),
    *((name, lambda i=i: f"ops.{i}") for i, name in enumerate(CANDIDATES)),
    (r"conv(\d+)/spatial", lambda i: f"op.{4 * i}.weight"),
    (r"conv(\d+)/pointwise", lambda i: f"op.{4 * i + 1}.weight"),
    (r"norm(\d+)", lambda i: f"op.{4 * i + 2}"),
    (r"mlp/squeeze", lambda: "fc.0"),
    (r"mlp/excite", lambda: "fc.2"),
    (r"channel/mlp/squeeze", lambda: "ChannelGate.mlp.1"),
    (r"channel/mlp/excite", lambda: "ChannelGate.mlp.3"),
    # Elsewhere a convolution and its BatchNorm are entries 0 and 1 of a sequence.
    (r"conv", lambda: "0"),
    (r"norm", lambda: "1"),
    (r"kernel|scale", lambda: "weight"),
    (r"bias", lambda: "bias"),
    (r"mean", lambda: "running_mean"),
    (r"var", lambda: "running_var"),
)


def torch_name(path: str, derived: bool = False) -> str:
    """The PyTorch name of one of our parameters or statistics.

    Args:
      path: its path without the collection, such as
        'cell0_column0/fusion/from0_to1_step0/conv/kernel', or its end within a module.
      derived: whether of a derived network, where names do not contain the choice of a column.

    Raises:
      ValueError: no rule matches the path.
    """
    rest, parts = path, []
    while rest:
        matches = ((re.match(rf"(?:{head})(?:/|$)", rest), rename) for head, rename in _RULES)
        match, rename = next(((m, rename) for m, rename in matches if m), (None, None))
        if match is None:
            raise ValueError(f"no rule renames {rest!r} of {path!r}")
        if not (derived and match[0].rstrip("/") in COLUMNS):
            parts.append(rename(*map(int, match.groups())))
        rest = rest[match.end() :]
    return ".".join(parts)


def convert(
    state: State, shapes: Mapping[str, Any], derived: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Converts the variables of a network or a single module from a state dictionary.

    Args:
      state: the state dictionary.
      shapes: flat name, such as 'params/conv/kernel' -> leaf with a shape.
      derived: see `torch_name`.

    Returns:
      The nested variables, float32, and the names in `state` that are not among them.

    Raises:
      UserError: a tensor is missing, has another shape or is not finite.
    """
    names = {flat: torch_name(flat.partition("/")[2], derived) for flat in shapes}
    if missing := set(names.values()) - state.keys():
        raise UserError(f"missing tensors: {first_few(sorted(missing))}")
    for flat, name in names.items():
        _check_shape(name, state[name], _torch_shape(shapes[flat].shape))
        if not np.isfinite(state[name]).all():
            raise UserError(f"tensor {name} has values that are not finite")
    variables = {flat: _channels_last(state[name]) for flat, name in names.items()}
    return weights.unflatten(variables), tuple(sorted(state.keys() - set(names.values())))


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Kernels OIHW -> HWIO, matrices (out, in) -> (in, out), float32."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(x.ndim)
    return np.ascontiguousarray(x if order is None else x.transpose(order), np.float32)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of `_channels_last` for shapes."""
    return tuple(reversed(shape)) if len(shape) == 2 else (*shape[:1:-1], *shape[:2])


def _check_shape(name: str, tensor: np.ndarray, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise UserError(f"tensor {name} has the shape {tensor.shape}, expected {expected}")


def import_checkpoint(checkpoint: Checkpoint, genotype: Genotype | None = None) -> Imported:
    """Converts a checkpoint to variables and a genotype.

    Args:
      checkpoint: the checkpoint.
      genotype: of a derived network; replaces what the checkpoint says.

    Raises:
      UserError: a tensor is missing, additional, misshapen or not finite; logits do not match the
        network; the genotype of a derived network is unknown or contradicts its tensors.
    """
    state = checkpoint.state
    space = infer_space(state)
    if any(re.match(r"stage\d+\.\d+\.(horizontal|fuse)\.", name) for name in state):
        if genotype is not None:
            raise UserError("holds a supernet, which has no genotype: omit --genotype")
        return _import_supernet(checkpoint, space)
    if genotype is None:
        genotype = _own_genotype(checkpoint, space)
    if genotype.space != space:
        fields = [k for k, v in vars(space).items() if getattr(genotype.space, k) != v]
        raise UserError(f"the genotype is of another network: its {', '.join(fields)} differ")
    for cell, columns in enumerate(_columns_of_names(state, space)):
        if columns != genotype.columns[cell]:
            raise UserError(
                f"the columns of cell {cell} are {', '.join(genotype.columns[cell])} in the "
                f"genotype, but the tensors are those of {', '.join(columns)}"
            )
    variables, left = convert(state, weights.network_shapes(genotype), derived=True)
    # Released derived networks hold all candidates of every edge.
    candidates = {
        torch_name(flat.partition("/")[2]): _torch_shape(leaf.shape)
        for flat, leaf in weights.network_shapes(space).items()
        if re.search(r"cell\d+_attention\d+/edge", flat)
    }
    _check_dropped(state, left, candidates)
    return Imported(variables, space, False, genotype, left)


def _import_supernet(checkpoint: Checkpoint, space: SearchSpace) -> Imported:
    state, (space, unused) = checkpoint.state, _used_columns(space, checkpoint.columns)
    variables, left = convert(state, weights.network_shapes(space))
    # All columns are alike, so an unused one has tensors like those of the first.
    droppable = {
        name.replace("stage3.0.", f"stage3.{i}.", 1): tensor.shape
        for name, tensor in state.items()
        if name.startswith("stage3.0.")
        for i in unused
    }
    _check_dropped(state, left, droppable)
    genotype = None
    if checkpoint.columns is not None and checkpoint.attention is not None:
        logits = {
            "columns": _logits("arch_param", checkpoint.columns, sum(space.columns), len(COLUMNS)),
            "attention": _attention_logits(space, checkpoint.attention),
        }
        variables["architecture"] = logits
        genotype = derive(space, logits["columns"].tolist(), logits["attention"].tolist())
    return Imported(variables, space, True, genotype, left)


def released_derivation(space: SearchSpace, columns: np.ndarray, attention: np.ndarray) -> Genotype:
    """The genotype that the authors' code derives, and trains its derived networks with.

    It differs from `manas_jax.space.derive` in two ways: modules share attention rows, see
    `released_attention`, and `none` may be derived.

    Args:
      space: the search space.
      columns: logits, (columns, 2).
      attention: logits, (edges of all modules, 9).

    Raises:
      UserError: the shapes are not those of the space, or values are not finite.
    """
    rows = _logits("arch_param", columns, sum(space.columns), len(COLUMNS))
    picks = iter([COLUMNS[i] for i in rows.argmax(axis=-1)])
    return Genotype(
        space,
        tuple(tuple(next(picks) for _ in range(n)) for n in space.columns),
        released_attention(space, attention),
    )


def released_attention(
    space: SearchSpace, attention: np.ndarray
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The attention candidates that the authors' code derives.

    The search has rows of logits for each module, in the order of `SearchSpace.modules`. The
    derivation uses the rows of module s in that order for all modules of cell s: it reads three of
    the paper's nine modules, and only the first module gets its own rows. The weights of a derived
    network were trained with these candidates, so it must run with them.

    Args and errors: see `released_derivation`.
    """
    best = _attention_logits(space, attention).argmax(axis=-1)
    return tuple(
        (tuple(CANDIDATES[i] for i in best[s]),) * count for s, count in enumerate(space.branches)
    )


def infer_space(state: State) -> SearchSpace:
    """Infers channels and numbers of branches, columns, stem blocks and groups.

    Raises:
      UserError: the tensors are not those of a MANAS network.
    """

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"missing tensors: {name}")
        if state[name].ndim != 4:
            raise UserError(f"tensor {name} has the shape {state[name].shape}, expected 4 axes")
        return state[name].shape

    cells = count(r"auto(\d+)\.")
    if not cells:
        raise UserError("none of its tensors is one of a MANAS network (auto1, stage1, ...)")
    after, before = shape("auto1.0.channel_back.0.weight")[:2]
    if before <= after:
        raise UserError(f"tensor auto1.0.channel_back.0.weight maps {before} to {after} channels")
    branches = tuple(count(rf"auto{s + 1}\.(\d+)\.") for s in range(cells))
    widths = [f"final_fuse.fuse_layers.0.{b}.0.weight" for b in range(1, branches[-1])]
    return SearchSpace(
        channels=(shape("final_conv.0.weight")[1], *(shape(name)[1] for name in widths)),
        branches=branches,
        columns=tuple(count(rf"stage{s + 2}\.(\d+)\.") for s in range(cells)),
        stem_blocks=count(r"stage1\.(\d+)\."),
        attention_groups=after // (before - after),
    )


def _used_columns(space: SearchSpace, logits: np.ndarray | None) -> tuple[SearchSpace, range]:
    """The space without columns that a supernet holds but never runs, and their indices.

    The authors' supernet has as many columns in its second cell as its third branch has channels,
    and runs as many as it has rows of logits for.
    """
    if space.columns[1:2] != space.channels[2:3] or len(space.columns) < 2:
        return space, range(0)
    found = space.columns[1]
    if logits is None:
        raise UserError(
            f"stage3 has {found} columns, of which the authors' code runs only some; arch_param "
            "is needed to tell how many"
        )
    rows = logits.shape[0] if logits.ndim else 0
    used = rows - (sum(space.columns) - found)
    if not 0 < used <= found:
        raise UserError(f"arch_param has {rows} rows for {sum(space.columns)} columns")
    columns = (space.columns[0], used, *space.columns[2:])
    return dataclasses.replace(space, columns=columns), range(used, found)


def _columns_of_names(state: State, space: SearchSpace) -> tuple[tuple[str, ...], ...]:
    """The choice of each column of a derived network, by the names of its tensors."""

    def choice(prefix: str) -> str:
        return COLUMNS[any(name.startswith(f"{prefix}.fuse_layers.") for name in state)]

    return tuple(
        tuple(choice(f"stage{s + 2}.{i}") for i in range(n)) for s, n in enumerate(space.columns)
    )


def _own_genotype(checkpoint: Checkpoint, space: SearchSpace) -> Genotype:
    """The genotype of a derived network by its own checkpoint."""
    columns = _columns_of_names(checkpoint.state, space)
    if checkpoint.chosen is not None:
        return Genotype(space, columns, _attention_of_indices(space, checkpoint.chosen))
    if checkpoint.attention is None:
        raise UserError(
            "a derived network without its chosen attention candidates; give --genotype with a "
            "genotype.json or the checkpoint of the search"
        )
    if checkpoint.columns is None:
        return Genotype(space, columns, released_attention(space, checkpoint.attention))
    return released_derivation(space, checkpoint.columns, checkpoint.attention)


def _attention_of_indices(
    space: SearchSpace, indices: np.ndarray
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """(edges of all modules,) -> names of candidates by cell, module and edge."""
    edges = len(space.modules) * space.edges
    if indices.shape != (edges,) or not np.isin(indices, range(len(CANDIDATES))).all():
        raise UserError(f"attention: expected {edges} integers from 0 to {len(CANDIDATES) - 1}")
    names = iter([CANDIDATES[int(i)] for i in indices])
    return tuple(
        tuple(tuple(next(names) for _ in range(space.edges)) for _ in range(count))
        for count in space.branches
    )


def _logits(what: str, value: np.ndarray, *shape: int) -> np.ndarray:
    if value.shape != shape:
        raise UserError(f"{what} has the shape {value.shape}, expected {shape}")
    if not np.isfinite(value).all():
        raise UserError(f"{what} has values that are not finite")
    return np.asarray(value, np.float32)


def _attention_logits(space: SearchSpace, value: np.ndarray) -> np.ndarray:
    """(edges of all modules, 9) -> (modules, edges, 9)."""
    rows = len(space.modules) * space.edges
    logits = _logits("auto_param", value, rows, len(CANDIDATES))
    return logits.reshape(len(space.modules), space.edges, len(CANDIDATES))


def _check_dropped(
    state: State, left: Iterable[str], droppable: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses unused tensors but those of `droppable`, name -> shape."""
    left = [name for name in left if not name.endswith(".num_batches_tracked")]
    if extra := set(left) - droppable.keys():
        raise UserError(f"tensors that the network does not have: {first_few(sorted(extra))}")
    for name in left:
        _check_shape(name, state[name], droppable[name])


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a file of one of the kinds in the module's docstring.

    Raises:
      UserError: missing, truncated, not a checkpoint, a pickle with code in it, an entry that is no
        tensor, or a PyTorch file without PyTorch.
    """
    path = pathlib.Path(path)
    if not os.path.isfile(path):  # unlike `is_file`, also for a path that no file can have
        raise UserError(f"{path}: no such file")
    readers = {".npz": _read_npz, ".safetensors": lambda p: weights.read_safetensors(p)[0]}
    content = readers.get(path.suffix, _read_torch)(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a state dictionary")
    beside = {key: content.get(key) for key in ("arch_param", "auto_param", "attention")}
    try:
        arrays = {k: _array(k, v) for k, v in state.items() if k not in beside}
        if arrays and all(name.startswith("module.") for name in arrays):  # DataParallel
            arrays = {name.removeprefix("module."): x for name, x in arrays.items()}
        extras = [None if value is None else _array(k, value) for k, value in beside.items()]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Checkpoint(arrays, *extras)


def _array(name: Any, value: Any) -> np.ndarray:
    """A tensor, or a list of one tensor, as float32."""
    for _ in range(_NESTING):
        if isinstance(value, (list, tuple)) and len(value) == 1:
            (value,) = value
    try:
        if hasattr(value, "detach"):
            value = value.detach().float().numpy()
        return np.asarray(value, np.float32)
    except Exception:  # a list may hold anything, even itself
        raise UserError(
            f"the entry {name!r} is a {type(value).__name__}, not a tensor of numbers"
        ) from None


def _read_npz(path: pathlib.Path) -> Any:
    with reading(path, ".npz of plain arrays"):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _COMPRESSION * path.stat().st_size:  # weights are noise: at most a fifth goes
            raise ValueError(f"it claims to hold {unpacked:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _read_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: a PyTorch file needs PyTorch (pip install torch); an .npz or .safetensors "
            "file of the same tensors does not"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of any kind for damaged files
        if isinstance(error, pickle.UnpicklingError) and (
            code := re.search(r"GLOBAL ([\w.]+)", str(error))
        ):
            raise UserError(f"{path}: holds {code[1]}, not only tensors: {RESAVE}") from None
        raise UserError(
            f"{path}: truncated, damaged or not a PyTorch file of tensors ({type(error).__name__})"
        ) from None


def import_file(
    path: str | os.PathLike, genotype_path: str | os.PathLike | None = None
) -> Imported:
    """Reads and imports a checkpoint.

    Args:
      path: the checkpoint.
      genotype_path: of a derived network: a genotype.json, or the checkpoint of the search, from
        which the genotype is derived as in the authors' code.

    Raises:
      UserError: one of the files cannot be used; the message names it.
    """
    checkpoint, genotype = read_checkpoint(path), None
    if genotype_path is not None and pathlib.Path(genotype_path).suffix == ".json":
        genotype = Genotype.load(genotype_path)
    elif genotype_path is not None:
        search = read_checkpoint(genotype_path)
        if search.columns is None or search.attention is None:
            raise UserError(
                f"{genotype_path}: without arch_param or auto_param, so no genotype can be derived"
            )
        checkpoint = Checkpoint(checkpoint.state, search.columns, search.attention)
    try:
        return import_checkpoint(checkpoint, genotype)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write(imported: Imported, out: str | os.PathLike, provenance: Mapping[str, str]) -> None:
    """Writes a folder with weights.safetensors and, if there is a genotype, genotype.json.

    Raises:
      UserError: the folder exists and is not empty, or cannot be written.
    """
    out = pathlib.Path(out)
    _check_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = pathlib.Path(temporary) / "out"
            folder.mkdir()
            weights.save_weights(
                folder / "weights.safetensors", imported.variables, imported.network, provenance
            )
            if imported.genotype:
                imported.genotype.save(folder / "genotype.json")
            os.replace(folder, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror or error})") from None


def _check_new(out: pathlib.Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists; choose a new folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.inference.import_torch",
        description="Imports a checkpoint of the authors' PyTorch code.",
    )
    parser.add_argument("checkpoint", help=".pt or .pth, .npz or .safetensors")
    parser.add_argument(
        "--genotype", help="of a derived network: genotype.json, or the checkpoint of the search"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write")
    parser.add_argument("--verbose", action="store_true", help="list dropped tensors")
    args = parser.parse_args(arguments)
    return signals.run_command(lambda: _import(args))


def _import(args: argparse.Namespace) -> None:
    """Imports the checkpoint that the options name, and prints what it is.

    Raises:
      UserError: what the user can correct.
    """
    check_local_options(args)
    _check_new(args.out)
    imported = import_file(args.checkpoint, args.genotype)
    write(imported, args.out, _provenance(args.checkpoint))
    print(_summary(imported, args.out))
    if args.verbose:
        print("\n".join(f"dropped {name}" for name in imported.dropped))


def _provenance(checkpoint: str | os.PathLike) -> dict[str, str]:
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "importer": f"manas_jax {__version__}",
        "checkpoint": pathlib.Path(checkpoint).name,
        "sha256": digest,
    }


def _summary(imported: Imported, out: pathlib.Path) -> str:
    space = imported.space
    parameters = sum(x.size for x in weights.flatten(imported.variables["params"]).values())
    lines = [
        f"{'supernet' if imported.supernet else 'derived network'} with channels "
        f"{space.channels}, columns {space.columns}, {parameters:,} parameters",
        f"dropped {len(imported.dropped)} unused tensors (--verbose lists them)",
        f"written to {out}",
    ]
    if imported.supernet:
        lines.append("note: runs with a softmax over all logits, unlike the authors' search")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
