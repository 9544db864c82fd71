"""Frequency filters against SciPy's DCT and the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from helpers import random_images, scipy_dct, scipy_flip, scipy_inverse_dct

from hmt_jax import frequency, models

# Odd and even lengths, either side the longer one, several channels, and up to two leading axes.
SHAPES = [(5, 8, 3), (4, 9, 4, 1), (2, 3, 6, 6, 2), (1, 4, 1)]
FILTERS = [frequency.low_pass, frequency.high_pass, frequency.cutoff_low]

# SciPy and JAX sum in different orders: a few dozen roundings of 1e-16 for numbers below 10.
FLOAT64 = {"rtol": 0, "atol": 1e-12}


pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("length", [1, 2, 7, 28, 224])
def test_dct_matrix_holds_the_cosines_in_its_rows(length):
    matrix = frequency.dct_matrix(length)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, scipy.fft.dct(np.eye(length), axis=0, norm="ortho"), **FLOAT64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(length), rtol=0, atol=1e-14)


def test_dct_matrix_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        frequency.dct_matrix(4)[0, 0] = 1


@pytest.mark.parametrize("shape", SHAPES)
def test_dct_and_its_inverse_agree_with_scipy(shape):
    images = random_images(*shape)
    coefficients = frequency.dct(images)
    assert coefficients.dtype == np.float64
    np.testing.assert_allclose(coefficients, scipy_dct(images), **FLOAT64)
    np.testing.assert_allclose(frequency.inverse_dct(images), scipy_inverse_dct(images), **FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_reverses_both_frequency_axes(shape):
    images = random_images(*shape)
    np.testing.assert_allclose(frequency.flip(images), scipy_flip(images), **FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_is_an_involution_and_keeps_the_norm_of_each_channel(shape):
    images = random_images(*shape)
    flipped = frequency.flip(images)
    np.testing.assert_allclose(frequency.flip(flipped), images, **FLOAT64)
    norms, flipped_norms = (np.linalg.norm(x, axis=(-3, -2)) for x in (images, flipped))
    np.testing.assert_allclose(flipped_norms, norms, rtol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_kept", ["low_pass", "high_pass", "cutoff_low"])
def test_filters_keep_their_coefficients_and_no_others(shape, is_kept):
    images = random_images(*shape)
    height, width = shape[-3:-1]
    for size in range(1, min(height, width) + 1):
        coefficients = scipy_dct(images)
        kept = np.zeros_like(coefficients)
        for row in range(height):
            for column in range(width):
                inside = {
                    "low_pass": row < size and column < size,
                    "high_pass": row >= height - size and column >= width - size,
                    "cutoff_low": row >= size or column >= size,
                }
                if inside[is_kept]:
                    kept[..., row, column, :] = coefficients[..., row, column, :]
        filtered = getattr(frequency, is_kept)(images, size)
        np.testing.assert_allclose(filtered, scipy_inverse_dct(kept), **FLOAT64)


@pytest.mark.parametrize("apply", FILTERS)
def test_filters_are_orthogonal_projections(apply):
    first, second = random_images(5, 8, 3, seed=1), random_images(5, 8, 3, seed=2)
    projected = apply(first, 3)
    assert np.linalg.norm(projected) > 0.1
    np.testing.assert_allclose(apply(projected, 3), projected, **FLOAT64)
    np.testing.assert_allclose(np.vdot(projected, second), np.vdot(first, apply(second, 3)), **FLOAT64)


def test_flipping_exchanges_low_and_high_pass():
    images = random_images(2, 3, 6, 6, 2)
    low_flipped = frequency.flip(frequency.low_pass(images, 4))
    np.testing.assert_allclose(low_flipped, frequency.high_pass(frequency.flip(images), 4), **FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("apply", [frequency.dct, frequency.inverse_dct, frequency.flip])
def test_float32_stays_float32(apply):
    images = random_images(4, 28, 28, 1).astype(np.float32)
    result = apply(images)
    assert result.dtype == np.float32
    # The largest coefficients are near 14: a few float32 roundings of those.
    np.testing.assert_allclose(result, apply(images.astype(np.float64)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("apply", FILTERS)
def test_filtered_float32_stays_float32(apply):
    images = random_images(4, 28, 28, 1).astype(np.float32)
    result = apply(images, 14)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, apply(images.astype(np.float64), 14), rtol=0, atol=2e-5)


def test_filters_agree_with_the_authors_code(shared):
    with np.load(shared / "reference" / "frequency_filters_float64.npz") as arrays:
        expected = dict(arrays)
    images = expected["images"][..., None] / 255

    def check(result, name):
        np.testing.assert_allclose(result[..., 0], expected[name], err_msg=name, **FLOAT64)

    flipped = frequency.flip(images)
    check(flipped, "flip")
    check(frequency.low_pass(images, 14), "low_pass_14")
    check(frequency.high_pass(images, 14), "high_pass_14")
    check(frequency.cutoff_low(images, 14), "cutoff_low_14")
    mean_image = frequency.flip(jnp.full((28, 28, 1), 0.1307))
    check(mean_image, "flipped_mean")
    normalized = models.Normalized(lambda images: images, mean_image, jnp.array([0.3081]))
    check(normalized(flipped), "flipped_normalised")


FUNCTIONS = {
    "dct": frequency.dct,
    "inverse_dct": frequency.inverse_dct,
    "flip": frequency.flip,
    "low_pass": lambda images: frequency.low_pass(images, 2),
    "high_pass": lambda images: frequency.high_pass(images, 2),
    "cutoff_low": lambda images: frequency.cutoff_low(images, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_are_refused(name):
    images = np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(
        ValueError, match=r"images must be floating point in \[0, 1\], got uint8; divide 8-bit images by 255"
    ):
        FUNCTIONS[name](images)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_images_without_a_channel_axis_are_refused(name):
    with pytest.raises(
        ValueError,
        match=r"images must have shape \(\.\.\., height, width, channels\), got \(4, 4\); "
        r"add the channel axis of grey images with images\[\.\.\., None\]",
    ):
        FUNCTIONS[name](np.zeros((4, 4)))


@pytest.mark.parametrize("apply", FILTERS)
@pytest.mark.parametrize("size", [0, -1, 5])
def test_sizes_out_of_range_are_refused(apply, size):
    with pytest.raises(ValueError, match=f"size must be between 1 and 4 for 6 x 4 images, got {size}"):
        apply(np.zeros((6, 4, 3)), size)


@pytest.mark.parametrize("apply", FILTERS)
def test_sizes_are_whole_numbers(apply):
    with pytest.raises(ValueError, match=r"size must be a whole number, got 2\.5"):
        apply(np.zeros((6, 4, 3)), 2.5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_images_keep_their_type(dtype):
    images = jnp.ones((2, 6, 6, 1), dtype)
    for change in (
        frequency.dct,
        frequency.inverse_dct,
        frequency.flip,
        lambda images: frequency.low_pass(images, 3),
        lambda images: frequency.high_pass(images, 3),
        lambda images: frequency.cutoff_low(images, 3),
    ):
        assert jax.eval_shape(change, images).dtype == dtype
