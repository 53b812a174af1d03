"""Hypergradients against the function that they are gradients of, and the search step of them.

Truth is the one-step-unrolled validation loss L_val(w', a) with w' written out by hand: clipping
apart, w' = w - xi lr (g + decay w + momentum trace), g = grad_w L_train(w, a). In float64, as the
central differences need it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import scene_batch

from manas_jax import config
from manas_jax.config import LossWeights
from manas_jax.models.network import Network, init_architecture
from manas_jax.search import bilevel
from manas_jax.search.step import SearchStep
from manas_jax.space import ALL_COLUMNS, CANDIDATES, SearchSpace
from manas_jax.training import build, losses
from manas_jax.training.state import SearchState, init_search

LEARNING_RATE, MOMENTUM, DECAY = 0.05, 0.9, 0.01
H = 1e-5  # of the central differences
RESTORATION_ALONE = LossWeights(
    tv=0.1, entropy_columns=0.0, entropy_attention=0.0, entropy_widths=0.0, complexity=0.0
)


BATCHES = scene_batch(seed=0), scene_batch(seed=1)  # for weights and architecture
TINIEST = SearchSpace(
    (4,), (1,), (0,), stem_blocks=1, attention_groups=1, candidates=("SE", "none")
)
FIELDS = dataclasses.fields(SearchState)


# A smooth little model: tanh layers, architecture as softmax weights of their inputs.


def _smooth_losses():
    draw = np.random.default_rng(0)
    data = {k: (draw.normal(size=(6, 4)), draw.normal(size=(6, 2))) for k in ("train", "val")}
    weights = {"in": draw.normal(size=(4, 5)) / 2, "out": draw.normal(size=(5, 2)) / 2}
    trace = {k: draw.normal(size=w.shape) / 10 for k, w in weights.items()}
    architecture = {"inputs": draw.normal(size=4), "hidden": draw.normal(size=5)}

    def loss(kind, w, a):
        x, y = data[kind]
        hidden = jnp.tanh((4 * jax.nn.softmax(a["inputs"]) * x) @ w["in"])
        hidden = 5 * jax.nn.softmax(a["hidden"]) * hidden
        return jnp.mean(jnp.square(jnp.tanh(hidden @ w["out"]) - y))

    return loss, *(jax.tree.map(jnp.asarray, tree) for tree in (weights, trace, architecture))


def _smooth_problem(loss, optimizer, state, xi, epsilon=0.01):
    train, val = (
        jax.grad(lambda w, a, kind=kind: loss(kind, w, a), argnums=(0, 1))
        for kind in ("train", "val")
    )
    return bilevel.BilevelProblem(
        train_grad=train,
        val_grad=val,
        mixed_hvp=lambda w, a, v: bilevel.mixed_hvp(lambda w, a: train(w, a)[1], w, a, v),
        unrolled_step=lambda w, g: bilevel.unrolled_step(optimizer, state, w, g, xi),
        unrolled_step_vjp=lambda w, g, c: bilevel.unrolled_step_vjp(optimizer, state, w, g, c, xi),
        epsilon=epsilon,
    )


def _sgd(trace, weights, clip=0.0):
    """The optimizer of the search and a state of it with this momentum."""
    optimizer = optax.chain(
        *([optax.clip_by_global_norm(clip)] if clip else []),
        optax.add_decayed_weights(DECAY),
        optax.sgd(LEARNING_RATE, momentum=MOMENTUM),
    )
    state = optimizer.init(weights)
    return optimizer, optax.tree_utils.tree_set(state, trace=trace)


def _by_hand(weights, gradient, trace, xi=1.0, clip=0.0, rate=LEARNING_RATE, decay=DECAY):
    if clip:
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g: g * jnp.minimum(1, clip / norm), gradient)
    return jax.tree.map(
        lambda w, g, t: w - xi * rate * (g + decay * w + MOMENTUM * t), weights, gradient, trace
    )


def _relative(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("clip", [0.0, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("xi", [1.0, 0.3])
def test_exact_is_the_gradient_of_the_unrolled_loss(float64, xi, clip):
    loss, weights, trace, architecture = _smooth_losses()
    optimizer, state = _sgd(trace, weights, clip)

    def unrolled(a):
        gradient = jax.grad(lambda w: loss("train", w, a))(weights)
        return loss("val", _by_hand(weights, gradient, trace, xi, clip), a)

    problem = _smooth_problem(loss, optimizer, state, xi)
    ours = bilevel.exact(problem, weights, architecture)
    assert _relative(ours, jax.grad(unrolled)(architecture)) < 1e-12
    first = bilevel.first_order(problem, weights, architecture)
    assert _relative(first, ours) > 1e-3  # the second term is there to be got wrong


def test_finite_difference_converges_with_slope_two(float64):
    loss, weights, trace, architecture = _smooth_losses()
    optimizer, state = _sgd(trace, weights)
    problem = _smooth_problem(loss, optimizer, state, 1.0)
    exact = bilevel.exact(problem, weights, architecture)
    epsilons = 10.0 ** np.arange(-1, -3.5, -0.5)
    errors = []
    for epsilon in epsilons:
        problem = _smooth_problem(loss, optimizer, state, 1.0, epsilon)
        errors.append(_relative(bilevel.finite_difference(problem, weights, architecture), exact))
    slope = np.polyfit(np.log(epsilons), np.log(errors), 1)[0]
    assert 1.98 < slope < 2.02, (slope, errors)


def test_virtual_step_has_momentum_decay_and_schedule(float64):
    """Left out, each of them would show; the state itself stays where it is."""
    loss, weights, trace, architecture = _smooth_losses()
    rates = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rates, momentum=MOMENTUM))
    state = optax.tree_utils.tree_set(optimizer.init(weights), trace=trace, count=4)
    gradient = jax.grad(lambda w: loss("train", w, architecture))(weights)
    before = jax.tree.map(np.array, state)
    ahead = bilevel.unrolled_step(optimizer, state, weights, gradient)
    assert _relative(ahead, _by_hand(weights, gradient, trace, rate=0.06)) < 1e-12
    jax.tree.map(np.testing.assert_array_equal, before, state)
    nothing = jax.tree.map(jnp.zeros_like, trace)
    for wrong in (
        _by_hand(weights, gradient, nothing, rate=0.06),
        _by_hand(weights, gradient, trace, rate=0.06, decay=0.0),
        _by_hand(weights, gradient, trace, rate=0.1),
    ):
        assert _relative(ahead, wrong) > 1e-5


def test_without_virtual_step_all_equal_first_order_exactly(float64):
    loss, weights, trace, architecture = _smooth_losses()
    optimizer, state = _sgd(trace, weights)
    problem = _smooth_problem(loss, optimizer, state, 0.0)
    first = bilevel.first_order(problem, weights, architecture)
    for other in (bilevel.finite_difference, bilevel.exact):
        jax.tree.map(np.testing.assert_array_equal, other(problem, weights, architecture), first)


def test_perturb_has_one_length_whatever_v():
    weights = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    for scale in (1e-6, 1.0, 1e6):
        v = jax.tree.map(lambda w, scale=scale: jnp.full_like(w, scale), weights)
        plus, minus, eps = bilevel.perturb(weights, v, 0.01)
        np.testing.assert_allclose(optax.tree.norm(plus), 0.01, rtol=1e-5)
        jax.tree.map(lambda p, m: np.testing.assert_array_equal(p, -m), plus, minus)
        np.testing.assert_allclose(eps * optax.tree.norm(v), 0.01, rtol=1e-5)


# The search step on a real network. Its architecture optimizer is plain SGD of rate 1, so that
# the step's hypergradient is how far it moves the logits.


def _real(space, hypergradient, *, xi=1.0, weights=RESTORATION_ALONE, dtype=np.float32, **options):
    network = Network(space)
    weight_optimizer = optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    )
    architecture_optimizer = optax.sgd(1.0)
    state = init_search(network, weight_optimizer, architecture_optimizer, seed=0)
    draw = np.random.default_rng(1)
    trace = jax.tree.map(lambda w: draw.normal(0, 0.1, w.shape), state.params)
    state = state.replace(
        architecture=init_architecture(space, 0, scale=0.5),
        opt_state=optax.tree_utils.tree_set(state.opt_state, trace=trace),
    )

    def cast(x):
        # A copy: steps give their arguments' memory away.
        return jnp.array(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)

    step = SearchStep(
        network,
        weight_optimizer,
        architecture_optimizer,
        hypergradient=hypergradient,
        loss_weights=weights,
        complexity_model=losses.ComplexityModel(space, 16, 16),
        xi=xi,
        **options,
    )
    return network, jax.tree.map(cast, state), step


def _copy(tree):
    return jax.tree.map(jnp.array, tree)


def _moved(step, state, *batches):
    after, _ = step.architecture_step(_copy(state), *batches)
    return jax.tree.map(lambda a, b: np.asarray(a - b), state.architecture, after.architecture)


@pytest.mark.parametrize(
    "choices",
    [
        {"candidates": ("none", "SE", "sep_conv_3x3_spatial")},
        {"candidates": ("none", "SE"), "column_choices": ALL_COLUMNS, "widths": (0.5, 1.0)},
        pytest.param({"candidates": CANDIDATES}, marks=pytest.mark.slow),
    ],
    ids=["papers", "widths", "all"],
)
def test_exact_step_equals_central_differences_for_every_logit(float64, choices):
    """Columns, attention and widths, through the step that the search runs."""
    space = SearchSpace((4, 8), (2,), (1,), stem_blocks=1, attention_groups=1, **choices)
    network, state, step = _real(space, "exact", dtype=np.float64)
    train, val = (scene_batch(seed=s, dtype=np.float64) for s in (0, 1))
    ours = _moved(step, state, train, val)

    objective = losses.scene_loss_fn(network, RESTORATION_ALONE, 0)
    trace = optax.tree_utils.tree_get(state.opt_state, "trace")

    def loss(w, a, batch):
        return objective(w, a, state.batch_stats, state.step, batch)[0]

    @jax.jit
    def unrolled(a):
        gradient = jax.grad(loss)(state.params, a, train)
        return loss(_by_hand(state.params, gradient, trace), a, val)

    for kind, logits in state.architecture.items():
        differences = np.empty(logits.shape)
        for index in np.ndindex(logits.shape):
            near, far = (
                [
                    unrolled({**state.architecture, kind: logits.at[index].add(sign * h)})
                    for sign in (1, -1)
                ]
                for h in (H, 2 * H)
            )
            # Of fourth order, so that a step this long is short enough.
            differences[index] = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * H)
        # The differences themselves are rounded, by some 1e-9 of the largest.
        rounding = 1e-8 * np.abs(differences).max()
        np.testing.assert_allclose(ours[kind], differences, rtol=1e-6, atol=rounding)
        assert np.all(np.abs(differences) > 1e-7)


@pytest.fixture(scope="module")
def steps(space):
    """One compiled step a kind, shared: hypergradient, options -> (step, state, compilation)."""
    made = {}

    def get(hypergradient, **options):
        key = (hypergradient, *sorted(options.items()))
        if key not in made:
            weights = LossWeights(tv=0.1)
            _, state, step = _real(space, hypergradient, weights=weights, **options)
            made[key] = step, state, step.compile(state, BATCHES[0])
        return made[key]

    return get


MODES = {
    "first_order": {},
    "finite_difference": {"xi": 0.0},
    "exact": {"xi": 0.0},
}


def _same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.mark.parametrize("hypergradient", ["finite_difference", "exact"])
def test_step_without_virtual_step_equals_first_order_exactly(steps, hypergradient):
    step, state, _ = steps("first_order")
    first = _moved(step, state, *BATCHES)
    step, state, _ = steps(hypergradient, xi=0.0)
    assert _same(_moved(step, state, *BATCHES), first)


@pytest.mark.parametrize("hypergradient", bilevel.HYPERGRADIENTS)
def test_every_mode_steps(steps, hypergradient):
    """The architecture moves alone, then weights and statistics; the latter count as a step."""
    step, state, compilation = steps(hypergradient, **MODES[hypergradient])
    assert compilation.flops > 0
    assert compilation.seconds > 0
    moved, metrics = step.architecture_step(_copy(state), *BATCHES)
    same = {f.name: _same(getattr(moved, f.name), getattr(state, f.name)) for f in FIELDS}
    assert same == {f.name: f.name not in ("architecture",) for f in FIELDS} | {
        "architecture_opt_state": same["architecture_opt_state"]  # plain SGD has nothing to move
    }
    assert {"architecture_restoration", "complexity", "entropy_columns"} <= metrics.keys()
    assert "restoration" not in metrics

    after, metrics = step(_copy(state), *BATCHES)
    assert int(after.step) == int(state.step) + 1
    assert _same(after.architecture, moved.architecture)
    for name in ("params", "batch_stats", "opt_state"):
        assert not _same(getattr(after, name), getattr(state, name))
    assert {"restoration", "mse", "ssim", "tv", "internal", "psnr"} <= metrics.keys()
    assert all(np.isfinite(v) for v in metrics.values())


def test_warm_up_leaves_the_architecture(steps):
    step, state, _ = steps("first_order")
    after, metrics = step(_copy(state), BATCHES[0], None)
    assert _same(after.architecture, state.architecture)
    assert not _same(after.params, state.params)
    assert not any(name.startswith(("architecture", "entropy")) for name in metrics)


def test_a_step_is_a_function_of_its_arguments(steps):
    step, state, _ = steps("first_order")
    first, second = (step(_copy(state), *BATCHES)[0] for _ in range(2))
    assert _same(first, second)
    swapped, _ = step(_copy(state), *BATCHES[::-1])
    assert not _same(swapped.architecture, first.architecture)


def test_steps_donate_the_old_state(steps):
    step, state, _ = steps("first_order")
    old = _copy(state)
    step(old, *BATCHES)
    assert all(x.is_deleted() for x in jax.tree.leaves((old.params, old.architecture)))


def test_fused_step_equals_separate_programs(steps):
    step, state, separate = steps("first_order")
    apart, metrics = step(_copy(state), *BATCHES)
    step, state, compilation = steps("first_order", fuse=True)
    assert compilation.flops == separate.flops > 0
    fused, same_terms = step(_copy(state), *BATCHES)
    assert metrics.keys() == same_terms.keys()
    for a, b in zip(*map(jax.tree.leaves, ((apart, metrics), (fused, same_terms))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_architecture_gradient_includes_regularization_and_complexity():
    """Where the restoration counts for nothing, the step's gradient is that of both."""
    weights = LossWeights(mse=0.0, ssim=0.0, tv=0.0, internal=0.0)
    _, state, step = _real(TINIEST, "first_order", weights=weights)
    model = losses.ComplexityModel(TINIEST, 16, 16)
    slope = jax.jit(jax.grad(lambda a: losses.architecture_loss(a, weights, model)[0]))
    wanted = slope(state.architecture)
    assert np.abs(wanted["attention"]).max() > 1e-5
    moved = _moved(step, state, *BATCHES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moved, wanted)


