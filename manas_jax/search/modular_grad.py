"""Gradients of a scene objective part by part: each part of the network is a program of its own.

Rumelhart et al., "Learning representations by back-propagating errors", Nature 1986, with compiled
modules in place of layers. XLA takes minutes and gigabytes for the gradient of a supernet as one
program, and loading it from a cache takes longer than running it: on CPU some of its passes are
quadratic in the number of operations. Parts that are alike, such as the columns of a cell or the
attention modules of one scale, share a program here. What goes on between the parts is a few calls
from Python. Traced as a whole, by `jax.jit`, it is the plain gradient, in one program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend
import numpy as np

from manas_jax.config import LossWeights
from manas_jax.models.network import Network
from manas_jax.runtime import sharding
from manas_jax.runtime.compilation import Programs, kinds
from manas_jax.training import losses

PyTree = Any


class SceneGradients(NamedTuple):
    """Gradients of a scene objective; make them with `scene_gradients`.

    Attributes:
      evaluate: (parameters, architecture, batch_stats, step, batch) -> ((of_parameters,
        of_architecture), (batch_stats, terms)).
      compile: the same arguments, of which the batch may be shapes; `evaluate` is then ready.
    """

    evaluate: Callable
    compile: Callable


def scene_gradients(
    network: Network, weights: LossWeights, internal_from: int, identity: str = ""
) -> SceneGradients:
    """`jax.grad` of `objectives.scene_objective` by parameters and architecture.

    Args:
      network: the supernet.
      weights: what each term counts.
      internal_from: step from which on the internal loss counts.
      identity: see `compilation.Ahead`.
    """
    parts = network.parts()
    modules = [part.make() for part in parts]
    judged = network, weights, internal_from
    programs = Programs(identity)

    def walk(begin, run, parameters, architecture, batch_stats, step, batch):
        rainy = batch["rainy"]
        given = jax.tree.leaves(parameters)[0], rainy
        kind = kinds(given) if run is not _run_traced else None  # part of the programs' keys

        choices = run(("choices", kind), _choices, network, architecture)
        branches = run(("fold", kind), _fold, network, rainy)
        moved, pullbacks = {}, []
        for part, module in zip(parts, modules, strict=True):
            name = part.name
            # A transition that adds no branch has no variables.
            variables = (tree.get(name, {}) for tree in (parameters, batch_stats))
            where = (*variables, part.take(branches), choices.get(name))
            made, stats, kept = run((name, "forward", kind), _forward, module, *where)
            signature = _Signature.of(module, where)
            begin((name, "backward", kind), _backward, signature, kept, made)
            branches = part.put(branches, made)
            moved |= {name: stats} if stats else {}
            pullbacks.append((signature, kept))

        of_head, of_finest, terms = run(
            ("loss", kind), _judge, judged, parameters["head_conv"], branches[0], step, batch
        )
        of_parameters, of_choices, of_branches = {"head_conv": of_head}, {}, (of_finest,)
        for part in reversed(parts):
            name = part.name
            of_part, of_taken, of_choice = run(
                (name, "backward", kind), _backward, *pullbacks.pop(), part.take(of_branches)
            )
            of_branches = part.put(of_branches, of_taken)
            of_parameters |= {name: of_part} if of_part else {}
            of_choices |= {name: of_choice} if name in choices else {}
        of_architecture = run(
            ("choices backward", kind), _choices_backward, network, architecture, of_choices
        )
        return (of_parameters, of_architecture), (moved, terms)

    whole = jax.jit(functools.partial(walk, _nothing, _run_traced))

    def evaluate(*args):
        if _is_traced(args):
            return walk(_nothing, _run_traced, *args)
        # Over several devices many programs in flight, each of which waits for all devices, can
        # wait for each other for ever: there it is one.
        if _devices(args[-1]["rainy"]) > 1:
            return whole(*args)
        return walk(programs.begin, programs, *args)

    def compile(*args):
        if _devices(args[-1]["rainy"]) > 1:
            *others, batch = args
            jax.block_until_ready(whole(*others, sharding.zeros(batch)))
        else:
            walk(programs.begin, programs.shapes, *args)
            programs.finish()

    return SceneGradients(evaluate, compile)


def _is_traced(args: Sequence[PyTree]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))


def _devices(x: Any) -> int:
    """Devices that an array, or what its shape stands for, lies on; 0 where nothing tells it."""
    place = getattr(x, "sharding", None)
    return len(place.device_set) if place else 0


def _nothing(*_: Any) -> None:
    """Under a transformation there is nothing to compile ahead."""


def _run_traced(key: Any, function: Callable, static: Any, *args: Any) -> Any:
    """What `Programs` does, under a transformation; alike parts share a trace without a key."""
    return _jitted(function, static, *args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jitted(function: Callable, static: Any, *args: Any) -> Any:
    return function(static, *args)


def _choices(network: Network, architecture: PyTree) -> dict[str, jax.Array]:
    return network.choices(architecture)


def _choices_backward(network: Network, architecture: PyTree, gradient: Mapping[str, jax.Array]):
    return jax.vjp(network.choices, architecture)[1](gradient)[0]


def _fold(network: Network, rainy: jax.Array):
    return network.fold(rainy.reshape(-1, *rainy.shape[2:]))


def _forward(module: nn.Module, *args: PyTree):
    """What the module makes, running statistics that the batch moved, arrays for `_backward`.

    Args:
      module: of a part.
      *args: its parameters, batch_stats, what it takes, and its choice or None.
    """
    differentiate = functools.partial(_differentiate, module)
    if jax.default_backend() == "cpu":
        return _without_rounding(differentiate, *args)
    return differentiate(*args)


def _without_rounding(function: Callable, *args: PyTree) -> Any:
    """function(*args), without what rounds numbers to the type that they have.

    `jax.checkpoint` rounds all that it keeps, against compilers that keep more digits than it says.
    XLA:CPU does not; it makes a copy.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    eqns, same = [], {}

    def known(x):
        return same.get(x, x) if isinstance(x, jax.extend.core.Var) else x

    for equation in traced.jaxpr.eqns:
        if equation.primitive is jax.lax.reduce_precision_p:
            same[equation.outvars[0]] = known(equation.invars[0])
        else:
            eqns.append(equation.replace(invars=[known(x) for x in equation.invars]))
    lean = traced.jaxpr.replace(eqns=eqns, outvars=[known(x) for x in traced.jaxpr.outvars])
    made = jax.extend.core.jaxpr_as_fun(traced.replace(jaxpr=lean))(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), made)


