"""Layers as PyTorch defines and initialises them, on Flax, for images (N, height, width, channels)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of PyTorch's layers, with which the paper's networks were trained.
_KERNEL_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(num_in: int, num_out: int, size: int, *, padding: int = 0, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        num_in,
        num_out,
        (size, size),
        padding=padding,
        kernel_init=_KERNEL_INIT,
        bias_init=_bias_init(num_in * size**2),
        rngs=rngs,
    )


def linear(num_in: int, num_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(num_in, num_out, kernel_init=_KERNEL_INIT, bias_init=_bias_init(num_in), rngs=rngs)


def flatten(images: jax.Array) -> jax.Array:
    """Images as vectors (N, D), channels first, so that linear layers read what PyTorch's read."""
    return jnp.moveaxis(images, -1, 1).reshape(len(images), -1)


def max_pool(images: jax.Array, size: int = 2) -> jax.Array:
    """Maxima over adjoining size x size windows; rows and columns that do not fill a window are dropped.

    The gradient goes to the first maximum of a window in row-major order, as in PyTorch. On constant backgrounds all
    windows tie, and any other choice moves margins. Comparisons of strided slices, which XLA differentiates several
    times faster than its window reductions on CPU.
    """
    height, width = (length // size * size for length in images.shape[1:3])
    maximum = images[:, 0:height:size, 0:width:size]
    for row in range(size):
        for column in range(size):
            pixel = images[:, row:height:size, column:width:size]
            maximum = jnp.where((pixel > maximum) | jnp.isnan(pixel), pixel, maximum)
    return maximum


def _bias_init(fan_in: int):
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
