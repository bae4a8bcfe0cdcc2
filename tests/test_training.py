"""Training against a step written by hand, recomputed draws and NumPy's Adam."""

import dataclasses
import functools
import math
import re
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import optax
import pytest
from random_parameters import random_params
from scipy import stats
from tolerances import (
    FALSE_ALARM,
    assert_close,
    assert_plausible,
    assert_trees_within,
    assert_within,
    float32_error,
    size_of_log_weights,
    threshold,
    value_and_error,
)

from lvae_jax import VAE, LadderVAE, Objective, bounds, evaluation, objective, schedules, training
from lvae_jax.data import binarisation

train_step = training.train_step


def identity(key, images):
    return images


@functools.partial(jax.jit, static_argnums=0)
def fresh_state(optimizer, params):
    """A state before the first step; the buffers are its own, so that they may be donated."""
    depth = sum(name.startswith("mlps") for name in params["generative"])
    return training.fresh_state(jax.tree.map(jnp.copy, params), optimizer, depth)


def assert_trees_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# A step written by hand: plain functions of the parameters, differentiated automatically

LADDER = LadderVAE(5, (2, 1), (4, 3))
ADAM_EPSILON = 1e-3
ADAM = training.make_optimizer(1.0, adam_epsilon=ADAM_EPSILON)
GRADIENT = optax.sgd(1.0)  # parameters less the gradient times the scale of the update
MC_2 = Objective(mc_samples=2)
X = jnp.float32(np.random.default_rng(1).random((6, 5)) > 0.5)


def linear_by_hand(params, y):
    """A linear layer and batch norm by the moments over all axes but the last."""
    y = jnp.einsum("...i,ij->...j", y, params["Dense_0"]["kernel"])
    axes = tuple(range(y.ndim - 1))
    centred = y - jnp.mean(y, axes, keepdims=True)
    y_hat = centred / jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True) + 1e-5)
    scale, shift = (params["BatchNorm_0"][name] for name in ("scale", "shift"))
    return jnp.einsum("...i,i->...i", y_hat, scale) + jnp.broadcast_to(shift, y.shape)


def mlp_by_hand(params, y):
    for name in ("Linear_0", "Linear_1"):
        y = linear_by_hand(params[name], y)
        y = jnp.where(y > 0, y, 0.1 * y)
    return y


def head_by_hand(params, d):
    y = linear_by_hand(params["Linear_0"], d)
    units = y.shape[-1] // 2
    return y[..., :units], jnp.log1p(jnp.exp(y[..., units:])) + 1e-5


def loss_by_hand(params, x, noise, beta):
    """Minus the ELBO of `LADDER`, its two layers spelled out, given the noise of both layers."""
    up, down = params["inference"], params["generative"]
    d_1 = mlp_by_hand(up["mlps_0"], x)
    m_1, v_1 = head_by_hand(up["heads_0"], d_1)
    m_2, v_2 = head_by_hand(up["heads_1"], mlp_by_hand(up["mlps_1"], d_1))
    z_2 = m_2[None] + jnp.sqrt(v_2)[None] * noise[1]
    pm, pv = head_by_hand(down["heads_0"], mlp_by_hand(down["mlps_1"], z_2))
    qv = 1 / (1 / v_1[None] + 1 / pv)
    qm = qv * (m_1[None] / v_1[None] + pm / pv)
    z_1 = qm + jnp.sqrt(qv) * noise[0]
    head = down["observation_head"]["Dense_0"]
    logits = jnp.einsum("...i,ij->...j", mlp_by_hand(down["mlps_0"], z_1), head["kernel"])
    logits = logits + jnp.broadcast_to(head["bias"], logits.shape)
    p = 1 / (1 + jnp.exp(-logits))
    log_px = jnp.sum(jnp.log(jnp.where(x[None] == 1, p, 1 - p)), -1)
    kl_1 = 0.5 * jnp.sum(qv / pv + (qm - pm) ** 2 / pv - 1 + jnp.log(pv / qv), -1)
    kl_2 = 0.5 * jnp.sum(v_2 + m_2**2 - 1 - jnp.log(v_2), -1)[None]
    kl = kl_1 + kl_2
    metrics = (jnp.mean(log_px - kl), jnp.mean(log_px), jnp.stack([kl_1.mean(), kl_2.mean()]))
    return -jnp.mean(log_px - beta * kl), metrics


@functools.partial(jax.jit, static_argnames="samples")
def step_by_hand(params, x, key, beta, samples):
    """Gradients and metrics, with the noise that the model draws from the key."""
    terms = LADDER.apply(
        {"params": params}, x, num_samples=samples, train=True, rngs={"sample": key}
    )
    noise = [
        jax.lax.stop_gradient((z - q.mean) / jnp.sqrt(q.variance))
        for z, q in zip(terms.z, terms.posterior, strict=True)
    ]
    return jax.grad(loss_by_hand, has_aux=True)(params, x, noise, beta)


def by_hand(params, key, beta, samples):
    """The gradient and the metrics in float64, and what float32 may make of them.

    Of every parameter: a dozen layers, and batch norm, which takes away what the values of a unit
    have in common and keeps their rounding.
    Where the terms of one element of a gradient cancel, it has the error of its leaf's others.
    """

    def in_float64(params):
        return step_by_hand(params, np.float64(X), key, beta, samples=samples)

    with jax.enable_x64(True):
        value, (of_gradient, of_metrics) = value_and_error(in_float64, params, roundings=64)
    of_gradient = jax.tree.map(lambda e: np.full(e.shape, e.max()), of_gradient)
    return value, (of_gradient, of_metrics)


def assert_is_step(state, stepped, gradient, error):
    """A step by the gradient, whose error adds to the rounding of the parameters."""
    before, after = flat(state.params), flat(stepped.params)
    rounding = float32_error(1, np.maximum(np.abs(before), np.abs(after)))
    assert_within(before - after, flat(gradient), flat(error) + rounding)


def error_of_adam(size):
    """Of an update, by the rounding of gradients up to a size: Adam divides it by its epsilon."""
    return float32_error(32, size) / ADAM_EPSILON


