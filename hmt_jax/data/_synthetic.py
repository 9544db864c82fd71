"""Samples whose discriminative directions are known: the paper's T1, and its T2 with an oscillating feature.

Samples are x = U (x1, x2, ...), as images; the columns u1, u2, ... of U are orthonormal and drawn uniformly. With one
key, U, labels and noise are the same for every epsilon, so that another epsilon moves the same samples along u1 alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax._checks import check_key

_PRECISION = jax.lax.Precision.HIGHEST


class Samples(NamedTuple):
    """Labelled samples, and the directions along which they were made.

    Attributes:
      images: (N, height, width, channels); their pixels are not in [0, 1].
      labels: (N,) int32: 1 for y = +1 and 0 for y = -1.
      basis: (D, D) with D = height * width * channels: U, whose columns `hmt_jax.subspaces.from_basis` takes.

    >>> samples = synthetic_linear(jax.random.key(0), 5, image_shape=(4, 4, 1))
    >>> samples.labels.shape, samples.basis[:, 0].shape  # the first column is the direction u1
    ((5,), (16,))
    """

    images: jax.Array
    labels: jax.Array
    basis: jax.Array

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The (height, width, channels) of each image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def synthetic_linear(
    key: jax.Array,
    num_samples: int,
    *,
    epsilon: float = 1.0,
    noise: float = 1.0,
    image_shape: tuple[int, int, int] = (10, 10, 1),
) -> Samples:
    """Samples of T1: y uniform in {-1, +1}, x1 = epsilon * y, and all other coordinates normal.

    Only u1 tells the classes apart: they lie 2 epsilon from each other, and the boundary farthest from both is the
    hyperplane orthogonal to u1.

    Args:
      key: random key of the directions, the labels and the noise.
      num_samples: N; train on some of them and measure margins of others.
      epsilon: distance of the samples from that hyperplane.
      noise: sigma, the standard deviation along every other direction.
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: for no samples, fewer than 2 pixels, or a negative epsilon or noise.
      TypeError: if the key is no random key.

    >>> samples = synthetic_linear(jax.random.key(0), 5, image_shape=(4, 4, 1))
    >>> samples.images.shape, samples.basis.shape
    ((5, 4, 4, 1), (16, 16))
    """
    _check(num_samples, image_shape, num_directions=1, epsilon=epsilon, noise=noise)
    check_key(key)
    basis_key, label_key, noise_key = jax.random.split(key, 3)
    labels = _labels(label_key, num_samples)
    rest = noise * jax.random.normal(noise_key, (num_samples, math.prod(image_shape) - 1))
    return _rotated(basis_key, [epsilon * _signs(labels), rest], labels, image_shape)


def synthetic_nonlinear(
    key: jax.Array,
    num_samples: int,
    *,
    epsilon: float = 0.0,
    noise: float = 1.0,
    period: float = 5.0,
    num_periods: int = 2,
    image_shape: tuple[int, int, int] = (10, 10, 1),
) -> Samples:
    """Samples of T2: x1 = epsilon * y, x2 alternates between the classes, and all other coordinates are normal.

    With k uniform in {-K, ..., K - 1}, x2 = period * k for y = +1 and period * (k + 1/2) for y = -1: the other class is
    half a period away. With epsilon = 0 only x2 tells the classes apart; with any other epsilon, x1 alone tells them
    apart, linearly.

    Args:
      key: random key of the directions, the labels, k and the noise.
      num_samples: N; train on some of them and measure margins of others.
      epsilon: distance of the samples from the hyperplane orthogonal to u1.
      noise: sigma, the standard deviation along u3, u4, ...
      period: rho, the period of the oscillation along u2.
      num_periods: K, the number of periods on either side of the origin.
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: for no samples, fewer than 3 pixels, a negative epsilon or noise, or a period that is not positive.
      TypeError: if the key is no random key.

    >>> synthetic_nonlinear(jax.random.key(0), 5, period=2.0).images.shape
    (5, 10, 10, 1)
    """
    _check(num_samples, image_shape, num_directions=2, epsilon=epsilon, noise=noise)
    if not period > 0:
        raise ValueError(f"period must be positive, got {period}")
    if num_periods < 1:
        raise ValueError(f"num_periods must be at least 1, got {num_periods}")
    check_key(key)
    basis_key, label_key, period_key, noise_key = jax.random.split(key, 4)
    labels = _labels(label_key, num_samples)
    k = jax.random.randint(period_key, (num_samples, 1), -num_periods, num_periods)
    alternating = period * (k + (1 - labels[:, None]) / 2)
    rest = noise * jax.random.normal(noise_key, (num_samples, math.prod(image_shape) - 2))
    return _rotated(basis_key, [epsilon * _signs(labels), alternating, rest], labels, image_shape)


def _labels(key, num_samples):
    return jax.random.bernoulli(key, shape=(num_samples,)).astype(jnp.int32)


def _signs(labels):
    """y of every label, as a column."""
    return 2.0 * labels[:, None] - 1


def _rotated(key, parts, labels, image_shape) -> Samples:
    """Samples with the given parts of their coordinates, each (N, number), along random orthonormal directions."""
    coordinates = jnp.concatenate(parts, axis=1)
    basis = jax.random.orthogonal(key, coordinates.shape[1])
    images = jnp.matmul(coordinates, basis.T, precision=_PRECISION).reshape(-1, *image_shape)
    return Samples(images, labels, basis)


def _check(num_samples, image_shape, *, num_directions, epsilon, noise):
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if len(image_shape) != 3 or math.prod(image_shape) <= num_directions:
        raise ValueError(
            f"image_shape must be (height, width, channels) with more than {num_directions} pixels in all, got "
            f"{tuple(image_shape)}"
        )
    for name, value in (("epsilon", epsilon), ("noise", noise)):
        if not value >= 0:  # written so that NaN fails, too
            raise ValueError(f"{name} must not be negative, got {value}")
