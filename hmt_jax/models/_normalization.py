"""Normalisation as part of a classifier."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike


class Statistic(nnx.Variable):
    """A statistic of the training data: part of the classifier, never trained."""


class Normalized(nnx.Module):
    """A classifier: normalises images by (image - mean) / std, then applies a network to them.

    Args:
      network: callable on normalised images (N, height, width, channels).
      mean: subtracted from images: one number per channel, or an image (height, width, channels), as for flipped data.
      std: divides images after that: one number per channel.

    Raises:
      ValueError: if the statistics are not finite, or `std` is not positive.

    >>> double = Normalized(lambda images: 2 * images.reshape(len(images), -1), jnp.array([0.5]), jnp.array([0.25]))
    >>> double(jnp.ones((1, 1, 2, 1))).tolist()
    [[4.0, 4.0]]
    """

    def __init__(self, network: nnx.Module, mean: jax.Array, std: jax.Array):
        check_numbers(mean, std)
        self.network = network
        self.mean = Statistic(mean)
        self.std = Statistic(std)

    def __call__(self, images: jax.Array) -> jax.Array:
        # In the precision of the images: the statistics are constants, not a reason to compute in float64.
        mean, std = (jnp.broadcast_to(value[...], images.shape).astype(images.dtype) for value in (self.mean, self.std))
        return self.network((images - mean) / std)


def check_numbers(mean: ArrayLike | Sequence[float], std: ArrayLike | Sequence[float]) -> None:
    """Raises ValueError if images can't be normalised with these numbers; traced values are not checked."""
    for argument, value in (("mean", mean), ("std", std)):
        if isinstance(value, jax.core.Tracer):
            continue
        numbers = np.asarray(value)
        if not (jnp.issubdtype(numbers.dtype, jnp.floating) or jnp.issubdtype(numbers.dtype, jnp.integer)):
            raise ValueError(f"{argument} must be real numbers, got {numbers.dtype}")
        is_right = np.isfinite(numbers) & (numbers > 0) if argument == "std" else np.isfinite(numbers)
        if not is_right.all():
            wanted = "positive and finite" if argument == "std" else "finite"
            raise ValueError(f"{argument} must be {wanted}, got {numbers[~is_right].ravel()[0]}")