def trained_and_error(train, params):
    """What a program makes of the state of some parameters, and other programs of theirs.

    Of every parameter half a dozen layers.
    """

    def of_params(params):
        return train(fresh_state(ADAM, jax.tree.map(jnp.float32, params)))

    return value_and_error(of_params, params, roundings=32)


class NumpyAdam:
    """Kingma and Ba's algorithm 1, in float64."""

    def __init__(self):
        self.step, self.first, self.second = 0, 0.0, 0.0

    def __call__(self, gradient):
        self.step += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.step)
        second = self.second / (1 - 0.999**self.step)
        return first / (np.sqrt(second) + ADAM_EPSILON)


def flat(tree):
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def test_steps_are_adam_on_the_gradient_of_the_elbo_written_by_hand():
    state = fresh_state(ADAM, random_params(LADDER))
    adam, beta, size = NumpyAdam(), jnp.float32(0.3), 0.0
    for step, learning_rate in enumerate((0.01, 0.02, 0.005)):
        key = jax.random.key(step)
        (gradient, expected), (_, of_metrics) = by_hand(state.params, key, beta, samples=2)
        size = max(size, np.abs(flat(gradient)).max())
        before = flat(state.params)
        state, metrics = train_step(
            LADDER, ADAM, state, X, key, beta, jnp.float32(learning_rate), MC_2
        )
        tolerance = learning_rate * error_of_adam(size) + float32_error(2, before)
        assert_within(before - flat(state.params), learning_rate * adam(flat(gradient)), tolerance)
        assert state.step == step + 1
        assert_trees_within(tuple(metrics), expected, of_metrics)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_is_that_of_the_elbo_written_by_hand(beta):
    state = fresh_state(GRADIENT, random_params(LADDER, seed=2))
    key = jax.random.key(3)
    (gradient, expected), errors = by_hand(state.params, key, jnp.float32(beta), samples=2)
    stepped, metrics = train_step(
        LADDER, GRADIENT, state, X, key, jnp.float32(beta), jnp.float32(1.0), MC_2
    )
    assert_is_step(state, stepped, gradient, errors[0])
    # The metrics are those of beta = 1, whatever beta.
    assert_trees_within(tuple(metrics), expected, errors[1])


# Samples


def importance_loss(params, model, x, key, samples, group):
    """Minus the mean, over groups of samples, of log mean w; densities written out."""
    terms = model.apply(
        {"params": params}, x, num_samples=samples, train=True, rngs={"sample": key}
    )

    def log_density(z, p):
        return jax.scipy.stats.norm.logpdf(z, p.mean, jnp.sqrt(p.variance)).sum(-1)

    log_weights = terms.log_px
    for z, q, p in zip(terms.z, terms.posterior, terms.prior, strict=True):
        log_weights += log_density(z, p) - log_density(z, q)
    groups = [log_weights[i : i + group] for i in range(0, samples, group)]
    return -sum(jnp.mean(jnp.log(jnp.mean(jnp.exp(g), axis=0))) for g in groups) / len(groups)


@pytest.mark.parametrize(
    ("mc_samples", "importance_samples", "closed_form_kl"),
    [(3, 2, True), (6, 1, False)],  # with K = 1: log q - log p instead of a KL
)
def test_step_climbs_the_bound_of_importance_samples_averaged_over_mc_samples(
    mc_samples, importance_samples, closed_form_kl
):
    model = LadderVAE(5, (2,), ((4,),), batch_norm=False)
    state = fresh_state(GRADIENT, random_params(model, seed=4))
    key = jax.random.key(5)
    samples, x = mc_samples * importance_samples, np.float64(X)
    gradient_of = jax.jit(jax.grad(importance_loss), static_argnums=(1, 4, 5))
    with jax.enable_x64(True):
        gradient, error = value_and_error(
            lambda params: gradient_of(params, model, x, key, samples, importance_samples),
            state.params,
            roundings=32,
        )
    stepped, _ = train_step(
        model,
        GRADIENT,
        state,
        X,
        key,
        jnp.float32(1.0),
        jnp.float32(1.0),
        Objective(mc_samples, importance_samples, closed_form_kl=closed_form_kl),
    )
    assert_is_step(state, stepped, gradient, error)


@pytest.mark.parametrize(("mc_samples", "importance_samples"), [(1, 1), (2, 3)])
def test_an_example_has_mc_times_importance_samples(mc_samples, importance_samples):
    model = VAE(5, (7,), ((4,),), batch_norm=False)
    step = functools.partial(
        training.train_step,
        model,
        GRADIENT,
        objective=Objective(mc_samples, importance_samples),
    )
    state = fresh_state(GRADIENT, random_params(model))
    program = str(jax.make_jaxpr(step)(state, X, jax.random.key(0), 1.0, 1.0))
    sizes = re.findall(r"f32\[(\d+),6,7\]", program)  # arrays of z: [samples, batch, units]
    assert max(map(int, sizes)) == mc_samples * importance_samples


def test_with_beta_zero_nothing_moves_that_only_the_kl_depends_on():
    # With an inference of its own all the way down, p(z_1 | z_2) enters the KL alone.
    model = LadderVAE(5, (2, 1), ((4,), (3,)), batch_norm=False, own_top_down=True)
    state = fresh_state(ADAM, random_params(model, seed=6))
    moved = {}
    for beta in (0.0, 1.0):
        stepped, _ = train_step(
            model, ADAM, state, X, jax.random.key(7), jnp.float32(beta), jnp.float32(0.01)
        )
        moved[beta] = {
            jax.tree_util.keystr(path): not np.array_equal(before, after)
            for (path, before), after in zip(
                jax.tree_util.tree_leaves_with_path(state.params),
                jax.tree.leaves(stepped.params),
                strict=True,
            )
        }
    assert all(moved[1.0].values())
    prior = ("['generative']['mlps_1']", "['generative']['heads_0']")
    still = {path for path, has_moved in moved[0.0].items() if not has_moved}
    assert still == {path for path in moved[0.0] if path.startswith(prior)}
    assert len(still) == 4


# Gradients of the inference model, and free bits


