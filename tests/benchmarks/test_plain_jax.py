"""The plain-JAX reference is the model it claims to be, and learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close, assert_within, value_and_error

from benchmarks import plain_jax

DATA_DIM = 12
LATENT_SIZES = (4, 3, 2)
HIDDEN_SIZES = (8, 6, 5)


def params_like():
    """Shapes and dtypes of the initial parameters."""
    init = functools.partial(
        plain_jax.init,
        data_dim=DATA_DIM,
        latent_sizes=LATENT_SIZES,
        hidden_sizes=HIDDEN_SIZES,
    )
    return jax.eval_shape(init, jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    """Random ones, which need no compiling to be drawn, with scales near one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = 0.3 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, params_like())


@pytest.fixture(scope="module")
def x():
    pixels = np.random.default_rng(0).integers(0, 2, (16, DATA_DIM))
    return jnp.asarray(pixels, jnp.float32)


def _gaussian(rng, shape):
    return plain_jax.Gaussian(
        jnp.asarray(rng.normal(size=shape), jnp.float32),
        jnp.asarray(rng.uniform(0.1, 3.0, size=shape), jnp.float32),
    )


def test_default_model_has_the_papers_sizes():
    shapes = jax.eval_shape(plain_jax.init, jax.random.key(0))

    def normalised(inputs, outputs):
        return inputs * outputs + 2 * outputs

    def network(inputs, hidden):
        return normalised(inputs, hidden) + normalised(hidden, hidden)

    up = [(784, 512, 64), (512, 256, 32), (256, 128, 16), (128, 64, 8), (64, 32, 4)]
    down = [(32, 256, 64), (16, 128, 32), (8, 64, 16), (4, 32, 8)]
    expected = sum(
        network(inputs, hidden) + 2 * normalised(hidden, units)
        for inputs, hidden, units in up + down
    )
    expected += network(64, 512) + 512 * 784 + 784

    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == expected
    assert round(count / 1e6, 2) == 1.86


def test_parameters_are_strongly_typed_float32():
    for leaf in jax.tree.leaves(params_like()):
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


def test_normalised_linear_gives_each_unit_the_mean_shift_and_the_deviation_scale(x):
    layer = {
        "kernel": jax.random.normal(jax.random.key(1), (DATA_DIM, 5), jnp.float32),
        "scale": jnp.full((5,), 2.0, jnp.float32),
        "shift": jnp.full((5,), -1.0, jnp.float32),
    }
    y = np.asarray(plain_jax.normalised_linear(layer, x))
    size = np.abs(y).max()
    assert_close(y.mean(axis=0), np.full(5, -1.0), roundings=16, size=size)
    # Less the epsilon beside the variance, 1e-5, of which the root has half.
    epsilon = 1e-5 / np.var(np.asarray(x, np.float64) @ np.float64(layer["kernel"]), axis=0)
    assert_close(y.std(axis=0), 2 / np.sqrt(1 + epsilon), roundings=16, size=size)


def test_kl_is_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(1)
    q, p = _gaussian(rng, (7, 3)), _gaussian(rng, (7, 3))
    m_q, v_q = (np.asarray(a, np.float64) for a in q)
    m_p, v_p = (np.asarray(a, np.float64) for a in p)
    # log(sigma_p / sigma_q) + (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2
    per_unit = np.log(np.sqrt(v_p) / np.sqrt(v_q)) + (v_q + (m_q - m_p) ** 2) / (2 * v_p) - 0.5
    size = (np.abs(np.log(v_p / v_q)) + (v_q + (m_q - m_p) ** 2) / v_p + 1).sum(axis=-1)
    assert_close(plain_jax.kl(q, p), per_unit.sum(axis=-1), roundings=8, size=size)


def test_kl_of_a_gaussian_with_itself_is_zero():
    q = _gaussian(np.random.default_rng(2), (7, 3))
    assert_close(plain_jax.kl(q, q), np.zeros(7), roundings=8, size=3)


def test_precision_weighted_adds_precisions():
    rng = np.random.default_rng(3)
    a, b = _gaussian(rng, (7, 3)), _gaussian(rng, (7, 3))
    precision_a = 1 / np.asarray(a.variance, np.float64)
    precision_b = 1 / np.asarray(b.variance, np.float64)
    precision = precision_a + precision_b
    product = plain_jax.precision_weighted(a, b)
    assert_close(product.variance, 1 / precision, roundings=8)
    mean = (np.asarray(a.mean) * precision_a + np.asarray(b.mean) * precision_b) / precision
    size = np.abs(np.asarray(a.mean)) + np.abs(np.asarray(b.mean))
    assert_close(product.mean, mean, roundings=8, size=size)


