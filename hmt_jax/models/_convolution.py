"""A convolution with ReLU and max-pooling as one differentiable operation, fast for few channels.

On CPU, XLA runs convolutions of 1 to 16 channels at a few percent of the speed of its matrix products, and the gradient
of pooling at a few bytes per cycle. LeNet is made of such layers, and a step of DeepFool takes nine backward passes for
two forward ones. So on CPU a convolution of one channel is vectorised over the images, because one channel can't fill a
vector; and gradients are matrix products over pooling windows, never scattered to the unpooled size. On other devices
everything is left to XLA.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hmt_jax._devices import by_platform

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Needed:
    """Whether gradients are needed: a measurement differentiates by images alone, a first layer in training not."""

    images: bool
    kernel: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def conv_relu_pool(images: jax.Array, kernel: jax.Array, bias: jax.Array, padding: int) -> jax.Array:
    """Maxima over 2 x 2 windows of relu(convolution + bias); rows and columns that fill no window are dropped.

    The gradient goes to the first maximum of a window in row-major order, and to no pixel if that maximum is not
    positive, as in PyTorch. On constant backgrounds all pixels of a window tie, and any other choice changes margins.

    Args:
      images: (N, height, width, channels).
      kernel: (size, size, channels, filters), of odd size.
      bias: (filters,).
      padding: zeros on every side of the images.

    Returns:
      (N, (height + 2 padding - size + 1) // 2, (width + 2 padding - size + 1) // 2, filters).
    """
    return _pool(images, kernel, bias, padding)[0]


def _pool(images, kernel, bias, padding):
    """The result, and each window's winner, 1 to 4, or 0 for none."""
    by_xla = functools.partial(_pool_convolution, padding=padding)
    if images.shape[-1] != 1:
        return by_xla(images, kernel, bias)
    by_taps = functools.partial(_pool_taps, padding=padding)
    return by_platform(images, kernel, bias, cpu=by_taps, default=by_xla)


def strided(array: jax.Array, stride: int, rows: tuple[int, int], columns: tuple[int, int], *, axis: int) -> jax.Array:
    """The slices `start:stop:stride` of rows and columns, which are the axes `axis` and `axis + 1`.

    If the number of images is a symbol, indexing is a gather, which is several times slower.
    """
    starts, stops, strides = [0] * array.ndim, list(array.shape), [1] * array.ndim
    for i, (start, stop) in enumerate((rows, columns), start=axis):
        starts[i], stops[i], strides[i] = start, stop, stride
    return lax.slice(array, starts, stops, strides)


def _forward(images, kernel, bias, padding):
    """The result, and the residuals: the arguments, the winners, and whether the gradients of arrays are needed."""
    arguments = images.value, kernel.value, bias.value
    maximum, winner = _pool(*arguments, padding)
    return maximum, (*arguments, winner, _Needed(images.perturbed, kernel.perturbed))


def _backward(padding, residuals, gradient):
    images, kernel, bias, winner, needed = residuals
    image_gradient = kernel_gradient = None
    if needed.images:
        to_images = functools.partial(_image_gradient, padding=padding, shape=images.shape)
        by_windows = functools.partial(_image_gradient_by_windows, padding=padding, shape=images.shape)
        image_gradient = by_platform(gradient, winner, kernel, cpu=by_windows, default=to_images)
    if needed.kernel:
        to_kernel = functools.partial(_kernel_gradient, padding=padding, shape=kernel.shape)
        by_windows = functools.partial(_kernel_gradient_by_windows, padding=padding, shape=kernel.shape)
        kernel_gradient = by_platform(gradient, winner, images, cpu=by_windows, default=to_kernel)
    bias_gradient = jnp.sum(gradient, (0, 1, 2), where=winner > 0)
    return image_gradient, kernel_gradient, bias_gradient.astype(bias.dtype)


conv_relu_pool.defvjp(_forward, _backward, symbolic_zeros=True)


def _pool_convolution(images, kernel, bias, padding):
    responses = _convolve(images, kernel, padding) + bias.reshape(1, 1, 1, -1)
    height, width = (length // 2 * 2 for length in responses.shape[1:3])
    pixels = [strided(responses, 2, (row, height), (column, width), axis=1) for row in (0, 1) for column in (0, 1)]
    windows = jnp.stack([jnp.zeros_like(pixels[0]), *pixels])
    # One reduction yields both: XLA would recompute winners found by comparisons in the backward pass of every class.
    numbers = lax.broadcasted_iota(jnp.int32, windows.shape, 0)
    maximum, winner = lax.reduce((windows, numbers), (windows.dtype.type(-np.inf), np.int32(0)), _first_maximum, (0,))
    return maximum, winner.astype(jnp.int8)


def _first_maximum(one, other):
    """The greater of two pairs (value, number); the one of smaller number if their values are equal or both NaN."""
    (value, number), (other_value, other_number) = one, other
    is_tie = (value == other_value) | (jnp.isnan(value) & jnp.isnan(other_value))
    takes_one = (
        (value > other_value) | (jnp.isnan(value) & ~jnp.isnan(other_value)) | (is_tie & (number < other_number))
    )
    return jnp.where(takes_one, value, other_value), jnp.where(takes_one, number, other_number)


def _pool_taps(images, kernel, bias, padding):
    """The same as `_pool_convolution`, for images of one channel, computed with the images along the last axis."""
    padded = jnp.pad(images[..., 0], ((0, 0), (padding, padding), (padding, padding)))
    maximum, winner = _pool_taps_of_planes(jnp.moveaxis(padded, 0, -1), kernel[:, :, 0], bias)
    maximum, winner = (_computed_once(jnp.moveaxis(array, -1, 0)) for array in (maximum, winner))
    return maximum, winner.astype(jnp.int8)


def _computed_once(array):
    """The same array (..., channels), as a product with the identity, across which XLA on CPU fuses nothing.

    Otherwise XLA recomputes the array wherever it is used: in the backward pass of every class, and for every block.
    """
    identity = jnp.eye(array.shape[-1], dtype=array.dtype)
    return jnp.matmul(array, identity, precision=lax.Precision.HIGHEST)


@jax.custom_batching.custom_vmap
def _pool_taps_of_planes(planes, kernel, bias):
    """Maxima and winners (rows, columns, filters, N) for padded images (height, width, N)."""
    size = len(kernel)
    rows, columns = ((length - size + 1) // 2 for length in planes.shape[:2])
    maximum = winner = jnp.zeros((rows, columns, len(bias), planes.shape[-1]), planes.dtype)
    for number, (row, column) in enumerate(itertools.product((0, 1), (0, 1)), start=1):
        seen = strided(planes, 1, (row, row + 2 * rows + size - 2), (column, column + 2 * columns + size - 2), axis=0)
        value = _responses(seen, kernel, bias)
        is_greater = (value > maximum) | (jnp.isnan(value) & ~jnp.isnan(maximum))
        maximum, winner = jnp.where(is_greater, value, maximum), jnp.where(is_greater, number, winner)
    return maximum, winner


@jax.jit  # traced once for the four positions in a window
def _responses(planes, kernel, bias):
    """Responses (rows, columns, filters, N) of a convolution with strides of 2."""
    size = len(kernel)
    rows, columns = ((length - size) // 2 + 1 for length in planes.shape[:2])
    # A sum over the kernel's taps in the same order at every pixel, so that equal patches have equal values.
    taps = (
        strided(planes, 2, (i, i + 2 * rows - 1), (j, j + 2 * columns - 1), axis=0)[:, :, None]
        * kernel[i, j].reshape(1, 1, -1, 1)
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jnp.add, taps) + bias.reshape(1, 1, -1, 1)


@_pool_taps_of_planes.def_vmap
def _pool_taps_of_batches(axis_size, is_mapped, planes, kernel, bias):
    """The batched maxima and winners: a mapped axis of images joins their own axis, so that vectors stay full."""
    if is_mapped[1] or is_mapped[2]:
        axes = [0 if mapped else None for mapped in is_mapped]
        return jax.vmap(_pool_taps_of_planes.fun, axes)(planes, kernel, bias), (True, True)
    joined = jnp.moveaxis(planes, 0, -2).reshape(*planes.shape[1:3], -1)
    split = (
        jnp.moveaxis(array.reshape(*array.shape[:-1], axis_size, -1), -2, 0)
        for array in _pool_taps_of_planes(joined, kernel, bias)
    )
    return tuple(split), (True, True)


def _convolve(images, kernel, padding):
    return lax.conv_general_dilated(images, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


def _image_gradient(gradient, winner, kernel, padding, shape):
    unpooled = _unpool(gradient, winner, [length + 2 * padding - len(kernel) + 1 for length in shape[1:3]])
    images = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda images: _convolve(images, kernel, padding), images)(unpooled)[0]


def _kernel_gradient(gradient, winner, images, padding, shape):
    unpooled = _unpool(gradient, winner, [length + 2 * padding - shape[0] + 1 for length in images.shape[1:3]])
    kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda kernel: _convolve(images, kernel, padding), kernel)(unpooled)[0]


def _unpool(gradient, winner, size):
    """Gradients (N, rows, columns, filters) at the winners of their windows, in arrays of the unpooled size."""
    num_images, num_rows, num_columns, num_filters = gradient.shape
    position = jnp.arange(1, 5, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    is_winner = winner.reshape(num_images, num_rows, 1, num_columns, 1, num_filters) == position
    blocks = jnp.where(is_winner, gradient.reshape(num_images, num_rows, 1, num_columns, 1, num_filters), 0)
    unpooled = blocks.reshape(num_images, 2 * num_rows, 2 * num_columns, num_filters)
    return jnp.pad(unpooled, ((0, 0), (0, size[0] - 2 * num_rows), (0, size[1] - 2 * num_columns), (0, 0)))


# A window lies in 2 x 2 pixels of the convolution, which see (size + 1) x (size + 1) pixels of the image, or
# ((size + 1) / 2)^2 blocks of 2 x 2. The next window sees the pixels one block further on.


def _image_gradient_by_windows(gradient, winner, kernel, padding, shape):
    """The gradient of `_image_gradient` by one matrix product, from windows' masked gradients to image blocks."""
    num_images, num_rows, num_columns, num_filters = gradient.shape
    size, _, channels, _ = kernel.shape
    num_blocks = (size + 1) // 2
    shifted = jnp.stack(
        [jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0))) for row in (0, 1) for column in (0, 1)]
    )
    matrix = _to_blocks(jnp.moveaxis(shifted, -1, 1).reshape(4 * num_filters, size + 1, size + 1, channels))
    seen = _at_winners(gradient, winner) @ matrix.reshape(4 * num_filters, -1)
    seen = seen.reshape(num_images, num_rows, num_columns, num_blocks, num_blocks, 4 * channels)
    blocks = sum(
        jnp.pad(seen[:, :, :, i, j], ((0, 0), (i, num_blocks - 1 - i), (j, num_blocks - 1 - j), (0, 0)))
        for i in range(num_blocks)
        for j in range(num_blocks)
    )
    return _fit(_from_blocks(_computed_once(blocks))[:, padding:, padding:], shape)


def _kernel_gradient_by_windows(gradient, winner, images, padding, shape):
    """The gradient of `_kernel_gradient` by one matrix product, of windows' masked gradients and image blocks."""
    num_images, num_rows, num_columns, num_filters = gradient.shape
    size, _, channels, _ = shape
    num_blocks = (size + 1) // 2
    padded = jnp.pad(images, ((0, 0), (padding, 0), (padding, 0), (0, 0)))
    rows, columns = (2 * (length + num_blocks - 1) for length in (num_rows, num_columns))
    blocks = _computed_once(_to_blocks(_fit(padded, (num_images, rows, columns, channels))))
    seen = jnp.concatenate(
        [blocks[:, i : i + num_rows, j : j + num_columns] for i in range(num_blocks) for j in range(num_blocks)], -1
    )
    products = _at_winners(gradient, winner).T @ seen.reshape(-1, seen.shape[-1])
    shifted = _from_blocks(products.reshape(4 * num_filters, num_blocks, num_blocks, 4 * channels))
    shifted = shifted.reshape(2, 2, num_filters, size + 1, size + 1, channels)
    kernels = [shifted[row, column, :, row : row + size, column : column + size] for row in (0, 1) for column in (0, 1)]
    return jnp.moveaxis(sum(kernels), 0, -1)


def _at_winners(gradient, winner):
    """Gradients of windows, one window per row: (position in the window, filter), zero except at the winners."""
    position = jnp.arange(1, 5, dtype=jnp.int8).reshape(1, 1, 1, 4, 1)
    masked = jnp.where(winner[:, :, :, None] == position, gradient[:, :, :, None], 0)
    return masked.reshape(-1, 4 * gradient.shape[-1])


def _to_blocks(images):
    """Images (N, 2 rows, 2 columns, channels) as their blocks of 2 x 2 pixels, (N, rows, columns, 4 channels)."""
    num_images, height, width, channels = images.shape
    pixels = images.reshape(num_images, height // 2, 2, width // 2, 2, channels)
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(num_images, height // 2, width // 2, 4 * channels)


def _from_blocks(blocks):
    """The inverse of `_to_blocks`."""
    num_images, num_rows, num_columns, depth = blocks.shape
    pixels = blocks.reshape(num_images, num_rows, num_columns, 2, 2, depth // 4)
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(num_images, 2 * num_rows, 2 * num_columns, depth // 4)


def _fit(images, shape):
    """Images cropped, or padded with zeros, at the bottom and on the right, to the height and width of a shape."""
    images = images[:, : shape[1], : shape[2]]
    return jnp.pad(images, ((0, 0), (0, shape[1] - images.shape[1]), (0, shape[2] - images.shape[2]), (0, 0)))