@functools.partial(jax.jit, static_argnames=("model", "importance_samples", "names", "num_draws"))
def gradients_of_draws(model, params, x, beta, importance_samples, names, num_draws):
    """By name, the gradient that a step climbs, for every draw of z; and the draws, the same.

    "sampled" is the standard gradient of the bound without closed forms.
    """

    def gradient(key, name):
        options = {"closed_form_kl": False} if name == "sampled" else {"gradient": name}
        climbed = Objective(importance_samples=importance_samples, **options)
        _, _, gradients = objective.loss_and_gradients(model, params, x, key, beta, climbed)
        return jax.tree.map(jnp.negative, gradients)

    def draw(key):
        rngs = {"sample": key}
        return model.apply({"params": params}, x, importance_samples, train=True, rngs=rngs)

    keys = jax.random.split(jax.random.key(20), num_draws)
    gradients = {name: jax.vmap(functools.partial(gradient, name=name))(keys) for name in names}
    return gradients, jax.vmap(draw)(keys)


def largest_sizes(terms):
    """Of the log weights of every draw, the largest, in nats."""
    return size_of_log_weights(terms).max(axis=(1, 2))


def rows(tree):
    """[draws, parameters], float64."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.float64(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


SMALL = {
    model_class: model_class(4, (2, 2), ((3,), (3,)), batch_norm=False)
    for model_class in (LadderVAE, VAE)
}
SMALL_X = jnp.float32([[0, 1, 1, 0], [1, 0, 1, 1]])
both_models = pytest.mark.parametrize("model_class", SMALL)


@functools.cache
def small_gradients(model_class, importance_samples, beta=1.0):
    """Of both parts of a small model, 4000 draws each; and the sizes of their log weights."""
    model = SMALL[model_class]
    names = ("standard", "stl", "sampled" if importance_samples == 1 else "dreg")
    gradients, terms = gradients_of_draws(
        model,
        random_params(model, seed=3),
        SMALL_X,
        jnp.float32(beta),
        importance_samples,
        names,
        4000,
    )
    return largest_sizes(terms), {
        part: {name: rows(gradients[name][part]) for name in gradients}
        for part in ("inference", "generative")
    }


def assert_same_gradients(one, other, sizes):
    """Of every draw, by two programs: exp makes errors of log weights relative ones of gradients.

    An element has at most the rounding of its largest one, times the size of its own log weights.
    """
    assert_close(one, other, roundings=16, size=sizes[:, None] * np.abs(other).max(0))


def z_scores(one, other):
    """Of the mean difference of two gradients, in standard errors, along its principal axes.

    Along these axes a difference of mean zero has uncorrelated scores of variance one.
    """
    difference = other - one
    variances, axes = np.linalg.eigh(np.cov(difference.T))
    axes = axes[:, variances > 1e-6 * variances.max()]  # the others are rounding
    along = difference @ axes
    return along.mean(0) / (along.std(0, ddof=1) / np.sqrt(len(along)))


def assert_same_mean(one, other):
    """Of two gradients, by their z-scores; that they differ by draw gives the test its strength."""
    scores = z_scores(one, other)
    assert len(scores) > 10
    assert np.max(np.abs(scores)) < threshold(comparisons=len(scores) + 1)
    # A sum of squares of independent scores, which are as good as normal, is chi-squared.
    assert_plausible(stats.chi2.sf(np.sum(scores**2), len(scores)))


@both_models
@pytest.mark.parametrize(
    ("name", "importance_samples", "beta"),
    [("stl", 1, 1.0), ("stl", 1, 0.5), ("dreg", 8, 1.0), ("dreg", 8, 0.5)],
)
def test_gradients_have_the_mean_of_the_bounds_own(model_class, name, importance_samples, beta):
    sizes, gradients = small_gradients(model_class, importance_samples, beta)
    assert_same_mean(gradients["inference"]["standard"], gradients["inference"][name])
    generative = gradients["generative"]
    if (model_class, name) == (LadderVAE, "stl"):  # its KL terms in closed form have parameters
        assert_same_mean(generative["standard"], generative[name])
        assert_same_gradients(generative[name], generative["sampled"], sizes)
    else:
        assert_same_gradients(generative[name], generative["standard"], sizes)


@both_models
def test_sticking_the_landing_with_several_importance_samples_is_biased(model_class):
    inference = small_gradients(model_class, 8)[1]["inference"]
    assert np.max(np.abs(z_scores(inference["standard"], inference["stl"]))) > 30


def test_holding_the_fields_of_the_posterior_constant_is_biased():
    # They depend on samples of other layers: it is the parameters that have to be constant.
    model = SMALL[LadderVAE]
    params = random_params(model, seed=3)

    @jax.jit
    def gradients(keys):
        def path_bound(inference, key):
            variables = {"params": {**params, "inference": inference}}
            terms = model.apply(variables, SMALL_X, num_samples=8, rngs={"sample": key})
            constant = jax.lax.stop_gradient(terms.posterior)
            path = dataclasses.replace(terms, posterior=constant)
            return jnp.mean(bounds.doubly_reparameterized(path, 1.0, 8))

        return jax.vmap(jax.grad(path_bound), in_axes=(None, 0))(params["inference"], keys)

    standard = small_gradients(LadderVAE, 8)[1]["inference"]["standard"]
    keys = jax.random.split(jax.random.key(20), len(standard))
    assert np.max(np.abs(z_scores(standard, rows(gradients(keys))))) > 8


@both_models
def test_with_beta_zero_there_is_no_score_to_do_without(model_class):
    sizes, gradients = small_gradients(model_class, 8, 0.0)
    inference = gradients["inference"]
    for name in ("stl", "dreg"):
        assert_same_gradients(inference[name], inference["standard"], sizes)


def linear_gradients(model_class, generative, inference, importance_samples):
    """By name, of the inference model of a linear-Gaussian model, 500 draws; and their sizes."""
    model, variables = lg.model_and_variables(model_class, generative, inference)
    names = ("standard", "stl", "dreg")
    gradients, terms = gradients_of_draws(
        model,
        variables["params"],
        jnp.float32(lg.X),
        jnp.float32(1.0),
        importance_samples,
        names,
        500,
    )
    return {name: rows(gradients[name]["inference"]) for name in names}, largest_sizes(terms)


LINEAR = {LadderVAE: lg.LADDER, VAE: lg.ONE_UNIT_LAYERS}


@both_models
def test_without_the_score_every_draw_from_the_exact_posterior_has_a_gradient_of_zero(model_class):
    generative = LINEAR[model_class][:2]
    inference = lg.perfectly(generative, model_class)
    gradients, sizes = linear_gradients(model_class, generative, inference, 8)
    largest = {name: np.abs(gradients[name]).max(axis=1) for name in gradients}
    assert np.all(largest["standard"] > 0.02)
    # What cancels are slopes of log weights, in nats a unit of z: no more than these add up.
    assert np.all(largest["stl"] < float32_error(64, sizes))
    assert np.all(largest["dreg"] < float32_error(64, sizes))


@both_models
def test_close_to_the_exact_posterior_doubly_reparameterised_gradients_vary_least(model_class):
    generative = LINEAR[model_class][:2]
    inference = lg.worsened(lg.perfectly(generative, model_class))
    gradients, _ = linear_gradients(model_class, generative, inference, 8)
    variance = {name: np.sum(np.var(gradients[name], axis=0)) for name in gradients}
    assert variance["dreg"] < 0.5 * variance["standard"]


def test_steps_by_other_gradients_move_every_parameter_and_have_the_same_metrics():
    state, key = fresh_state(ADAM, random_params(LADDER, seed=15)), jax.random.key(16)
    beta = jnp.float32(0.3)
    stepped, metrics = train_step(
        LADDER, ADAM, state, X, key, beta, jnp.float32(0.01), Objective(**DREG)
    )
    for before, after in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(stepped.params), strict=True
    ):
        assert np.all(np.isfinite(after))
        assert not np.array_equal(before, after)
    (_, expected), (_, error) = by_hand(state.params, key, beta, samples=2)
    assert_trees_within(tuple(metrics), expected, error)


def test_with_every_kl_below_the_free_bits_a_step_is_that_of_beta_zero():
    state, key = fresh_state(GRADIENT, random_params(LADDER, seed=2)), jax.random.key(3)
    (gradient, expected), errors = by_hand(state.params, key, jnp.float32(0.0), samples=2)
    stepped, metrics = train_step(
        LADDER,
        GRADIENT,
        state,
        X,
        key,
        jnp.float32(0.3),
        jnp.float32(1.0),
        Objective(mc_samples=2, free_bits=1e6),
    )
    assert_is_step(state, stepped, gradient, errors[0])
    assert_trees_within(tuple(metrics), expected, errors[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "iwae"}, "gradient='iwae'; give one of standard, stl, dreg"),
        (
            {"free_bits": 0.1, "importance_samples": 2},
            "free_bits=0.1, importance_samples=2, gradient='standard': free bits are for the ELBO "
            "and its standard gradient; give importance_samples=1 and gradient='standard', or "
            "free_bits=0",
        ),
        ({"free_bits": 0.1, "gradient": "stl"}, "free_bits=0.1, importance_samples=1, gradient='s"),
        (
            {"free_bits": 0.1, "gradient": "dreg"},
            "importance_samples=1, gradient='dreg': free bits",
        ),
        ({"free_bits": -0.1}, "free_bits=-0.1; give nats per unit, at least 0"),
        ({"free_bits": math.nan}, "free_bits=nan; give nats per unit, at least 0"),
        ({"mc_samples": 0}, "mc_samples=0, importance_samples=1; give at least 1 of each"),
        ({"importance_samples": 0}, "mc_samples=1, importance_samples=0; give at least 1 of each"),
    ],
)
def test_what_is_no_objective_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Objective(**options)


@functools.cache
def terms_of_three_samples():
    apply = jax.jit(functools.partial(LADDER.apply, num_samples=3, train=True))
    return apply({"params": random_params(LADDER)}, X, rngs={"sample": jax.random.key(0)})


@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
def test_loss_and_metrics_are_means_over_samples_and_examples(platform, monkeypatch):
    terms = terms_of_three_samples()
    log_px, kl = np.float64(terms.log_px), []
    for q, p in zip(terms.posterior, terms.prior, strict=True):
        (m_q, v_q), (m_p, v_p) = (map(np.float64, gaussian) for gaussian in (q, p))
        kl.append(0.5 * np.sum(v_q / v_p + (m_q - m_p) ** 2 / v_p - 1 + np.log(v_p / v_q), -1))
    expected = (log_px - sum(kl)).mean()
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *given, default, **known: known.get(platform, default)(*given),
    )
    found, loss = jax.jit(lambda terms: (objective.metrics_of(terms), Objective().loss(terms)))(
        terms
    )
    size = np.abs(log_px).mean() + sum(layer.mean() for layer in kl)
    roundings = 16 + np.sqrt(18)  # of a term, and the mean of three samples of six examples
    assert_close(found.train_elbo, expected, roundings, size)
    assert_close(found.log_px, log_px.mean(), roundings, size)
    assert_close(found.kl_per_layer, [layer.mean() for layer in kl], roundings, size)
    assert_close(loss, -expected, roundings, size)


def test_loss_and_gradients_are_of_beta_one_unless_given():
    loss, metrics, _ = jax.jit(functools.partial(objective.loss_and_gradients, MODEL))(
        random_params(MODEL), X, jax.random.key(0)
    )
    size = np.abs(metrics.log_px) + np.float64(metrics.kl_per_layer).sum()
    assert_close(loss, -metrics.train_elbo, roundings=16, size=size)


# The optimiser and its learning rate


@pytest.mark.parametrize(
    ("max_gradient_norm", "max_gradient", "scale"),
    [
        (None, None, 1.0),
        (4.0, None, 1.0),  # the norm is 13
        (4.0, None, 0.1),  # the norm is 1.3, and nothing is limited
        (None, 0.9, 1.0),
        (4.0, 0.9, 1.0),
    ],
)
def test_gradients_are_limited_in_norm_and_then_elementwise(max_gradient_norm, max_gradient, scale):
    gradient = scale * np.array([3.0, -4.0, 0.5, 12.0, -0.3])
    limited = gradient
    if max_gradient_norm is not None:
        limited = limited * min(1.0, max_gradient_norm / np.linalg.norm(limited))
    if max_gradient is not None:
        limited = np.clip(limited, -max_gradient, max_gradient)
    # A first step of Adam is g / (|g| + epsilon): with epsilon = 1 the size of g can be read.
    optimizer = training.make_optimizer(0.5, max_gradient_norm, max_gradient, adam_epsilon=1.0)
    tree = {"a": jnp.float32(gradient[:3]), "b": jnp.float32(gradient[3:])}
    updates, _ = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree)
    expected = -0.5 * limited / (np.abs(limited) + 1.0)
    # Adam divides by 1 - 0.999, which has the rounding of 0.999: 1,000 of its own, and under the
    # square root half as many.
    assert_close(flat(updates), expected, roundings=8 + 500)


def test_equal_arguments_in_any_spelling_make_one_optimiser():
    default = training.make_optimizer()
    assert training.make_optimizer(1e-3) is training.make_optimizer(learning_rate=1e-3) is default
    assert training.make_optimizer(jnp.float32(0.5)) is training.make_optimizer(0.5)
    assert training.make_optimizer(1e-3, ema_decay=0.5) is not default


def test_a_learning_rate_may_be_a_schedule():
    optimizer = training.make_optimizer(lambda step: 0.5 / (step + 1))
    tree = jnp.float32([1.0, -2.0])
    state = optimizer.init(tree)
    for learning_rate in (0.5, 0.25):
        updates, state = optimizer.update(tree, state, tree)
        # Of a constant gradient, Adam's moments are the gradient and its square.
        assert_close(updates, -learning_rate * np.sign(tree), roundings=8 + 500)


# Keys


def key_by_hand(key, name, step):
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def test_keys_differ_by_name_step_and_root():
    keys = {
        (seed, name, step): tuple(
            jax.random.key_data(training.named_key(jax.random.key(seed), name, step)).tolist()
        )
        for seed in (0, 1)
        for name in ("sample", "shuffle", "preprocess")
        for step in (0, 1, 1000)
    }
    assert len(set(keys.values())) == len(keys) == 18
    for (seed, name, step), data in keys.items():
        by_hand = key_by_hand(jax.random.key(seed), name, step)
        assert tuple(jax.random.key_data(by_hand).tolist()) == data


def test_a_name_enters_a_key_by_its_crc_32():
    # 0xCBF43926 is the check value that catalogues of CRCs give for these nine characters.
    root = jax.random.key(0)
    by_hand = jax.random.fold_in(jax.random.fold_in(root, 0xCBF43926), 3)
    assert training.named_key(root, "123456789", 3) == by_hand


# Initial state


def test_initial_state_is_a_function_of_the_key():
    one, again, other = (
        training.init_state(MODEL, ADAM, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert_trees_equal(one, again)
    for path, leaf in jax.tree_util.tree_leaves_with_path(one.params):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == jnp.float32, name
        # Biases start at zero, also those of batch norm; kernels at random, its scales at one.
        assert (not np.any(leaf)) == ("bias" in name or "shift" in name), name
        assert np.all(np.asarray(leaf) == 1) == ("scale" in name), name
    assert np.any(flat(one.params) != flat(other.params))
    assert one.step == 0
    assert one.step.dtype == jnp.int32
    assert not np.any(flat(one.opt_state))
    # A weakly typed leaf would make the second epoch compile anew.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(one))


def test_each_replica_starts_as_the_run_of_its_key_does():
    keys = [jax.random.key(seed) for seed in (3, 0, 1)]
    replicas = training.init_state(MODEL, ADAM, jnp.stack(keys))
    for r, key in enumerate(keys):
        replica = jax.tree.map(lambda leaf, r=r: np.asarray(leaf)[r], replicas)
        single = training.init_state(MODEL, ADAM, key)
        assert_trees_within(replica, single, float32_error(8, 1))


# An epoch

MODEL = VAE(5, (2,), ((3,),))
IMAGES = np.random.default_rng(8).integers(0, 256, (14, 5), np.uint8)
ROOT = jax.random.key(9)


DREG = {"gradient": "dreg", "importance_samples": 2}


def train_epoch(
    state,
    beta=1.0,
    update_scale=0.01,
    preprocess=binarisation.binarise,
    steps=None,
    max_nonfinite=0,
    batches=None,
    **options,
):
    """Three steps of 4 of the 14 images."""
    return training.train_epoch(
        MODEL,
        ADAM,
        preprocess,
        state,
        jnp.asarray(IMAGES),
        ROOT,
        jnp.float32(beta),
        jnp.float32(update_scale),
        max_nonfinite,
        batch_size=4,
        steps=steps,
        objective=Objective(**options),
        batches=batches,
    )


def start():
    return fresh_state(ADAM, random_params(MODEL, seed=10))


def mean_of(metrics_of_steps):
    return jax.tree.map(lambda *values: np.mean(np.float64(values), axis=0), *metrics_of_steps)


def test_an_epoch_visits_images_at_most_once_in_a_new_order_and_drops_the_last_partial_batch():
    seen = []

    def spy(key, images):
        jax.debug.callback(lambda *args: seen.append(args), jax.random.key_data(key), images)
        return binarisation.binarise(key, images)

    state = start()
    orders = []
    for epoch in range(2):
        state, _ = train_epoch(state, preprocess=spy)
        jax.effects_barrier()
        assert state.step == 3 * (epoch + 1)
        assert len(seen) == 3
        # Callbacks may come in any order: they are told apart by the keys of their steps.
        by_key = {tuple(np.asarray(key).tolist()): np.asarray(images) for key, images in seen}
        steps = [key_by_hand(ROOT, "preprocess", 3 * epoch + step) for step in range(3)]
        batches = [by_key[tuple(jax.random.key_data(key).tolist())] for key in steps]
        assert all(batch.shape == (4, 5) for batch in batches)
        index = {image.tobytes(): i for i, image in enumerate(IMAGES)}
        orders.append([index[image.tobytes()] for batch in batches for image in batch])
        assert len(set(orders[-1])) == 12
        seen.clear()
    assert orders[0] != orders[1]


def one_step(state, step, **options):
    """A step with its images and keys as documented."""
    epoch, position = divmod(step, 3)
    order = jax.random.permutation(key_by_hand(ROOT, "shuffle", 3 * epoch), 14)
    images = jnp.asarray(IMAGES[np.asarray(order)[4 * position : 4 * position + 4]])
    x = binarisation.binarise(key_by_hand(ROOT, "preprocess", step), images)
    key = key_by_hand(ROOT, "sample", step)
    beta, update_scale = jnp.float32(1.0), jnp.float32(0.01)
    return train_step(MODEL, ADAM, state, x, key, beta, update_scale, Objective(**options))


def test_the_draws_of_a_step_follow_from_the_key_a_name_and_the_step():
    state, expected = start(), []
    for step in range(6):
        state, metrics = one_step(state, step, **DREG)
        expected.append(metrics)

    def two_epochs(state):
        state, first = train_epoch(state, **DREG)
        state, second = train_epoch(state, **DREG)
        return state[:3], [first, second]  # params, opt_state, step

    of_epochs = [mean_of(expected[:3]), mean_of(expected[3:])]
    found, error = trained_and_error(two_epochs, start().params)
    assert_trees_within(found, (state[:3], of_epochs), error)


def test_a_run_taken_up_from_a_copy_on_the_host_goes_on_bit_for_bit():
    uninterrupted, _ = train_epoch(train_epoch(start())[0], beta=0.5)
    on_host = jax.device_get(train_epoch(start())[0])
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(on_host))
    resumed, _ = train_epoch(jax.tree.map(jnp.asarray, on_host), beta=0.5)
    assert_trees_equal(uninterrupted, resumed)
    assert np.any(flat(resumed.params) != flat(on_host.params))


@pytest.mark.parametrize("options", [{}, DREG], ids=["the paper", "dreg"])
def test_an_epoch_compiles_once_for_any_beta_and_learning_rate(options):
    train_epoch(start(), **options)  # compiles it, unless another test has
    programs = training.train_epoch._cache_size()
    state = training.init_state(MODEL, ADAM, jax.random.key(11))
    for beta, learning_rate in ((0.0, 0.01), (0.5, 0.01), (1.0, 0.002), (1.0, 0.0)):
        state, _ = train_epoch(state, beta, learning_rate, **options)
        assert training.train_epoch._cache_size() == programs
    assert state.step == 12


def test_an_epoch_takes_over_the_buffers_of_the_state():
    state = start()
    after, _ = train_epoch(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_an_epoch_in_parts_is_a_whole_one_bit_for_bit():
    whole, parts = start(), start()
    for epoch in range(2):
        whole, expected = train_epoch(whole)
        for part in range(3):
            parts, metrics = train_epoch(parts, steps=1)
            assert parts.step == 3 * epoch + part + 1
            assert parts.epoch_updates == part + 1
        assert_trees_equal(metrics, expected)
        assert_trees_equal(parts, whole)


def test_an_epoch_ends_with_its_last_step_however_many_are_asked_for():
    whole, parts = start(), start()
    for epoch in range(2):
        whole, expected = train_epoch(whole)
        parts, _ = train_epoch(parts, steps=2)
        parts, metrics = train_epoch(parts, steps=2 + epoch)
        assert_trees_equal(metrics, expected)
        assert_trees_equal(parts, whole)
    parts, _ = train_epoch(train_epoch(start(), steps=1)[0])
    assert_trees_equal(parts, train_epoch(start())[0])


def test_the_batches_of_an_epoch_can_be_computed_before_it():
    state, expected = train_epoch(start(), steps=1)[0], train_epoch(start())
    batches = training.epoch_batches(ROOT, state.step, len(IMAGES), 4)[1]
    assert_trees_equal(train_epoch(state, batches=batches), expected)
    with pytest.raises(ValueError, match=r"batches of shape \(2, 4\); give .*, \(3, 4\)"):
        train_epoch(start(), batches=batches[:2])
    given = (MODEL, ADAM, binarisation.binarise, start(), jnp.asarray(IMAGES), ROOT)
    with pytest.raises(
        ValueError, match="batch_size=0, 14 images; give a whole number from 1 to 14"
    ):
        training.train_epoch(*given, batch_size=0, batches=batches)


@pytest.mark.parametrize("name", ["max_gradient_norm", "max_gradient"])
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_on_gradients_that_are_none_are_refused(name, limit):
    with pytest.raises(ValueError, match=f"{name}={limit}; give a positive number, or None"):
        training.make_optimizer(0.1, **{name: limit})


# Numbers that are not finite


@functools.cache
def poisoned(*bad_steps):
    """A preprocess that gives NaN in the steps whose keys are those of `bad_steps`."""
    bad = jnp.stack([jax.random.key_data(key_by_hand(ROOT, "preprocess", s)) for s in bad_steps])

    def preprocess(key, images):
        is_bad = jnp.any(jnp.all(bad == jax.random.key_data(key)[None], axis=1))
        return jnp.where(is_bad, jnp.nan, binarisation.binarise(key, images))

    return preprocess


def test_the_rows_of_batches_are_the_same_with_64_bits():
    expected = training.epoch_batches(ROOT, 0, 1000, 4)[1]
    with jax.enable_x64(True):
        found = training.epoch_batches(ROOT, 0, 1000, 4)[1]
    assert found.dtype == expected.dtype == jnp.int32  # a compiled epoch takes no others
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("steps", [-1, 0, 4])
def test_a_number_of_steps_that_an_epoch_does_not_have_is_refused(steps):
    with pytest.raises(
        ValueError, match=f"steps={steps}; an epoch has 3, give a whole number from 1 to that"
    ):
        train_epoch(start(), steps=steps)


@pytest.mark.parametrize(
    ("states", "keys", "betas", "scales", "batches", "named"),
    [
        (3, 1, 1, 1, None, "state 3, key 1, beta 1, update_scale 1;"),
        (3, 3, 2, 3, None, "state 3, key 3, beta 2, update_scale 3;"),
        (3, 4, 3, 3, None, "state 3, key 4, beta 3, update_scale 3;"),
        (None, 3, 3, 3, None, "state none, key 3, beta 3, update_scale 3;"),
        (3, 3, 3, 3, 2, "state 3, key 3, beta 3, update_scale 3, batches 2;"),
        (None, None, (), (), None, "state none, key none, beta none, update_scale none;"),
    ],
)
def test_replicas_of_different_numbers_are_refused(states, keys, betas, scales, batches, named):
    key = ROOT if states is None else jax.random.split(ROOT, states)
    state = training.init_state(MODEL, ADAM, key)
    _, rows = training.epoch_batches(ROOT, 0, len(IMAGES), 4)
    with pytest.raises(ValueError, match=f"numbers of replicas: {named} give equally many"):
        training.train_replicas(
            MODEL,
            ADAM,
            binarisation.binarise,
            state,
            jnp.asarray(IMAGES),
            ROOT if keys is None else jax.random.split(ROOT, keys),
            jnp.ones(betas),
            jnp.ones(scales),
            batch_size=4,
            batches=None if batches is None else jnp.stack([rows] * batches),
        )


class HalfPrecision(nn.Module):
    """An MLP with bfloat16 parameters."""

    units: int

    @nn.compact
    def __call__(self, y, train):
        return nn.relu(nn.Dense(self.units, param_dtype=jnp.bfloat16)(y))


def test_parameters_of_less_precision_keep_their_dtype_and_are_averaged():
    model = LadderVAE(
        5, (2,), (3,), batch_norm=False, mlp=lambda layer, direction: HalfPrecision(3)
    )
    optimizer = training.make_optimizer(1e-2, ema_decay=0.5)
    state = training.init_state(model, optimizer, ROOT)
    before = jax.tree.map(np.array, state.params)
    state, _ = training.train_epoch(
        model, optimizer, identity, state, X, ROOT, batch_size=3, update_scale=1.0
    )
    dtypes = jax.tree.map(lambda p: p.dtype, before)
    assert {jnp.dtype("bfloat16"), jnp.dtype("float32")} == set(jax.tree.leaves(dtypes))
    for tree in (state.params, state.evaluated):
        assert jax.tree.map(lambda p: p.dtype, tree) == dtypes
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, tree)
        assert all(jax.tree.leaves(changed)), changed


def test_a_step_that_is_not_finite_makes_no_update_and_is_counted():
    x = X.at[2, 3].set(jnp.nan)
    state = fresh_state(ADAM, random_params(LADDER))
    stepped, metrics = train_step(
        LADDER, ADAM, state, x, jax.random.key(0), jnp.float32(1.0), jnp.float32(0.01), MC_2
    )
    assert np.isnan(metrics.train_elbo)
    assert_trees_equal(stepped._replace(step=state.step, nonfinite=state.nonfinite), state)
    assert (stepped.step, stepped.nonfinite) == (1, 1)


def test_a_gradient_that_is_not_finite_makes_no_update_though_the_loss_is_finite():
    # A logit of 1e30 * 2e-38 * 1e10 = 200, whose derivative by the 2e-38 is 1e40: no float32.
    model = LadderVAE(1, (1,), (1,), batch_norm=False)
    params = random_params(model)
    mlp = params["generative"]["mlps_0"]
    zero = jnp.zeros((1,))
    mlp["Linear_0"]["Dense_0"] = {"kernel": zero[None], "bias": jnp.float32([1e10])}
    mlp["Linear_1"]["Dense_0"] = {"kernel": jnp.float32([[2e-38]]), "bias": zero}
    head = {"kernel": jnp.float32([[1e30]]), "bias": zero}
    params["generative"]["observation_head"]["Dense_0"] = head
    state = fresh_state(GRADIENT, params)
    x = jnp.zeros((6, 1))
    stepped, _ = train_step(model, GRADIENT, state, x, jax.random.key(0), 1.0, 1.0)
    loss_and_gradients = jax.jit(objective.loss_and_gradients, static_argnums=0)
    _, metrics, gradients = loss_and_gradients(model, params, x, jax.random.key(0), 1.0)
    # Three factors and two products; softplus leaves so large a logit as it is.
    assert_close(metrics.log_px, -200, roundings=3 + 2 + 1)
    assert not np.isfinite(flat(gradients)).all()
    assert stepped.nonfinite == 1
    assert_trees_equal(stepped.params, params)


def fresh_step():
    """A jitted step that nothing has traced before: JAX keeps traces by function."""

    def step(state, x):
        train_step = training.train_step.__wrapped__
        return train_step(MODEL, ADAM, state, x, jax.random.key(0), 1.0, 0.01)[0]

    return jax.jit(step)


@jax.jit
def adam_by_hand(state, x):
    """The loss, and the parameters, the optimiser's state and the gradients of one step."""
    value, _, gradients = objective.loss_and_gradients(MODEL, state.params, x, jax.random.key(0))
    updates, opt_state = ADAM.update(gradients, state.opt_state)
    params = jax.tree.map(lambda p, u: p + 0.01 * u, state.params, updates)
    return value, params, opt_state, gradients


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # a branch there, a choice of every array here
def test_a_step_is_the_same_by_a_branch_and_by_a_choice(backend, monkeypatch):
    state = fresh_state(ADAM, random_params(MODEL))
    good, bad = X, X.at[2, 3].set(jnp.nan)
    value, params, opt_state, gradients = adam_by_hand(state, good)
    assert np.isfinite(value)
    assert np.isnan(adam_by_hand(state, bad)[0])
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *a, default, **known: known.get(backend, default)(*a)
    )
    step = fresh_step()
    stepped, stayed = step(state, good), step(state, bad)
    error = 0.01 * error_of_adam(np.abs(flat(gradients)).max())
    assert_trees_within((stepped.params, stepped.opt_state), (params, opt_state), error)
    assert (stepped.nonfinite, stepped.epoch_updates) == (0, 1)
    assert_trees_equal((stayed.params, stayed.opt_state), (state.params, state.opt_state))
    assert (stayed.nonfinite, stayed.epoch_updates) == (1, 0)


