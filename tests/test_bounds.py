"""Lower bounds against exact margins of small networks, and against every point that could refute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import labels_of, random_images, random_network

from hmt_jax import Status, bounds, exact, models, subspaces

SHAPE = (3, 4, 2)
NUM_PIXELS = 24
pytestmark = pytest.mark.filterwarnings("ignore::hmt_jax.PixelRangeWarning")


def network(name, seed=0, shape=SHAPE, mean=(0.4,), std=(0.7,), **options):
    return random_network(name, shape, seed=seed, mean=mean, std=std, **options)


def images_of(num=3, seed=0, shape=SHAPE):
    return random_images(num, *shape, seed=seed, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("num_hidden", "dimension"), [((5, 6, 5), 1), ((8, 6), 2), ((9,), 3)])
def test_no_bound_is_above_the_exact_margin(seed, num_hidden, dimension):
    rng = np.random.default_rng(seed)
    classifier = network("mlp", seed, gain=rng.uniform(1, 4), num_hidden=num_hidden)
    images = images_of(seed=seed) * rng.choice([1, 5])
    subspace = subspaces.random(jax.random.key(seed), SHAPE, dimension)
    found = bounds.certify(classifier, images, subspace)
    assert found.radius.shape == found.label.shape == (1, 3)
    assert (found.radius > 0).all()
    for image, radius, label in zip(images, found.radius[0], found.label[0], strict=True):
        solution = exact.piecewise_linear(classifier, image, subspace, reach=40.0, max_steps=2000)
        assert solution.label == label
        # Where the margin was not found it is at least the distance searched; then nothing is compared.
        assert radius <= solution.margin or solution.status != Status.CONVERGED


def test_bounds_are_not_much_below_the_margins_of_small_networks():
    ratios = []
    for seed in range(3):
        classifier, images = network("mlp", seed), images_of(seed=seed)
        plane = subspaces.random(jax.random.key(seed), SHAPE, 2)
        solutions = [exact.piecewise_linear(classifier, image, plane, reach=40.0) for image in images]
        ratios += list(bounds.certify(classifier, images, plane).radius[0] / [s.margin for s in solutions])
    assert np.median(ratios) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_bounds_of_pools_are_below_the_margins_of_all_lines(flat):
    shape = (12, 12, 1)
    classifier, images = network("lenet", shape=shape, gain=1.5), images_of(2, 3, shape)
    if flat:
        images[:, 3:] = 0.0
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(144, 2)))
    angles = np.linspace(0, np.pi, 5, endpoint=False)
    directions = basis @ [np.cos(angles), np.sin(angles)]
    lines = [subspaces.from_basis(direction[:, None].astype(np.float32), shape) for direction in directions.T]
    margins = [[exact.piecewise_linear(classifier, image, line).margin for image in images] for line in lines]
    radius = bounds.certify(classifier, images, subspaces.from_basis(basis.astype(np.float32), shape)).radius
    assert (radius <= np.min(margins, 0)).all()
    assert (radius > 0.05 * np.min(margins, 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "subspace"),
    [
        ("mlp", SHAPE, subspaces.full(SHAPE)),
        ("lenet", (12, 12, 1), subspaces.random(jax.random.key(1), (12, 12, 1), 2)),
    ],
)
def test_no_point_of_a_certified_ball_has_another_label(name, shape, subspace):
    classifier, images = network(name, 1, shape), images_of(2, 1, shape)
    found = bounds.certify(classifier, images, subspace)
    directions = np.random.default_rng(2).normal(size=(100, subspace.dimension)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for image, radius, label in zip(images, found.radius[0], found.label[0], strict=True):
        assert radius > 0
        points = image[None] + jax.vmap(subspace.embed)(jnp.float32(0.9999 * radius) * directions)
        assert set(np.asarray(labels_of(classifier, points))) == {label}


def test_bounds_of_linear_classifiers_are_their_margins():
    classifier, images = network("logistic"), images_of()
    plane = subspaces.random(jax.random.key(0), SHAPE, 2)
    found = bounds.certify(classifier, images, plane)
    for image, radius, label in zip(images, found.radius[0], found.label[0], strict=True):

        def logits(z, image=image):
            return classifier((image + plane.embed(z))[None])[0]

        values, slopes = logits(jnp.zeros(2)), jax.jacobian(logits)(jnp.zeros(2))
        assert label == values.argmax()
        distances = (values[label] - values) / jnp.linalg.norm(slopes - slopes[label][None], axis=1)
        np.testing.assert_allclose(radius, jnp.nanmin(distances), rtol=1e-5)  # float32


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_bounds_follow_the_scale_of_images_and_not_that_of_logits(name):
    images, plane = images_of(), subspaces.random(jax.random.key(0), SHAPE, 2)
    radius = bounds.certify(network(name), images, plane).radius
    large = network(name, mean=(400.0,), std=(700.0,))
    # The search ends within one part in a hundred, where it does so in both.
    np.testing.assert_allclose(bounds.certify(large, 1000 * images, plane).radius, 1000 * radius, rtol=0.01)
    loud = network(name)
    last = loud.network.linear if name == "logistic" else loud.network.layers[-1]
    last.kernel[...] *= 1000
    last.bias[...] *= 1000
    np.testing.assert_allclose(bounds.certify(loud, images, plane).radius, radius, rtol=0.01)


def test_subspaces_of_all_kinds_and_dimensions_are_certified_in_the_order_given():
    classifier, images = network("mlp"), images_of()
    line, plane = (subspaces.random(jax.random.key(0), SHAPE, dimension) for dimension in (1, 2))
    mixed = [line, subspaces.dct_window(SHAPE, 0, 1, 1), plane]
    found = bounds.certify(classifier, images, mixed)
    assert found.radius.shape == found.label.shape == (3, 3)
    for r, subspace in enumerate(mixed):
        alone = bounds.certify(classifier, images, subspace)
        np.testing.assert_array_equal(found.radius[r], alone.radius[0])
        np.testing.assert_array_equal(found.label[r], alone.label[0])


def test_8_bit_images_are_divided_by_255():
    classifier, line = network("mlp"), subspaces.random(jax.random.key(0), SHAPE, 1)
    pixels = (255 * images_of()).round().astype(np.uint8)
    found, expected = (bounds.certify(classifier, images, line) for images in (pixels, pixels / np.float32(255)))
    np.testing.assert_allclose(found.radius, expected.radius, rtol=1e-5)
    np.testing.assert_array_equal(found.label, expected.label)


def test_a_sample_without_a_label_disturbs_no_other():
    classifier, images = network("mlp"), images_of()
    windows = subspaces.dct_diagonal(SHAPE, size=1, step=1)
    expected = bounds.certify(classifier, images, windows)
    images[2, 0, 0, 0] = np.nan
    found = bounds.certify(classifier, images, windows)
    assert np.isnan(found.radius[:, 2]).all()
    assert (found.label[:, 2] == -1).all()
    np.testing.assert_array_equal(found.radius[:, :2], expected.radius[:, :2])
    np.testing.assert_array_equal(found.label[:, :2], expected.label[:, :2])


def test_a_network_whose_units_are_all_off_is_certified_until_they_switch():
    classifier = network("mlp")
    layer = classifier.network.layers[0]
    layer.bias[...] = layer.bias[...] - 100
    images = images_of()
    plane = subspaces.random(jax.random.key(0), SHAPE, 2)
    found = bounds.certify(classifier, images, plane)
    assert (found.radius > 10).all()
    assert np.isfinite(found.radius).all()
    for image, radius in zip(images, found.radius[0], strict=True):
        assert radius <= exact.piecewise_linear(classifier, image, plane).margin


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_in_float64_for_images_of_any_precision(dtype, x64):
    classifier = network("mlp")
    found = bounds.certify(classifier, images_of(2).astype(dtype), subspaces.full(SHAPE))
    assert found.radius.dtype == np.float64
    assert found.label.dtype == np.int32


def test_what_is_not_supported_is_refused():
    images = images_of(1)
    with pytest.raises(TypeError, match=r"named 'logistic', 'mlp' or 'lenet', made by create, load or from_torch.*got"):
        bounds.certify(lambda images: images, images, subspaces.full(SHAPE))
    with pytest.raises(TypeError, match=r"subspaces must be one subspace of hmt_jax\.subspaces or a list of them, got"):
        bounds.certify(network("mlp"), images, None)
    with pytest.raises(ValueError, match="subspaces is empty: pass at least one subspace"):
        bounds.certify(network("mlp"), images, [])
    unknown = models.Normalized(nnx.Linear(24, 4, rngs=nnx.Rngs(0)), jnp.zeros(1), jnp.ones(1))
    with pytest.raises(TypeError, match="whose layers are known; got Linear"):
        bounds.certify(unknown, images, subspaces.full(SHAPE))
    with pytest.raises(ValueError, match=r"add the batch axis of one image|add the channel axis"):
        bounds.certify(network("mlp"), images[0], subspaces.full(SHAPE))
    with pytest.raises(ValueError, match=r"the subspaces are for images of shape \(3, 3, 1\)"):
        bounds.certify(network("mlp"), images, subspaces.full((3, 3, 1)))
    with pytest.raises(ValueError, match=r"applied to images of shape \(N, 3, 3, 1\): .* that it was made for"):
        bounds.certify(network("mlp"), np.ones((1, 3, 3, 1), np.float32), subspaces.full((3, 3, 1)))


@pytest.mark.slow
def test_bounds_of_the_reference_network_bracket_its_margins(reference, reference_lenet):
    images = (reference["images"][:1] / np.float32(255))[..., None]
    found = bounds.certify(reference_lenet, images, subspaces.dct_window((28, 28, 1), row=0, column=0, size=8))
    upper = reference["diagonal_8x8_step1/margin"][:1, :1]
    assert (found.radius < upper).all()
    assert (found.radius > upper / 50).all()
    np.testing.assert_array_equal(found.label, reference["diagonal_8x8_step1/label"][:1, :1])


def test_what_rounding_may_decide_is_not_certified():
    """Products of half a million cancel: the gap of 1e-5 is less than their last place."""
    classifier = models.create("logistic", jax.random.key(0), image_shape=(1, 2, 1), num_classes=2)
    layer = classifier.network.linear
    layer.kernel[...] = jnp.array([[1e6, 0.0], [-1e6, 0.0]])
    layer.bias[...] = jnp.array([1e-5, 0.0])
    found = bounds.certify(classifier, np.full((1, 1, 2, 1), 0.5, np.float32), subspaces.full((1, 2, 1)))
    assert (found.label.tolist(), found.radius.tolist()) == ([[0]], [[0]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_a_class_that_is_ruled_out_does_not_count(name):
    """Bounds and exact margins are those of the network without that class; a single class has no boundary."""
    classifier, images = network(name), images_of()
    line = subspaces.random(jax.random.key(0), SHAPE, 2)
    last = classifier.network.linear if name == "logistic" else classifier.network.layers[-1]
    kernel, bias = last.kernel[...], last.bias[...]
    without = (int(labels_of(classifier, images)[0]) + 1) % 4

    def measure(kernel, bias):
        last.kernel[...], last.bias[...] = kernel, bias
        with jax.numpy_dtype_promotion("strict"):
            found = bounds.certify(classifier, images[:1], line)
        return found.radius[0, 0], exact.piecewise_linear(classifier, images[0], line)

    lower, solution = measure(kernel, bias.at[without].set(-jnp.inf))
    # As far down as no image goes.
    expected_lower, expected = measure(kernel.at[:, without].set(0), bias.at[without].set(-1e6))
    np.testing.assert_allclose([lower, solution.margin], [expected_lower, expected.margin], rtol=1e-4)
    assert solution.status == Status.CONVERGED
    lower, solution = measure(kernel, jnp.where(jnp.arange(4) == solution.label, bias, -jnp.inf))
    assert (lower, solution.margin, solution.status) == (np.inf, np.inf, Status.ZERO_GRADIENT)
