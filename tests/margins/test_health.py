"""Margins at the limits of each floating-point format, and of small images: the right margin, or a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import basis_of, linear_logits, random_images, with_parameters

import hmt_jax
from hmt_jax import Status, solvers, subspaces

pytestmark = pytest.mark.slow

SHAPE, NUM_PIXELS, NUM_CLASSES = (2, 3, 2), 12, 4
IMAGE = random_images(1, *SHAPE)
WEIGHTS = np.random.default_rng(0).normal(size=(NUM_CLASSES, NUM_PIXELS))

MAIN = {"deepfool": solvers.DeepFool(), "quick": solvers.tight("quick")}
OTHERS = {
    "normal": solvers.tight("normal"),
    "ddn": solvers.DDN(),
    "fmn": solvers.FMN(),
    "superdeepfool": solvers.SuperDeepFool(),
    "closest_point": solvers.ClosestPoint(),
    "linear": solvers.Linear(),
}
SOLVERS = MAIN | OTHERS
# Each solver compiles its programs for every format, which the tests share.
OF_SOLVERS = [*MAIN, *OTHERS]
FORMATS = ("float16", "bfloat16", "float32")


def measure(name, weights, biases, image, dtype, subspace=None):
    """The result for one image, as scalars, and what `exact` says of the numbers that the format makes of these."""
    weights, biases, image = (np.asarray(jnp.asarray(array, dtype)) for array in (weights, biases, image))
    subspace = subspaces.full(image.shape[1:]) if subspace is None else subspace
    classifier = with_parameters(linear_logits, (weights, biases))
    result = hmt_jax.measure_margins(classifier, image, subspace, SOLVERS[name], devices=jax.devices()[:1])
    expected = exact(*(array.astype(np.float64) for array in (weights, biases, image, basis_of(subspace))))
    return float(result.margin[0, 0]), result.status[0, 0], result.label[0, 0], expected


def exact(weights, biases, image, basis):
    """min_k (g_y - g_k) / ||P (w_y - w_k)||, and the distance that changes a logit of this size by as much as it is."""
    logits = weights @ image.ravel() + biases
    label = logits.argmax()
    others = np.flatnonzero(np.isfinite(logits) & (np.arange(len(logits)) != label))
    lengths = np.linalg.norm((weights[label] - weights[others]) @ basis, axis=1)
    if not lengths.any():
        return np.inf, np.inf
    distances = (logits[label] - logits[others]) / lengths
    nearest = distances.argmin()
    return distances[nearest], np.abs(logits[[label, others[nearest]]]).max() / lengths[nearest]


def assert_right(margin, status, expected, dtype):
    distance, size = expected
    eps = float(jnp.finfo(dtype).eps)
    assert status == Status.CONVERGED
    # Solvers overshoot by up to 2%. Beyond that, logits, coordinates and lengths are rounded.
    assert abs(margin - distance) <= 0.021 * distance + 2 * eps * (distance + size)


def at_the_limits(dtype):
    """Weights and biases whose logits or gradients are near the greatest or the least numbers of the format."""
    most = 0.92 * float(jnp.finfo(dtype).max)
    shifts = -WEIGHTS @ IMAGE.ravel()
    return {
        "steep": (most / 30 * WEIGHTS, np.zeros(NUM_CLASSES)),
        "large logits": (most / 100 * WEIGHTS, most * np.array([0.9, 0.8, -0.8, -0.9]) + most / 100 * shifts),
        # Their differences are out of range.
        "opposite signs": (
            most / 1000 * np.outer([1, -1, -1, -1], np.ones(NUM_PIXELS)),
            most * np.array([0.7, -0.7, -0.75, -0.8]),
        ),
        "low classes": (WEIGHTS, np.array([1, 0, -most, -most])),
        "classes ruled out": (WEIGHTS, np.array([1, 0, -np.inf, -np.inf])),
        # Products with pixels are still normal numbers.
        "small": ((1e-3 if dtype == "float16" else 1e-30) * WEIGHTS, np.zeros(NUM_CLASSES)),
    }


@pytest.mark.parametrize("case", at_the_limits("float32"))
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_logits_and_gradients_at_the_limits_of_a_format(name, dtype, case):
    margin, status, _, expected = measure(name, *at_the_limits(dtype)[case], IMAGE, dtype)
    assert_right(margin, status, expected, dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_gradients_beyond_a_format_have_a_status(name, dtype):
    """Each logit has a gradient in range, but the difference of two does not."""
    most = 0.92 * float(jnp.finfo(dtype).max)
    weights = most * np.outer([1, -1, 0, 0], np.eye(NUM_PIXELS)[0])
    with pytest.warns(UserWarning, match="every search met NaN or infinite logits or gradients"):
        margin, status, label, _ = measure(name, weights, most * np.array([0, 0.1, 0, 0]), 0 * IMAGE, dtype)
    assert np.isnan(margin)
    assert (status, label) == (Status.NON_FINITE, 1)


@pytest.mark.parametrize("name", OF_SOLVERS)
def test_steps_that_rounding_would_lose(name):
    """In bfloat16, the logits are equal from the boundary to 4% beyond it, at coordinates that are large for steps."""
    weights = 0.01 * np.outer([0, 1, -1, -1], np.full(NUM_PIXELS, NUM_PIXELS**-0.5))
    biases = np.array([1, 0.9, 0.5, 0.5])
    margin, status, _, expected = measure(name, weights, biases, 0 * IMAGE, "bfloat16")
    assert_right(margin, status, expected, "bfloat16")


@pytest.mark.parametrize("name", OF_SOLVERS)
def test_gradients_near_the_greatest_number(name):
    """Up to a quarter of it they are right. Beyond it their reciprocals are denormal, which devices take for 0."""

    def steep(share):
        length = share * float(np.finfo(np.float32).max)
        weights = length * np.outer([0, 1, 1, 1], np.full(NUM_PIXELS, NUM_PIXELS**-0.5))
        return measure(name, weights, -length * np.array([0, 0.1, 0.2, 0.3]), 0 * IMAGE, "float32")

    margin, status, _, expected = steep(0.24)
    assert_right(margin, status, expected, "float32")
    with pytest.warns(UserWarning, match="every search met NaN or infinite logits or gradients"):
        margin, status, _, _ = steep(0.26)
    assert np.isnan(margin)
    assert status == Status.NON_FINITE


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_denormal_weights(name, dtype):
    """Devices may take them, and their products, for 0: then the logits are constant."""
    denormal = float(jnp.finfo(dtype).tiny) / 50
    margin, status, label, (distance, _) = measure(name, denormal * WEIGHTS, np.zeros(NUM_CLASSES), IMAGE, dtype)
    if status == Status.ZERO_GRADIENT:
        assert margin == np.inf
    else:
        # Denormal numbers of float16 have one or two digits.
        assert (status, label) == (Status.CONVERGED, 3)
        assert margin == pytest.approx(distance, rel=0.1)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_margins_beyond_a_format_are_infinite(name, dtype):
    denormal = float(jnp.finfo(dtype).tiny) / 50
    margin, status, label, (distance, _) = measure(name, denormal * WEIGHTS, [0, 0, 2, 0], IMAGE, dtype)
    assert distance > float(jnp.finfo(dtype).max)
    assert (margin, status, label) == (np.inf, Status.ZERO_GRADIENT, 2)


@pytest.mark.parametrize("biases", [[0, 0, 0, 0], [0, 1, 0, 3]], ids=["equal", "unequal"])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_constant_logits_have_no_margin(name, dtype, biases):
    margin, status, label, _ = measure(name, 0 * WEIGHTS, biases, IMAGE, dtype)
    assert (margin, status, label) == (np.inf, Status.ZERO_GRADIENT, np.argmax(biases))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_pixels_that_differ_by_a_denormal_number(name, dtype):
    """The sample is on the boundary but for rounding."""
    image = np.zeros((1, *SHAPE))
    image[0, 0, 0, 0] = float(jnp.finfo(dtype).tiny) / 50
    margin, status, _, (distance, _) = measure(name, np.eye(NUM_CLASSES, NUM_PIXELS), np.zeros(4), image, dtype)
    assert status == Status.CONVERGED
    # DeepFool's step is at least 1e-4 long, and others go as far as rounding may hide, eight units in the last place.
    assert 0 < margin <= max(1.1e-4, 8.5 * float(jnp.finfo(dtype).eps)) or (name == "linear" and distance < 1e-37)


@pytest.mark.parametrize("num_classes", [2, 1000])
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_few_and_many_classes(name, num_classes):
    rng = np.random.default_rng(num_classes)
    weights = rng.normal(size=(num_classes, NUM_PIXELS))
    # One class leads, another is near, and all others are far behind.
    targets = np.concatenate([[0, -0.5], np.full(num_classes - 2, -30)])
    margin, status, label, expected = measure(name, weights, targets - weights @ IMAGE.ravel(), IMAGE, "float32")
    assert label == 0
    assert_right(margin, status, expected, "float32")


@pytest.mark.parametrize(("image_shape", "num_frequencies"), [((1, 1, 1), 1), ((1, 1, 4), 1), ((5, 3, 4), 2)])
@pytest.mark.parametrize("name", OF_SOLVERS)
def test_small_images(name, image_shape, num_frequencies):
    """A single one, of one pixel or not square, and of one or four channels, in a window of so many frequencies."""
    num_pixels = int(np.prod(image_shape))
    rng = np.random.default_rng(num_pixels)
    weights, image = rng.normal(size=(3, num_pixels)), random_images(1, *image_shape)
    subspace = subspaces.dct_window(image_shape, 0, 0, num_frequencies)
    margin, status, _, expected = measure(name, weights, np.array([0.3, 0, -0.2]), image, "float32", subspace)
    assert_right(margin, status, expected, "float32")