def test_a_step_branches_only_where_it_is_lowered_for_a_cpu():
    traced = fresh_step().trace(fresh_state(ADAM, random_params(MODEL)), X)
    cpu, cuda, tpu = (
        traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.case")
        for platform in ("cpu", "cuda", "tpu")
    )
    assert cpu == cuda + 1 == tpu + 1


def test_steps_that_are_not_finite_are_left_out_as_if_they_had_not_been():
    train = functools.partial(train_epoch, preprocess=poisoned(0, 2), max_nonfinite=2)
    (state, metrics), (error, of_metrics) = trained_and_error(train, start().params)
    assert (state.step, state.nonfinite, state.epoch_updates) == (3, 2, 1)
    expected, of_step = one_step(start(), 1)
    assert_trees_within(state.params, expected.params, error.params)
    assert_trees_within(metrics, of_step, of_metrics)


@pytest.mark.parametrize(("max_nonfinite", "stops_at"), [(0, 0), (1, 2)])
def test_training_stops_before_the_first_bad_step_beyond_the_limit(max_nonfinite, stops_at):
    preprocess = poisoned(0, 2)
    state, _ = train_epoch(start(), preprocess=preprocess, max_nonfinite=max_nonfinite)
    assert (state.step, state.nonfinite) == (stops_at, max_nonfinite + 1)
    before = start()
    if stops_at:  # the step between the bad ones is the only one that changes parameters
        before, _ = train_epoch(start(), preprocess=preprocess, max_nonfinite=2)
        assert before.step == 3
    assert_trees_equal(state.params, before.params)


