"""Filters in the frequency domain of the orthonormal two-dimensional DCT.

Every function maps images of shape (..., height, width, channels) to images of the same shape, one channel at a
time. Frequencies grow with the row and the column of the coefficient array; (0, 0) is the constant image. All
filters are orthogonal projections, except `flip`, which is an orthogonal map and its own inverse.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax._checks import as_array, integer

__all__ = ["cutoff_low", "dct", "dct_matrix", "flip", "high_pass", "inverse_dct", "low_pass"]

_SPATIAL_AXES = (-3, -2)


@functools.cache
def dct_matrix(length: int) -> np.ndarray:
    """The orthonormal DCT-II of signals of `length` samples as a (length, length) float64 matrix.

    Row k holds the cosine of frequency k, so that `dct_matrix(n) @ signal` are the coefficients of the signal and
    `dct_matrix(n).T @ coefficients` is the signal again. The array is shared and read-only.

    Args:
      length: number of samples.

    >>> dct_matrix(2).round(2).tolist()
    [[0.71, 0.71], [0.71, -0.71]]
    """
    frequencies, samples = np.arange(length)[:, None], np.arange(length)
    # Reduced to one period while still whole numbers, so that the cosines are right to the last bits.
    angles = (2 * samples + 1) * frequencies % (4 * length)
    matrix = np.sqrt(2 / length) * np.cos(np.pi * angles / (2 * length))
    matrix[0] = np.sqrt(1 / length)
    matrix.flags.writeable = False
    return matrix


def dct(images: jax.Array) -> jax.Array:
    """Orthonormal DCT coefficients of images: each channel keeps its L2 norm.

    Args:
      images: (..., height, width, channels).

    Raises:
      ValueError: if the images have the wrong shape or type.

    >>> dct(jnp.ones((2, 2, 1)))[0, 0].round(4).tolist()
    [2.0]
    """
    images = _as_images(images)
    return jax.scipy.fft.dctn(images, axes=_SPATIAL_AXES, norm="ortho").astype(images.dtype)


def inverse_dct(coefficients: jax.Array) -> jax.Array:
    """Images with the given DCT coefficients; the inverse of `dct`.

    Args:
      coefficients: (..., height, width, channels).

    Raises:
      ValueError: if the coefficients have the wrong shape or type.

    >>> inverse_dct(dct(jnp.ones((2, 2, 1))))[..., 0].round(4).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    coefficients = _as_images(coefficients)
    return jax.scipy.fft.idctn(coefficients, axes=_SPATIAL_AXES, norm="ortho").astype(coefficients.dtype)


def flip(images: jax.Array) -> jax.Array:
    """Images with both frequency axes reversed: low frequencies become high ones and the other way round.

    A flipped image is real-valued, leaves [0, 1] and keeps its L2 norm. Flipping twice restores the image.

    Args:
      images: (..., height, width, channels).

    Raises:
      ValueError: if the images have the wrong shape or type.

    >>> import jax.numpy as jnp
    >>> constant = jnp.ones((4, 4, 1))
    >>> bool(jnp.allclose(flip(flip(constant)), constant, atol=1e-6))
    True
    """
    images = _as_images(images)
    # Two matrix products: several times faster than transforms there and back.
    rows, columns = (jnp.asarray(_flip_matrix(length), images.dtype) for length in images.shape[-3:-1])
    flipped = jnp.einsum("ij,...jkc->...ikc", rows, images, precision="highest")
    return jnp.einsum("ij,...kjc->...kic", columns, flipped, precision="highest")


def low_pass(images: jax.Array, size: int) -> jax.Array:
    """Images with only the frequencies [0, size) x [0, size) left.

    Args:
      images: (..., height, width, channels).
      size: number of rows and of columns of frequencies that are kept.

    Raises:
      ValueError: if the images have the wrong shape or type, or the size is below 1 or larger than an image.

    >>> low_pass(jnp.array([[0.0, 1.0], [1.0, 0.0]])[..., None], 1)[..., 0].round(4).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return _keep(images, size, lambda frequencies, length: frequencies < size)


def high_pass(images: jax.Array, size: int) -> jax.Array:
    """Images with only the last size x size frequencies left.

    Args:
      images: (..., height, width, channels).
      size: number of rows and of columns of frequencies that are kept.

    Raises:
      ValueError: as `low_pass`.

    >>> high_pass(jnp.array([[0.0, 1.0], [1.0, 0.0]])[..., None], 1)[..., 0].round(4).tolist()
    [[-0.5, 0.5], [0.5, -0.5]]
    """
    return _keep(images, size, lambda frequencies, length: frequencies >= length - size)


def cutoff_low(images: jax.Array, size: int) -> jax.Array:
    """Images without the frequencies [0, size) x [0, size); all others stay.

    Args:
      images: (..., height, width, channels).
      size: number of rows and of columns of frequencies that are removed.

    Raises:
      ValueError: as `low_pass`.

    >>> cutoff_low(jnp.array([[0.0, 1.0], [1.0, 0.0]])[..., None], 1)[..., 0].round(4).tolist()
    [[-0.5, 0.5], [0.5, -0.5]]
    """
    return _as_images(images) - low_pass(images, size)


@functools.cache
def _flip_matrix(length: int) -> np.ndarray:
    """The symmetric (length, length) matrix that reverses the order of a signal's DCT coefficients."""
    matrix = dct_matrix(length)
    return matrix.T @ matrix[::-1]


def _keep(images, size, is_kept):
    images = _as_images(images)
    height, width = images.shape[-3:-1]
    size = integer("size", size)
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must be between 1 and {min(height, width)} for {height} x {width} images, got {size}")
    rows = is_kept(np.arange(height), height)
    columns = is_kept(np.arange(width), width)
    mask = np.outer(rows, columns)[:, :, None]
    return inverse_dct(jnp.where(mask, dct(images), 0))


def _as_images(images) -> jax.Array:
    images = jnp.asarray(as_array("images", images))
    if images.ndim < 3:
        raise ValueError(
            f"images must have shape (..., height, width, channels), got {images.shape}; "
            "add the channel axis of grey images with images[..., None]"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    return images
