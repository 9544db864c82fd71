"""A convolution with ReLU and max-pooling as one differentiable piece, fast where channels are few.

XLA runs convolutions of 1 to 16 channels on CPU at a few percent of the rate of its matrix products, and the gradient
of pooling at the rate of a few bytes a cycle; LeNet is made of nothing else, and a step of DeepFool takes nine
backward passes for two forward ones. So on CPU the gradient with respect to the images is one matrix product over
whole rows of the image, on gradients that are never scattered to the unpooled size. On other devices it is XLA's own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def conv_relu_pool(images: jax.Array, kernel: jax.Array, bias: jax.Array, padding: int) -> jax.Array:
    """Maxima over 2 x 2 windows of relu(convolution + bias); rows and columns that fill no window are dropped.

    The gradient goes to the first maximum of a window in row-major order, and nowhere where that is not positive, as
    in PyTorch. On constant backgrounds all windows tie, and any other choice moves margins.

    Args:
      images: (N, height, width, channels).
      kernel: (size, size, channels, filters), of odd size.
      bias: (filters,).
      padding: zeros on every side of the images.

    Returns:
      (N, (height + 2 padding - size + 1) // 2, (width + 2 padding - size + 1) // 2, filters).
    """
    return _forward(images, kernel, bias, padding)[0]


def _forward(images, kernel, bias, padding):
    """The result, and what the backward pass needs: with the rest, the winner of each window, 1 to 4, or 0 for none."""
    responses = _convolve(images, kernel, padding) + bias.reshape(1, 1, 1, -1)
    height, width = (length // 2 * 2 for length in responses.shape[1:3])
    pixels = [responses[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
    windows = jnp.stack([jnp.zeros_like(pixels[0]), *pixels])
    # One reduction gives both. XLA would compute the convolution anew for each of two, and, for winners found by
    # comparisons, in the backward pass of every class.
    numbers = lax.broadcasted_iota(jnp.int32, windows.shape, 0)
    maximum, winner = lax.reduce((windows, numbers), (windows.dtype.type(-np.inf), np.int32(0)), _first_maximum, (0,))
    return maximum, (images, kernel, bias, winner.astype(jnp.int8))


def _first_maximum(one, other):
    """The greater of two pairs (value, number), the one of the lesser number if their values are equal or both NaN."""
    (value, number), (other_value, other_number) = one, other
    is_tie = (value == other_value) | (jnp.isnan(value) & jnp.isnan(other_value))
    takes_one = (
        (value > other_value) | (jnp.isnan(value) & ~jnp.isnan(other_value)) | (is_tie & (number < other_number))
    )
    return jnp.where(takes_one, value, other_value), jnp.where(takes_one, number, other_number)


def _backward(padding, residuals, gradient):
    images, kernel, bias, winner = residuals
    to_images = functools.partial(_image_gradient, padding=padding, shape=images.shape)
    by_rows = functools.partial(_image_gradient_by_rows, padding=padding, shape=images.shape)
    image_gradient = lax.platform_dependent(gradient, winner, kernel, cpu=by_rows, default=to_images)

    to_kernel = functools.partial(_kernel_gradient, padding=padding, shape=kernel.shape)
    by_rows = functools.partial(_kernel_gradient_by_rows, padding=padding, shape=kernel.shape)
    kernel_gradient = lax.platform_dependent(gradient, winner, images, cpu=by_rows, default=to_kernel)
    bias_gradient = jnp.sum(gradient, (0, 1, 2), where=winner > 0)
    return image_gradient, kernel_gradient, bias_gradient.astype(bias.dtype)


conv_relu_pool.defvjp(_forward, _backward)


def _convolve(images, kernel, padding):
    if images.shape[-1] > 1:
        return _xla_convolve(images, kernel, padding)
    on_cpu = functools.partial(_convolve_one_channel, padding=padding)
    default = functools.partial(_xla_convolve, padding=padding)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=default)


def _xla_convolve(images, kernel, padding):
    return lax.conv_general_dilated(images, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


def _convolve_one_channel(images, kernel, padding):
    """A sum over the taps of the kernel, each pixel in the same order: equal patches give equal values."""
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = (length - len(kernel) + 1 for length in padded.shape[1:3])
    taps = (
        padded[:, row : row + height, column : column + width] * kernel[row, column].reshape(1, 1, 1, -1)
        for row in range(len(kernel))
        for column in range(len(kernel))
    )
    responses = functools.reduce(jnp.add, taps)
    # A product with the identity changes nothing, and XLA fuses nothing through it: fused with the pooling, the sum
    # takes seven times as long.
    return jnp.matmul(responses, jnp.eye(kernel.shape[-1], dtype=responses.dtype), precision=lax.Precision.HIGHEST)


def _image_gradient(gradient, winner, kernel, padding, shape):
    unpooled = _unpool(gradient, winner, [length + 2 * padding - len(kernel) + 1 for length in shape[1:3]])
    images = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda images: _xla_convolve(images, kernel, padding), images)(unpooled)[0]


def _kernel_gradient(gradient, winner, images, padding, shape):
    unpooled = _unpool(gradient, winner, [length + 2 * padding - shape[0] + 1 for length in images.shape[1:3]])
    kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda kernel: _xla_convolve(images, kernel, padding), kernel)(unpooled)[0]


def _image_gradient_by_rows(gradient, winner, kernel, padding, shape):
    """The same as one matrix product, from the masked gradients of a row of windows to the image rows they see.

    A row of windows lies in two rows of the convolution, which see size + 1 rows of the image, or (size + 1) / 2
    pairs of rows; the windows below see what lies one pair further down. So the products are added up by pairs.
    """
    num_images, num_rows, num_columns, _ = gradient.shape
    _, height, width, channels = shape
    num_pairs = (len(kernel) + 1) // 2
    rows = _rows_of_windows(gradient, winner) @ _row_matrix(kernel, num_columns, width, padding)
    rows = rows.reshape(num_images, num_rows, num_pairs, 2 * width * channels)
    pairs = jnp.stack(
        [jnp.pad(rows[:, :, first], ((0, 0), (first, num_pairs - 1 - first), (0, 0))) for first in range(num_pairs)]
    ).sum(0)
    seen = pairs.reshape(num_images, -1, width, channels)[:, padding:][:, :height]
    return jnp.pad(seen, ((0, 0), (0, height - seen.shape[1]), (0, 0), (0, 0)))


def _kernel_gradient_by_rows(gradient, winner, images, padding, shape):
    """The same as one matrix product, of the masked gradients of rows of windows with the image rows they see."""
    size, num_columns = shape[0], gradient.shape[2]
    num_images, num_rows = gradient.shape[:2]
    _, height, width, channels = images.shape
    below = max(2 * num_rows + size - 1 - padding - height, 0)
    padded = jnp.pad(images, ((0, 0), (padding, below), (0, 0), (0, 0)))
    rows = padded.reshape(num_images, padded.shape[1], width * channels)
    seen = jnp.stack([rows[:, row : row + 2 * num_rows : 2] for row in range(size + 1)], 2)
    seen = seen.reshape(num_images * num_rows, (size + 1) * width * channels)
    products = _rows_of_windows(gradient, winner).T @ seen
    matrix = jax.ShapeDtypeStruct(shape, gradient.dtype)
    to_rows = functools.partial(_row_matrix, num_columns=num_columns, width=width, padding=padding)
    return jax.linear_transpose(to_rows, matrix)(products)[0]


def _rows_of_windows(gradient, winner):
    """Gradients at the winners of windows, a row of windows in each row: (window position, column, filter)."""
    num_images, num_rows, num_columns, num_filters = gradient.shape
    position = jnp.arange(1, 5, dtype=jnp.int8).reshape(1, 1, 4, 1)
    shape = (num_images, num_rows, 1, num_columns * num_filters)
    masked = jnp.where(winner.reshape(shape) == position, gradient.reshape(shape), 0)
    return masked.reshape(num_images * num_rows, -1)


def _row_matrix(kernel, num_columns, width, padding):
    """The kernel as a matrix from (window position, column of windows, filter) to (image row, column, channel)."""
    size, _, channels, num_filters = kernel.shape
    tap, offset = np.arange(size), np.arange(2).reshape(-1, 1, 1)
    sees_row = np.arange(size + 1).reshape(-1, 1) == offset + tap
    corner = 2 * np.arange(num_columns).reshape(-1, 1, 1) - padding
    sees_column = np.arange(width).reshape(-1, 1) == offset.reshape(-1, 1, 1, 1) + corner + tap
    matrix = jnp.einsum(
        "pra,qwvb,abio->pqworvi",
        sees_row.astype(kernel.dtype),
        sees_column.astype(kernel.dtype),
        kernel,
        precision=lax.Precision.HIGHEST,
    )
    return matrix.reshape(4 * num_columns * num_filters, (size + 1) * width * channels)


def _unpool(gradient, winner, size):
    """Gradients (N, rows, columns, filters) at the winners of their windows, in arrays of the unpooled size."""
    num_images, num_rows, num_columns, num_filters = gradient.shape
    position = jnp.arange(1, 5, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    is_winner = winner.reshape(num_images, num_rows, 1, num_columns, 1, num_filters) == position
    blocks = jnp.where(is_winner, gradient.reshape(num_images, num_rows, 1, num_columns, 1, num_filters), 0)
    unpooled = blocks.reshape(num_images, 2 * num_rows, 2 * num_columns, num_filters)
    return jnp.pad(unpooled, ((0, 0), (0, size[0] - 2 * num_rows), (0, size[1] - 2 * num_columns), (0, 0)))