@pytest.mark.parametrize("stops_at", [0, 1])
def test_after_a_bad_image_nothing_changes_though_later_batches_are_good(stops_at):
    _, batches = training.epoch_batches(ROOT, 0, len(IMAGES), 4)
    row = batches[stops_at][2]
    bad = jnp.asarray(IMAGES)[row : row + 1]

    def preprocess(key, images):
        is_bad = jnp.all(images == bad, axis=1, keepdims=True)
        return jnp.where(is_bad, jnp.nan, binarisation.binarise(key, images))

    expected = start()
    if stops_at:
        expected, _ = train_epoch(start(), steps=stops_at)
    expected = jax.tree.map(np.asarray, expected._replace(nonfinite=jnp.int32(1)))
    state, _ = train_epoch(start(), preprocess=preprocess)
    assert_trees_equal(state, expected)
    state, _ = train_epoch(state, preprocess=preprocess)
    assert_trees_equal((state.params, state.opt_state), (expected.params, expected.opt_state))
    assert (state.step, state.nonfinite) == (stops_at, 1)


# Replicas and devices


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def train_replicas(state, keys, betas, learning_rates, images, **options):
    return training.train_replicas(
        MODEL,
        ADAM,
        binarisation.binarise,
        state,
        images,
        keys,
        jnp.float32(betas),
        jnp.float32(learning_rates),
        batch_size=4,
        objective=Objective(**options),
    )


