"""The losses of the method and the feature loss, each with its own weight and log entry.

Notation of Cai et al. (TCSVT 2023): a scene has a clean image t and K rainy
versions, whose outputs are o_1 .. o_K. Batches are outputs (S, K, H, W, 3) and clean images
(S, H, W, 3) of S scenes; every term is a mean over the scenes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.metrics import SSIM_SIGMA, SSIM_WINDOW
from manas_jax.models.network import Architecture, Network
from manas_jax.space import SearchSpace

FeatureFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(outputs (S, K, H, W, 3), clean (S, H, W, 3)) -> the unweighted term 'feature', a scalar."""


def scene_loss_fn(
    network: Network,
    loss_weights: LossWeights,
    internal_from: int,
    frozen_stats: bool = False,
    feature_fn: FeatureFn | None = None,
) -> Callable:
    """The restoration loss of a batch of scenes as a function of what can be differentiated.

    Args:
      network: supernet or derived network.
      loss_weights: coefficients of the loss terms.
      internal_from: step from which on the internal loss counts.
      frozen_stats: whether BatchNorm normalises by the running statistics and leaves them as they
        are, in place of the batch's, which update them.
      feature_fn: see `feature_loss.feature_fn`; None for no such term.

    Returns:
      A function (params, architecture, batch_stats, step, batch) -> (loss, (batch_stats, metrics)).
      `batch` is {'rainy': (S, K, H, W, 3), 'clean': (S, H, W, 3)}; metrics are the loss
      ('restoration'), its unweighted terms, and the outputs' mean PSNR in dB ('psnr').
    """

    def loss_fn(params, architecture, batch_stats, step, batch):
        rainy, clean = batch["rainy"], batch["clean"]
        outputs, updates = network.apply(
            {"params": params, "batch_stats": batch_stats},
            rainy.reshape(-1, *rainy.shape[2:]),
            architecture,
            train=not frozen_stats,
            mutable=["batch_stats"],
        )
        outputs = outputs.reshape(rainy.shape)
        loss, metrics = scene_loss(outputs, clean, step, loss_weights, internal_from, feature_fn)
        return loss, (updates["batch_stats"], metrics)

    return loss_fn


def scene_loss(
    outputs: jax.Array,
    clean: jax.Array,
    step: jax.Array,
    loss_weights: LossWeights,
    internal_from: int,
    feature_fn: FeatureFn | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The restoration loss of outputs (S, K, H, W, 3) and its metrics, see `scene_loss_fn`."""
    internal_scale = (step >= internal_from).astype(outputs.dtype)
    loss, metrics = restoration_loss(outputs, clean, loss_weights, internal_scale)
    if feature_fn is not None:
        metrics["feature"] = feature_fn(outputs, clean)
        loss += loss_weights.feature * metrics["feature"]
    error = mean_squared_error(jnp.clip(outputs, 0, 1), clean[:, None])
    metrics["psnr"] = jnp.mean(-10 * jnp.log10(jnp.maximum(error, 1e-10)))
    return loss, {"restoration": loss, **metrics}


def restoration_loss(
    outputs: jax.Array,
    clean: jax.Array,
    loss_weights: LossWeights,
    internal_scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """External and internal loss, which the weights are trained with.

    Args:
      outputs: (S, K, H, W, 3).
      clean: (S, H, W, 3).
      loss_weights: coefficients of the loss terms.
      internal_scale: 0 while the internal loss is still off, then 1.

    Returns:
      The loss and its unweighted terms 'mse', 'charbonnier', 'ssim', 'tv' and 'internal'.
    """
    targets = clean[:, None]
    metrics = {
        "mse": jnp.mean(jnp.sum(mean_squared_error(outputs, targets), axis=1)),
        "charbonnier": jnp.mean(jnp.sum(charbonnier(outputs, targets), axis=1)),
        "ssim": jnp.mean(jnp.sum(1 - ssim(outputs, targets), axis=1)),
        "tv": jnp.mean(total_variation(outputs)),
        "internal": jnp.mean(internal(outputs)),
    }
    loss = (
        loss_weights.mse * metrics["mse"]
        + loss_weights.charbonnier * metrics["charbonnier"]
        + loss_weights.ssim * metrics["ssim"]
        + loss_weights.tv * metrics["tv"]
        + loss_weights.internal * internal_scale * metrics["internal"]
    )
    return loss, metrics


def architecture_loss(
    logits: Architecture, loss_weights: LossWeights, complexity_model: ComplexityModel
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Regularization and complexity, added to the architecture's restoration loss.

    Args:
      logits: the relaxed architecture, see `manas_jax.models.network.Architecture`.
      loss_weights: coefficients of the loss terms.
      complexity_model: the costs of all choices.

    Returns:
      The loss and its unweighted terms 'complexity' and, for each kind of decision, 'entropy_KIND'.
    """
    macs = complexity_model.macs(logits)
    parameters = complexity_model.parameters(logits)
    share = loss_weights.complexity_macs_share
    metrics = {f"entropy_{kind}": binary_entropy(rows) for kind, rows in logits.items()}
    metrics["complexity"] = share * macs + (1 - share) * parameters
    loss = sum(getattr(loss_weights, name) * value for name, value in metrics.items())
    return loss, metrics


def mean_squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean over the last three axes (height, width, channel)."""
    return jnp.mean(jnp.square(a - b), axis=(-3, -2, -1))


def charbonnier(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean of sqrt((a - b)^2 + 0.001^2) over the last three axes (height, width, channel).

    Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed
    imaging", ICIP 1994; the constant is that of Lai et al., "LapSRN", CVPR 2017.
    """
    return jnp.mean(jnp.sqrt(jnp.square(a - b) + 1e-6), axis=(-3, -2, -1))


def internal(outputs: jax.Array) -> jax.Array:
    """Sum over pairs k < l of MSE(o_k, o_l): (S, K, H, W, 3) -> (S,). 0 for K = 1.

    The sum over pairs is K times the sum of squared distances to the mean output, which needs
    no K (K - 1) / 2 differences.
    """
    centred = outputs - outputs.mean(axis=1, keepdims=True)
    return outputs.shape[1] * jnp.sum(jnp.mean(jnp.square(centred), axis=(-3, -2, -1)), axis=1)


def total_variation(outputs: jax.Array) -> jax.Array:
    """Twice the mean squared differences down and across: (S, K, H, W, 3) -> (S,)."""
    down = jnp.diff(outputs, axis=-3)
    across = jnp.diff(outputs, axis=-2)
    return 2 * sum(jnp.mean(jnp.square(d), axis=(1, 2, 3, 4)) for d in (down, across))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of images in [0, 1], zero padded: (..., H, W, C) -> (...).

    Wang et al., "Image quality assessment: from error visibility to structural similarity", TIP
    2004, with an 11x11 Gaussian of sigma 1.5. As a differentiable loss it keeps the borders;
    scores are made by `manas_jax.metrics`. `b` may have axes of size 1 to be repeated: what
    concerns it alone is then computed once.
    """
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a * mean_a
    var_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    return jnp.mean(numerator / denominator, axis=(-3, -2, -1))


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian window by two banded matrices: a convolution this thin is slower everywhere."""
    rows, columns = (_band(side).astype(x.dtype) for side in x.shape[-3:-1])
    # Cancellation in the variances needs all bits, also where matrix units would round to bfloat16.
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("ih,...hwc->...iwc", rows, x, precision=highest)
    return jnp.einsum("jw,...iwc->...ijc", columns, x, precision=highest)


@functools.cache
def _band(side: int) -> np.ndarray:
    """(side, side): row i holds the window centred at i, cut off at the border."""
    offsets = np.arange(side)[None] - np.arange(side)[:, None]
    reach = SSIM_WINDOW // 2
    window = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * SSIM_SIGMA**2))
    band = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2)) / window.sum()
    return np.where(np.abs(offsets) <= reach, band, 0.0)