def test_internal_loss_starts_at_its_step():
    """The term is reported before, but moves nothing."""

    def weights_after(number, step):
        at = {"step": jnp.asarray(number, jnp.int32)}
        after, metrics = step.weight_step(_copy(state.replace(**at)), BATCHES[0])
        assert metrics["internal"] > 0
        return after.params

    _, state, late = _real(TINIEST, "first_order", internal_from=3)
    always = _real(TINIEST, "first_order")[2]
    never = dataclasses.replace(RESTORATION_ALONE, internal=0.0)
    never = _real(TINIEST, "first_order", weights=never)[2]
    assert _same(weights_after(2, step=late), weights_after(2, step=never))
    assert _same(weights_after(3, step=late), weights_after(3, step=always))
    assert not _same(weights_after(3, step=late), weights_after(3, step=never))


def test_optimizers_equal_the_papers():
    """SGD with momentum and cosine, decay in the gradient; Adam with decay in the gradient."""
    options = config.default().search
    options.update(steps=10, learning_rate=0.1, final_learning_rate=0.01)
    w, g = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    optimizer = build.search_weight_optimizer(options)
    state, weights, trace = optimizer.init(w), w, 0.0
    for number in range(3):
        updates, state = optimizer.update(g, state, weights)
        rate = 0.01 + 0.09 * (1 + np.cos(np.pi * number / 10)) / 2
        trace = g + options.weight_decay * weights + options.momentum * trace
        np.testing.assert_allclose(updates, -rate * trace, rtol=1e-5)
        weights = weights + updates

    optimizer = build.architecture_optimizer(options)
    state, logits, first, second = optimizer.init(w), w, 0.0, 0.0
    for number in range(1, 4):
        updates, state = optimizer.update(g, state, logits)
        slope = g + 1e-3 * logits
        first, second = 0.5 * first + 0.5 * slope, 0.999 * second + 0.001 * slope**2
        corrected = first / (1 - 0.5**number), second / (1 - 0.999**number)
        wanted = -3e-4 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        np.testing.assert_allclose(updates, wanted, rtol=1e-4)
        logits = logits + updates