@pytest.mark.parametrize(("replicas", "options"), [(1, DREG), (3, {})])
def test_every_replica_is_the_single_run_of_its_key_beta_and_learning_rate(replicas, options):
    keys = [jax.random.key(seed) for seed in range(replicas)]
    betas, learning_rates = [1.0, 0.5, 0.0][:replicas], [0.01, 0.001, 0.1][:replicas]
    images = jnp.asarray(IMAGES)

    def single(key, beta, learning_rate):
        def train(state):
            return training.train_epoch(
                MODEL,
                ADAM,
                binarisation.binarise,
                state,
                images,
                key,
                jnp.float32(beta),
                jnp.float32(learning_rate),
                batch_size=4,
                objective=Objective(**options),
            )

        return trained_and_error(train, training.init_state(MODEL, ADAM, key).params)

    singles = map(single, keys, betas, learning_rates)
    expected, errors = map(stack, zip(*singles, strict=True))
    keys = jnp.stack(keys)
    state = training.init_state(MODEL, ADAM, keys)
    found = train_replicas(state, keys, betas, learning_rates, images, **options)
    assert_trees_within(found, expected, errors)


def test_one_replica_that_is_not_finite_stops_alone():
    keys = jax.random.split(ROOT, 3)
    states = [fresh_state(ADAM, random_params(MODEL, seed)) for seed in (1, 2, 3)]
    states[0].params["inference"]["heads_0"]["Linear_0"]["Dense_0"]["kernel"] *= jnp.nan
    found, _ = train_replicas(stack(states), keys, [1.0] * 3, [0.01] * 3, jnp.asarray(IMAGES))
    assert found.step.tolist() == [0, 3, 3]
    assert found.nonfinite.tolist() == [1, 0, 0]