def binary_entropy(logits: jax.Array) -> jax.Array:
    """Mean of -p log10 p - (1-p) log10(1-p) over all softmax probabilities p, a scalar.

    Both logarithms come from log-sum-exp, log(1-p) from that of the other logits: value and
    gradient stay finite however far the logits are apart.
    """
    if logits.shape[-1] == 1:  # nothing to choose
        return jnp.zeros((), logits.dtype)
    log_p = jax.nn.log_softmax(logits)
    others = jnp.where(jnp.eye(logits.shape[-1], dtype=bool), -jnp.inf, logits[..., None, :])
    log_q = jax.nn.logsumexp(others, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    entropy = -(jnp.exp(log_p) * log_p + jnp.exp(log_q) * log_q) / np.log(10)
    return jnp.mean(entropy)


@dataclasses.dataclass(frozen=True)
class ComplexityModel:
    """Expected costs of the relaxed architecture, whose decisions are independent.

    Attributes:
      space: the search space.
      height: image height that multiply-accumulates are counted at.
      width: image width.
    """

    space: SearchSpace
    height: int
    width: int

    def parameters(self, logits: Architecture) -> jax.Array:
        """Expected parameters of the choices as a share of the largest number, in [0, 1].

        The paper weighs modules by their share of parameters; here the costs are those of the
        search space itself, so that 1 is the most expensive architecture and 0 one whose choices
        are free.
        """
        return self._share(logits, "parameters")

    def macs(self, logits: Architecture) -> jax.Array:
        """Expected multiply-accumulates of the choices, as `parameters`."""
        return self._share(logits, "macs")

    def _share(self, logits: Architecture, unit: str) -> jax.Array:
        budget = cost.Budget(0, unit, self.height, self.width)  # for its unit
        most_expensive = budget.extremes(self.space)[1] - budget.fixed(self.space)
        expected = _expected_choices(self.space, budget.tables(self.space), logits)
        return expected / max(float(most_expensive), 1.0)  # 0 where every choice is free


def expected_cost(space: SearchSpace, budget: cost.Budget, logits: Architecture) -> jax.Array:
    """Expected cost of the whole network in a budget's unit, exactly; the limit does not matter.

    A residual block counts where its column is parallel: the product of both probabilities.
    """
    fixed = float(budget.fixed(space))  # beyond the integers of arrays
    return fixed + _expected_choices(space, budget.tables(space), logits)


def _expected_choices(
    space: SearchSpace, tables: Mapping[str, Sequence[Sequence[int]]], logits: Architecture
) -> jax.Array:
    probabilities = {"widths": jnp.ones((len(space.residual_blocks), 1))}
    probabilities |= jax.tree.map(jax.nn.softmax, dict(logits))
    if space.residual_blocks:
        parallel = probabilities["columns"][:, space.column_choices.index("parallel")]
        columns = np.array([column for column, _ in space.residual_blocks])
        probabilities["widths"] *= parallel[columns, None]
    return sum(
        jnp.sum(probabilities[kind] * np.array(table, float).reshape(probabilities[kind].shape))
        for kind, table in tables.items()
    )