def _numpy_loss(params, key, x, beta):
    """The loss of the three-layer model in float64, written out line by line."""

    def normalised(p, y):
        y = y @ p["kernel"]
        y = (y - y.mean(axis=0)) / np.sqrt(y.var(axis=0) + 1e-5)
        return y * p["scale"] + p["shift"]

    def network(p, y):
        for name in ("hidden_1", "hidden_2"):
            y = normalised(p[name], y)
            y = np.where(y > 0, y, 0.1 * y)
        return y

    def head(p, d):
        return normalised(p["mean"], d), np.log1p(np.exp(normalised(p["variance"], d))) + 1e-5

    def kl(m_q, v_q, m_p, v_p):
        return 0.5 * (np.log(v_p / v_q) + (v_q + (m_q - m_p) ** 2) / v_p - 1).sum(axis=-1)

    def product(m_a, v_a, m_b, v_b):
        variance = 1 / (1 / v_a + 1 / v_b)
        return variance * (m_a / v_a + m_b / v_b), variance

    up, down = params["up"], params["down"]
    noise = [
        np.asarray(jax.random.normal(k, (len(x), units), jnp.float32), np.float64)
        for k, units in zip(jax.random.split(key, 3), LATENT_SIZES, strict=True)
    ]
    d_1 = network(up[1]["mlp"], x)
    d_2 = network(up[2]["mlp"], d_1)
    d_3 = network(up[3]["mlp"], d_2)
    q_3 = head(up[3]["head"], d_3)
    z_3 = q_3[0] + np.sqrt(q_3[1]) * noise[2]
    p_2 = head(down[2]["head"], network(down[2]["mlp"], z_3))
    q_2 = product(*head(up[2]["head"], d_2), *p_2)
    z_2 = q_2[0] + np.sqrt(q_2[1]) * noise[1]
    p_1 = head(down[1]["head"], network(down[1]["mlp"], z_2))
    q_1 = product(*head(up[1]["head"], d_1), *p_1)
    z_1 = q_1[0] + np.sqrt(q_1[1]) * noise[0]
    output = down[0]["logits"]
    logits = network(down[0]["mlp"], z_1) @ output["kernel"] + output["bias"]
    p_x = 1 / (1 + np.exp(-logits))
    log_px = np.log(np.where(x == 1, p_x, 1 - p_x)).sum(axis=-1)
    total_kl = kl(*q_3, 0.0, 1.0) + kl(*q_2, *p_2) + kl(*q_1, *p_1)
    return -(log_px - beta * total_kl).mean()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_agrees_with_float64_numpy(params, x, beta):
    key = jax.random.key(4)
    params64 = jax.tree.map(np.float64, params)
    actual = jax.jit(plain_jax.loss)(params, key, x, beta)
    assert actual.shape == ()
    expected, error = value_and_error(
        lambda params: _numpy_loss(params, key, np.asarray(x, np.float64), beta),
        params64,
        roundings=32,
    )
    assert_within(actual, expected, error)


def test_an_epoch_lowers_the_loss_reaches_every_parameter_and_compiles_once(params):
    # Dark random images; twenty batches of 16 leave ten over.
    grey = np.random.default_rng(6).integers(0, 64, (330, DATA_DIM), dtype=np.uint8)
    x = jax.random.bernoulli(jax.random.key(7), jnp.asarray(grey / 255.0, jnp.float32))
    x = x.astype(jnp.float32)
    loss = jax.jit(plain_jax.loss)
    before = loss(params, jax.random.key(8), x[:16], 1.0)

    optimizer = optax.adam(1e-2)
    epoch = plain_jax.make_epoch(optimizer, batch_size=16)
    # An epoch donates its arguments, and the fixture is shared.
    copy = jax.jit(lambda params: (jax.tree.map(jnp.copy, params), optimizer.init(params)))
    trained, opt_state = copy(params)
    elbos = []
    for key in jax.random.split(jax.random.key(9), 2):
        # optax.adam raises a float to its integer step count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            trained, opt_state, elbo = epoch(trained, opt_state, jnp.asarray(grey), key, 1.0)
        elbos.append(float(elbo))

    assert np.all(np.isfinite(elbos))
    assert elbos[1] > elbos[0]
    assert loss(trained, jax.random.key(8), x[:16], 1.0) < before
    for (path, leaf), old in zip(
        jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(params), strict=True
    ):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != np.asarray(old)), path
    assert int(opt_state[0].count) == 2 * (330 // 16)
    assert epoch._cache_size() == 1