def _differentiate(
    module: nn.Module, parameters: PyTree, batch_stats: PyTree, taken: PyTree, choice: Any
):
    """What `_forward` gives."""

    def run(parameters, taken, choice):
        given = () if choice is None else (choice,)
        made, updates = module.apply(
            {"params": parameters, "batch_stats": batch_stats},
            taken,
            True,
            *given,
            mutable=["batch_stats"],
        )
        return made, updates.get("batch_stats", {})

    kept = jax.checkpoint(run, policy=_kept, prevent_cse=False)
    made, pullback, moved = jax.vjp(kept, parameters, taken, choice, has_aux=True)
    arrays, structure = jax.tree.flatten(pullback)
    _STRUCTURES[_Signature.of(module, (parameters, batch_stats, taken, choice))] = structure
    return made, moved, arrays


class _Signature(NamedTuple):
    """A module and the kinds of arrays that `_forward` got with it."""

    module: nn.Module
    structure: Any
    kinds: tuple[tuple[tuple[int, ...], np.dtype], ...]

    @classmethod
    def of(cls, module: nn.Module, args: PyTree) -> _Signature:
        leaves, structure = jax.tree.flatten(args)
        return cls(module, structure, tuple((x.shape, x.dtype) for x in leaves))


_STRUCTURES: dict[_Signature, Any] = {}
"""What `jax.vjp` gave in `_forward`, but for its arrays: programs hand on nothing else."""


def _backward(signature: _Signature, arrays: Sequence[jax.Array], gradient: PyTree):
    """Gradients by (parameters, what was taken, choice)."""
    if signature not in _STRUCTURES:  # the program of `_forward` came from an earlier run
        shapes = [jax.ShapeDtypeStruct(*kind) for kind in signature.kinds]
        args = jax.tree.unflatten(signature.structure, shapes)
        jax.eval_shape(functools.partial(_forward, signature.module), *args)
    return jax.tree.unflatten(_STRUCTURES[signature], arrays)(gradient)


def _judge(judged, head: PyTree, finest: jax.Array, step: jax.Array, batch: Mapping):
    """Gradients of the loss by the head's parameters and by its input, and the loss's terms."""
    network, weights, internal_from = judged

    def loss(head, finest):
        rainy = batch["rainy"]
        images = rainy.reshape(-1, *rainy.shape[2:])
        outputs = network.finish(network.head().apply({"params": head}, finest), images)
        return losses.scene_loss(
            outputs.reshape(rainy.shape), batch["clean"], step, weights, internal_from
        )

    (of_head, of_finest), terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(head, finest)
    return of_head, of_finest, terms


def _kept(primitive: Any, *_, **__) -> bool:
    """Whether a part keeps what an operation makes for its backward pass.

    What takes long to make or is small; all else, such as normalised and gated maps, is several
    times as large together and made again in passing.
    """
    return primitive.name in ("conv_general_dilated", "dot_general", "reduce_sum", "reduce_max")
