"""Normalisation as part of a classifier."""

import jax
import jax.numpy as jnp
from flax import nnx


class Statistic(nnx.Variable):
    """A statistic of the training data: part of the classifier, never trained."""


class Normalized(nnx.Module):
    """A classifier: normalises images by (image - mean) / std, then applies a network to them.

    Args:
      network: callable on normalised images (N, height, width, channels).
      mean: subtracted: a number a channel, or an image (height, width, channels), as for flipped data.
      std: divided by: a number a channel.
    """

    def __init__(self, network: nnx.Module, mean: jax.Array, std: jax.Array):
        self.network = network
        self.mean = Statistic(mean)
        self.std = Statistic(std)

    def __call__(self, images: jax.Array) -> jax.Array:
        # In the precision of the images: the statistics are constants, not a reason to compute in float64.
        mean, std = (jnp.broadcast_to(value[...], images.shape).astype(images.dtype) for value in (self.mean, self.std))
        return self.network((images - mean) / std)
