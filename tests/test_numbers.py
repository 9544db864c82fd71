"""Numbers, arrays and keys as users pass them, in the functions that take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hmt_jax
from hmt_jax import bounds, data, exact, frequency, models, projections, solvers, statistics, subspaces

SHAPE = (2, 2, 1)
IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (3, *SHAPE)).astype(np.float32)
SUBSPACE = subspaces.from_basis(np.eye(4, 2, dtype=np.float32), SHAPE)


def linear(images):
    return images.reshape(len(images), -1) @ jnp.eye(4, 2)


def logistic(**settings):
    return models.create("logistic", jax.random.key(0), image_shape=SHAPE, num_classes=2, **settings)


# Name: what a function makes of images.
TAKE_IMAGES = {
    "measure_margins": lambda x: hmt_jax.measure_margins(linear, x, SUBSPACE).margin,
    "measure_margin": lambda x: hmt_jax.measure_margin(linear, x[0], SUBSPACE).margin,
    "piecewise_linear": lambda x: exact.piecewise_linear(logistic(), x[0], SUBSPACE).margin,
    "sphere": lambda x: exact.sphere(x[1], np.asarray(0.3, x.dtype), x[0], SUBSPACE).margin,
    "certify": lambda x: bounds.certify(logistic(), x, SUBSPACE).radius,
    "flip": frequency.flip,
    "low_pass": lambda x: frequency.low_pass(x, 1),
    "coordinates": lambda x: SUBSPACE.coordinates(x[0]),
    "embed": lambda x: SUBSPACE.embed(x[0, 0, :, 0]),
    "from_basis": lambda x: subspaces.from_basis(np.eye(4, 2).astype(x.dtype), SHAPE).embed(x[0, 0, :, 0]),
    "dykstra": lambda x: projections.dykstra(x[0], [projections.box], 1),
    "percentile": lambda x: statistics.percentile(x[0, 0, :, 0], 50),
    "create": lambda x: logistic(mean=x[0]).mean[...],
    "prefetch": lambda x: next(data.prefetch([x])),
    "as_floats": data.as_floats,
    "from_arrays": lambda x: data.from_arrays(x, np.arange(3), x, np.arange(3)).train_images,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_arrays_may_have_any_byte_order(name):
    expected, found = (np.asarray(TAKE_IMAGES[name](IMAGES.astype(kind))) for kind in ("=f4", ">f4"))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype.isnative


def test_arrays_in_a_file_stay_there(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.shares_memory(data.from_arrays(images, np.arange(3), images, np.arange(3)).train_images, images)


TAKE_KEYS = {
    "create": lambda key: models.create("logistic", key, image_shape=SHAPE, num_classes=2),
    "random": lambda key: subspaces.random(key, SHAPE, 2),
    "synthetic_linear": lambda key: data.synthetic_linear(key, 3, image_shape=SHAPE),
    "synthetic_nonlinear": lambda key: data.synthetic_nonlinear(key, 3, image_shape=SHAPE),
    "bootstrap_medians": lambda key: statistics.bootstrap_medians(key, np.ones((1, 2)), 3),
}


@pytest.mark.parametrize("name", TAKE_KEYS)
def test_functions_that_take_a_key_say_how_to_make_one(name):
    with pytest.raises(TypeError, match=r"^key must be a random key, got 7: make one with jax\.random\.key\(7\)$"):
        TAKE_KEYS[name](7)
    with pytest.raises(
        ValueError, match=r"^key must be one random key, got an array of them, \(2,\): choose one, such"
    ):
        TAKE_KEYS[name](jax.random.split(jax.random.key(0)))


def test_settings_of_solvers_are_single_numbers():
    makers = (
        (solvers.DeepFool, "overshoot"),
        (solvers.DDN, "num_steps"),
        (solvers.FMN, "num_steps"),
        (solvers.Scan, "num_angles"),
    )
    for make, name in makers:
        for wrong in ([0.1, 0.2], "0.1", None):
            with pytest.raises(ValueError, match=f"^{name} must be a single number, known when compiling, got"):
                make(**{name: wrong})


def test_equal_settings_are_equal_solvers():
    """Whatever kind of number they are, so that solvers share their programs."""
    expected = solvers.DeepFool(num_candidates=3, overshoot=0.5)
    for number in (np.int64(3), np.asarray(3), jnp.asarray(3)):
        found = solvers.DeepFool(num_candidates=number, overshoot=np.float64(0.5))
        assert (found, hash(found), repr(found)) == (expected, hash(expected), repr(expected))
