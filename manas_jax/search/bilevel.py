"""Bilevel optimisation of architecture and weights.

    minimise over a   L_val(w*(a), a)   with   w*(a) = argmin over w  L_train(w, a)

by alternating steps, as Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019. The
inner optimum is replaced by w' = w + xi u(grad_w L_train(w, a)), one virtual step of the very
optax transformation that moves the weights, momentum, weight decay and schedule included. With
v = xi (du/dg)^T grad_w' L_val(w', a), the chain rule gives the hypergradient

    grad_a L_val(w', a) + d/da <grad_w L_train(w, a), v>

first_order:        xi = 0, the first term at w.
finite_difference:  the second term as the central difference of grad_a L_train at w +- eps v,
                    eps = epsilon / ||v|| (DARTS, equation 8).
exact:              the second term as the forward derivative of grad_a L_train along v.

The functions here are pure and know nothing of networks: they get the pieces as functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a hypergradient is made of; w: weights, a: architecture, g: gradient of the weights.

    Attributes:
      train: (w, a) -> (grad_w, grad_a) of L_train.
      validation: (w, a) -> (grad_w, grad_a) of L_val.
      mixed: (w, a, v) -> d/da <grad_w L_train(w, a), v>; needed by `exact` alone.
      virtual: (w, g) -> w', the virtual step.
      pullback: (w, g, c) -> v, the transposed derivative of `virtual` in g, applied to c.
    """

    train: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    validation: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    mixed: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    virtual: Callable[[PyTree, PyTree], PyTree] | None = None
    pullback: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None


def first_order(pieces: Pieces, weights: PyTree, architecture: PyTree) -> PyTree:
    """grad_a L_val(w, a)."""
    return pieces.validation(weights, architecture)[1]


def finite_difference(
    pieces: Pieces, weights: PyTree, architecture: PyTree, epsilon: float = 0.01
) -> PyTree:
    """The hypergradient with the mixed product as a central difference.

    Args:
      pieces: the functions, `mixed` excepted.
      weights: w.
      architecture: a.
      epsilon: length of the step either way along v, whatever the length of v.
    """
    gradient, _ = pieces.train(weights, architecture)
    ahead = pieces.virtual(weights, gradient)
    outer, direct = pieces.validation(ahead, architecture)
    v = pieces.pullback(weights, gradient, outer)
    plus, minus, eps = perturb(weights, v, epsilon)
    return difference(
        direct,
        pieces.train(plus, architecture)[1],
        pieces.train(minus, architecture)[1],
        eps,
    )


def exact(pieces: Pieces, weights: PyTree, architecture: PyTree) -> PyTree:
    """The hypergradient with the exact mixed product, at any size of v."""
    gradient, _ = pieces.train(weights, architecture)
    ahead = pieces.virtual(weights, gradient)
    outer, direct = pieces.validation(ahead, architecture)
    v = pieces.pullback(weights, gradient, outer)
    return jax.tree.map(jnp.add, direct, pieces.mixed(weights, architecture, v))


HYPERGRADIENTS = ("first_order", "finite_difference", "exact")


def virtual_step(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    weights: PyTree,
    gradient: PyTree,
    xi: float = 1.0,
) -> PyTree:
    """w' = w + xi u(g), where u is the optimizer's update from its present state.

    Args:
      optimizer: the transformation that moves the weights.
      state: its state, which stays as it is.
      weights: w.
      gradient: g.
      xi: length of the virtual step in units of the real one; 0 gives w back to the bit.
    """
    updates, _ = optimizer.update(gradient, state, weights)
    return jax.tree.map(lambda w, u: w + xi * u, weights, updates)


def pullback(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    weights: PyTree,
    gradient: PyTree,
    cotangent: PyTree,
    xi: float = 1.0,
) -> PyTree:
    """v = xi (du/dg)^T c: see `virtual_step` for the arguments."""
    _, transposed = jax.vjp(lambda g: virtual_step(optimizer, state, weights, g, xi), gradient)
    return transposed(cotangent)[0]


@jax.jit
def perturb(weights: PyTree, v: PyTree, epsilon: float) -> tuple[PyTree, PyTree, jax.Array]:
    """w + eps v, w - eps v and eps = epsilon / ||v||; v = 0 leaves w as it is."""
    length = optax.tree.norm(v)
    eps = epsilon / jnp.maximum(length, jnp.finfo(length.dtype).tiny ** 0.5)
    plus = jax.tree.map(lambda w, d: w + eps * d, weights, v)
    minus = jax.tree.map(lambda w, d: w - eps * d, weights, v)
    return plus, minus, eps


@jax.jit
def difference(direct: PyTree, plus: PyTree, minus: PyTree, eps: jax.Array) -> PyTree:
    """direct + (plus - minus) / (2 eps)."""
    return jax.tree.map(lambda d, p, m: d + (p - m) / (2 * eps), direct, plus, minus)


def mixed_product(
    architecture_gradient: Callable[[PyTree, PyTree], PyTree],
    weights: PyTree,
    architecture: PyTree,
    v: PyTree,
) -> PyTree:
    """d/da <grad_w L(w, a), v> as the derivative of grad_a L along v in w.

    Forward over reverse: second derivatives commute, and one forward derivative of the reverse
    pass is several times cheaper than a reverse pass of it (Pearlmutter, "Fast exact
    multiplication by the Hessian", 1994).

    Args:
      architecture_gradient: (w, a) -> grad_a L(w, a).
      weights: w.
      architecture: a.
      v: the direction, like w.
    """
    return jax.jvp(lambda w: architecture_gradient(w, architecture), (weights,), (v,))[1]
