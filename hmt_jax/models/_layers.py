"""Layers as PyTorch defines and initialises them, on Flax, for images (N, height, width, channels)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hmt_jax._devices import by_platform
from hmt_jax.models._convolution import strided

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of PyTorch's layers, with which the paper's networks were trained.
_KERNEL_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    num_in: int,
    num_out: int,
    size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    use_bias: bool = True,
    kernel_init: nnx.Initializer = _KERNEL_INIT,
    bias_init: nnx.Initializer | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with a square kernel, initialised as in PyTorch if no initialisers are given."""
    return nnx.Conv(
        num_in,
        num_out,
        (size, size),
        strides=stride,
        padding=padding,
        conv_general_dilated=_convolve,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=_bias_init(num_in * size**2) if bias_init is None else bias_init,
        rngs=rngs,
    )


def conv_for_norm(num_in: int, num_out: int, size: int, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution before batch norm: without bias, which batch norm has, and padded to keep the size at stride 1."""
    return conv(num_in, num_out, size, stride=stride, padding=size // 2, use_bias=False, rngs=rngs)


def linear(num_in: int, num_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer, initialised as in PyTorch."""
    return nnx.Linear(num_in, num_out, kernel_init=_KERNEL_INIT, bias_init=_bias_init(num_in), rngs=rngs)


def batch_norm(num_features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch norm with PyTorch's defaults."""
    # PyTorch's momentum of 0.1 weighs the new statistics, Flax's the old ones.
    return nnx.BatchNorm(num_features, epsilon=1e-5, momentum=0.9, rngs=rngs)


def flatten(images: jax.Array) -> jax.Array:
    """Images as vectors (N, D), channels first, in the order that PyTorch's linear layers read."""
    return jnp.moveaxis(images, -1, 1).reshape(images.shape[0], -1)


def max_pool(images: jax.Array, size: int = 2, *, stride: int | None = None, padding: int = 0) -> jax.Array:
    """Maxima over size x size windows, `stride` apart (`size` if not given), of images padded with -inf on all sides.

    Rows and columns that do not fill a window are dropped. The gradient goes to the first maximum of a window in
    row-major order, as in PyTorch. On constant backgrounds all pixels of a window tie, and any other choice changes
    margins. Computed by comparing strided slices, which XLA on CPU differentiates several times faster than its window
    reductions.
    """
    stride = stride or size
    if padding:
        sides = (padding, padding)
        images = jnp.pad(images, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
    # The range of the first pixels of all windows.
    height, width = ((length - size) // stride * stride + 1 for length in images.shape[1:3])
    maximum = strided(images, stride, (0, height), (0, width), axis=1)
    for row in range(size):
        for column in range(size):
            pixel = strided(images, stride, (row, row + height), (column, column + width), axis=1)
            maximum = jnp.where((pixel > maximum) | jnp.isnan(pixel), pixel, maximum)
    return maximum


def avg_pool(images: jax.Array, size: int) -> jax.Array:
    """Means over adjoining size x size windows; rows and columns that do not fill a window are dropped."""
    height, width = (length // size for length in images.shape[1:3])
    whole = images[:, : height * size, : width * size]
    return whole.reshape(images.shape[0], height, size, width, size, -1).mean((2, 4))


def global_avg_pool(images: jax.Array) -> jax.Array:
    """Means over all pixels: vectors (N, C)."""
    return images.mean((1, 2))


def adaptive_avg_pool(images: jax.Array, size: int) -> jax.Array:
    """Means (N, size, size, C) over size x size windows, as PyTorch's `AdaptiveAvgPool2d` defines them.

    Window i of n rows reaches from floor(i n / size) to ceil((i + 1) n / size): windows overlap or repeat pixels where
    `size` does not divide n.
    """
    for axis in (1, 2):
        length = images.shape[axis]
        windows = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        means = [jax.lax.slice_in_dim(images, *window, axis=axis).mean(axis) for window in windows]
        images = jnp.stack(means, axis)
    return images


def check_image_size(network: str, image_shape: tuple[int, int, int], least: int, most: int | None = None) -> None:
    """Raises ValueError unless height and width lie within `least` and `most`, both included."""
    height, width, _ = image_shape
    if min(height, width) < least or (most is not None and max(height, width) > most):
        limits = f"at least {least} x {least}" + (f" and at most {most} x {most}" if most is not None else "")
        raise ValueError(f"{network} needs images of {limits}, got {height} x {width}")


def _convolve(images, kernel, strides, padding, **options):
    """The result of `jax.lax.conv_general_dilated`, by a matrix product where that is faster.

    On CPU, XLA's convolutions with outputs of 2 x 2 pixels or fewer, and their gradients, take ten to a hundred times
    as long as a product with the equivalent matrix. With larger outputs, or kernels of one pixel, XLA's are faster.
    """

    def by_xla(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)

    num_rows, num_columns = (
        (length + sum(sides) - size) // stride + 1
        for length, sides, size, stride in zip(images.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )
    if max(num_rows, num_columns) > 2 or min(kernel.shape[:2]) == 1:
        return by_xla(images, kernel)

    def by_matrix(images: jax.Array, kernel: jax.Array) -> jax.Array:
        num_images, height, width, num_in = images.shape
        # The weights of the image's pixels in one output pixel are a window of the zero-padded kernel.
        padded = jnp.pad(kernel, ((height, height), (width, width), (0, 0), (0, 0)))
        pixels = itertools.product(range(num_rows), range(num_columns))
        corners = [(height + padding[0][0] - i * strides[0], width + padding[1][0] - j * strides[1]) for i, j in pixels]
        windows = [padded[top : top + height, left : left + width] for top, left in corners]
        num_inputs, num_out = height * width * num_in, kernel.shape[-1]
        matrix = jnp.stack(windows, axis=-2).reshape(num_inputs, num_rows * num_columns * num_out)
        product = jnp.dot(images.reshape(num_images, num_inputs), matrix, precision=options["precision"])
        return product.reshape(num_images, num_rows, num_columns, num_out)

    return by_platform(images, kernel, cpu=by_matrix, default=by_xla)


def _bias_init(fan_in: int):
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