def test_a_learning_rate_of_zero_leaves_the_parameters():
    after, _ = train_epoch(start(), update_scale=0.0)
    assert_trees_equal(after.params, start().params)


def test_training_on_structured_data_raises_the_elbo():
    # Two patterns of 12 pixels, each pixel flipped with probability 0.05.
    rng = np.random.default_rng(12)
    patterns = rng.integers(0, 2, (2, 12))
    labels = rng.integers(0, 2, (2, 128))
    images, others = jnp.float32(patterns[labels] ^ (rng.random((2, 128, 12)) < 0.05))
    model = LadderVAE(12, (2,), ((8,),))
    optimizer = training.make_optimizer(0.01)
    key = jax.random.key(13)
    state = training.init_state(model, optimizer, key)

    def log_weights(params):
        """Of the other images, by one sample each: in expectation their ELBO."""
        variables = evaluation.reestimate_batch_stats(
            model, params, identity, images, key, batch_size=32
        )
        found = evaluation.log_likelihood(model, variables, others, key, num_samples=1)
        return np.float64(found.log_likelihood)

    before = log_weights(state.params)
    for epoch in range(40):
        state, metrics = training.train_epoch(
            model,
            optimizer,
            identity,
            state,
            images,
            key,
            schedules.warm_up(jnp.int32(epoch), 10),
            batch_size=32,
        )
    after = log_weights(state.params)
    flips = np.sum(np.float64(others)[:, None] != patterns, axis=-1)  # from either pattern
    of_each = flips * math.log(0.05) + (12 - flips) * math.log(0.95)
    exact = np.logaddexp(*of_each.T) - math.log(2)
    # Independent pixels of probability a half have log p(x) = -12 log 2. A fit has to know most of
    # what they do not.
    uniform = -12 * math.log(2)
    assert before.mean() < uniform
    for found in (after.mean(), float(metrics.train_elbo)):
        assert found > uniform + 0.7 * (exact.mean() - uniform)
    # No model knows images that it has not seen better than their own density, but by chance: the
    # product of the ratios of weights to densities has a mean of at most one (Markov's inequality).
    assert np.sum(after - exact) < -math.log(FALSE_ALARM)
    kl = np.float64(metrics.kl_per_layer).sum()
    size = np.abs(metrics.log_px) + kl
    assert_close(metrics.train_elbo, np.float64(metrics.log_px) - kl, roundings=16, size=size)
