"""The names of attention candidates: the paper's nine, and those that other modules register.

Files name candidates and import nothing: who opens weights that need a candidate of somebody else
decides whether its code runs, by an import in Python or by --import on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from manas_jax.errors import UserError, one_line, short_repr

CANDIDATES = (
    "none",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "sep_conv_3x3_spatial",
    "dil_conv_3x3_spatial",
    "SE",
    "SE_A_M",
    "CBAM",
)
"""The paper's nine candidates of an attention edge, in the order of its logits."""

IMPORT_HELP = "Python module to import first, as one with attention candidates; may be repeated"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What `register_candidate` was given, and the module that called it."""

    name: str
    module: Callable[..., Any]
    cost: Callable[[int, int], Any]
    onnx: Callable[..., Any] | None
    home: str


_registered: dict[str, Candidate] = {}


def register_candidate(
    name: str,
    module: Callable[..., Any],
    cost: Callable[[int, int], Any],
    onnx: Callable[..., Any] | None = None,
) -> None:
    """Makes a gate a candidate of attention edges, for spaces whose `candidates` name it.

    Args:
      name: in genotypes, and of the gate's variables; a Python identifier.
      module: makes the gate, a Flax module: `module(ops=…, name=…)`, called with the
        `manas_jax.models.pooling.PooledFeatures` of the edge's input and `train`, returns what the
        input is multiplied by, of any shape that is broadcast to it.
      cost: from the edge's channels and pixels to its `manas_jax.cost.Cost`.
      onnx: writes the gate into a model, as those of `manas_jax.inference.onnx_graph.GATES` do;
        without it, JAX alone runs the network.

    Raises:
      UserError: the name is no identifier, or is already registered (compiled functions would
        keep the old gate).
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise UserError(f"candidate {short_repr(name)}: give a name of letters, digits and _")
    if name in names():
        raise UserError(f"candidate {name}: the name is taken; give another one, or restart Python")
    home = _module_name(sys._getframe(1).f_globals)
    _registered[name] = Candidate(name, module, cost, onnx, home)


def registered(name: str) -> Candidate:
    """The candidate of this name that is not one of the paper's.

    Raises:
      UserError: there is none.
    """
    if name not in _registered:
        raise UserError(f"candidate {name}: not registered; {how_to_import()}")
    return _registered[name]


def names() -> tuple[str, ...]:
    """Of all candidates: the paper's, then others in the order of their registration."""
    return (*CANDIDATES, *_registered)


def others() -> tuple[Candidate, ...]:
    """The candidates that are not the paper's, in the order of their registration."""
    return tuple(_registered.values())


def how_to_import(module: str = "") -> str:
    """What to do to have a module's candidates, as the end of an error message.

    A name that is none of a module, as a file may hold, is not passed on.
    """
    module = module if _is_module_name(module) else "MODULE"
    return f"give --import {module}, which runs the code of that module, or import it in Python"


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds --import, whose values `import_modules` takes from `imports`."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE", help=IMPORT_HELP
    )


def import_modules(modules: Sequence[str]) -> None:
    """Imports modules, also those of the current folder.

    Raises:
      UserError: there is no such module, or it raises an error.
    """
    if modules and not {"", os.getcwd()} & set(sys.path):  # as `python -m` has it
        sys.path.append(os.getcwd())
    for module in modules:
        if not _is_module_name(module) or module.endswith(".py"):
            raise UserError(
                f"--import {module}: give a name as in `import NAME`, without path and .py"
            )
        try:
            importlib.import_module(module)
        except UserError as error:
            raise UserError(f"--import {module}: {error}") from None
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                reason = "no such module here or where Python finds modules"
            else:
                last = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {one_line(error)}"
                reason += f" ({last.filename}, line {last.lineno})"
            raise UserError(f"--import {module}: {reason}") from error


def _is_module_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _module_name(variables: dict[str, Any]) -> str:
    """The name to import a module by, from its globals; '' for that of a notebook."""
    spec, file = variables.get("__spec__"), pathlib.Path(variables.get("__file__", ""))
    if spec and spec.name.rpartition(".")[2] in (file.stem, file.parent.name):
        return spec.name
    return file.stem  # of a script, or of a config, which runs under another name
