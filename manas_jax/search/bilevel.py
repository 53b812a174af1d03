"""Bilevel optimisation of architecture and weights.

    minimise over a   L_val(w*(a), a)   with   w*(a) = argmin over w  L_train(w, a)

by alternating steps, as Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019. The
inner optimum is replaced by w' = w + xi u(grad_w L_train(w, a)), one unrolled step of the very
optax transformation that updates the weights, momentum, weight decay and schedule included. With
v = xi (du/dg)^T grad_w' L_val(w', a), the chain rule gives the hypergradient

    grad_a L_val(w', a) + d/da <grad_w L_train(w, a), v>

- first_order: xi = 0, the first term at w.
- finite_difference: the second term as the central difference of grad_a L_train at w +- eps v,
  eps = epsilon / ||v|| (DARTS, equation 8).
- exact: the second term as the forward derivative of grad_a L_train along v.

The functions here are pure and know nothing of networks: a `BilevelProblem` gives them the losses'
gradients as functions.
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
class BilevelProblem:
    """What a hypergradient is computed from; w: weights, a: architecture, g: gradient by weights.

    Attributes:
      train_grad: (w, a) -> (grad_w, grad_a) of L_train.
      val_grad: (w, a) -> (grad_w, grad_a) of L_val.
      mixed_hvp: (w, a, v) -> d/da <grad_w L_train(w, a), v>; needed by `exact` alone.
      unrolled_step: (w, g) -> w', the unrolled step.
      unrolled_step_vjp: (w, g, c) -> v, the transposed derivative of `unrolled_step` in g, applied
        to c.
      epsilon: length of the finite difference's step along v, in either direction; v is normalised.
    """

    train_grad: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    val_grad: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    mixed_hvp: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    unrolled_step: Callable[[PyTree, PyTree], PyTree] | None = None
    unrolled_step_vjp: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    epsilon: float = 0.01


def first_order(problem: BilevelProblem, weights: PyTree, architecture: PyTree) -> PyTree:
    """grad_a L_val(w, a)."""
    return problem.val_grad(weights, architecture)[1]


def finite_difference(problem: BilevelProblem, weights: PyTree, architecture: PyTree) -> PyTree:
    """The hypergradient with the mixed product as a central difference."""
    direct, v = _unroll(problem, weights, architecture)
    plus, minus, eps = perturb(weights, v, problem.epsilon)
    return difference(
        direct,
        problem.train_grad(plus, architecture)[1],
        problem.train_grad(minus, architecture)[1],
        eps,
    )


def exact(problem: BilevelProblem, weights: PyTree, architecture: PyTree) -> PyTree:
    """The hypergradient with the exact mixed product."""
    direct, v = _unroll(problem, weights, architecture)
    return jax.tree.map(jnp.add, direct, problem.mixed_hvp(weights, architecture, v))


def _unroll(
    problem: BilevelProblem, weights: PyTree, architecture: PyTree
) -> tuple[PyTree, PyTree]:
    """grad_a L_val(w', a) and v."""
    grad, _ = problem.train_grad(weights, architecture)
    unrolled = problem.unrolled_step(weights, grad)
    outer, direct = problem.val_grad(unrolled, architecture)
    return direct, problem.unrolled_step_vjp(weights, grad, outer)


@dataclasses.dataclass(frozen=True)
class Hypergradient:
    """A way to compute the hypergradient.

    Attributes:
      fn: (problem, weights, architecture) -> the hypergradient.
      gradient_evals: gradients of the network in a whole search step, that of the weight step
        included; a mixed product counts as two.
      unrolls: whether it needs the unrolled step.
      needs_mixed_hvp: whether it needs the mixed product.
    """

    fn: Callable[[BilevelProblem, PyTree, PyTree], PyTree]
    gradient_evals: int
    unrolls: bool = True
    needs_mixed_hvp: bool = False

    def __call__(self, problem: BilevelProblem, weights: PyTree, architecture: PyTree) -> PyTree:
        """The hypergradient."""
        return self.fn(problem, weights, architecture)


HYPERGRADIENTS = {
    "first_order": Hypergradient(first_order, 2, unrolls=False),
    "finite_difference": Hypergradient(finite_difference, 5),
    "exact": Hypergradient(exact, 5, needs_mixed_hvp=True),
}
"""By the name that `search.hypergradient` gives them."""


def unrolled_step(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    weights: PyTree,
    grad: PyTree,
    xi: float = 1.0,
) -> PyTree:
    """w' = w + xi u(g), where u is the optimizer's update from its present state.

    Args:
      optimizer: the transformation that updates the weights.
      state: its state, which does not change.
      weights: w.
      grad: g.
      xi: length of the unrolled step in units of the real one; 0 returns w bit for bit.
    """
    updates, _ = optimizer.update(grad, state, weights)
    return jax.tree.map(lambda w, u: w + xi * u, weights, updates)


def unrolled_step_vjp(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    weights: PyTree,
    grad: PyTree,
    cotangent: PyTree,
    xi: float = 1.0,
) -> PyTree:
    """v = xi (du/dg)^T c: see `unrolled_step` for the arguments."""
    _, vjp = jax.vjp(lambda g: unrolled_step(optimizer, state, weights, g, xi), grad)
    return vjp(cotangent)[0]


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


def mixed_hvp(
    architecture_grad: Callable[[PyTree, PyTree], PyTree],
    weights: PyTree,
    architecture: PyTree,
    v: PyTree,
) -> PyTree:
    """d/da <grad_w L(w, a), v> as the derivative of grad_a L along v in w.

    Forward over reverse: second derivatives commute, and one forward derivative of the reverse
    pass is several times cheaper than a reverse pass of it (Pearlmutter, "Fast exact
    multiplication by the Hessian", 1994).

    Args:
      architecture_grad: (w, a) -> grad_a L(w, a).
      weights: w.
      architecture: a.
      v: the direction, a pytree like w.
    """
    return jax.jvp(lambda w: architecture_grad(w, architecture), (weights,), (v,))[1]
