"""Blocks of DCT frequencies, and their complements."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax._checks import ImageShape, check_image_shape, integer
from hmt_jax.frequency import dct_matrix
from hmt_jax.subspaces._base import STATIC, Checked, pytree

# These products must be exact for coordinates to be orthonormal; the default on accelerators may be bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST


class _Frequencies(Checked):
    """Base class of windows and complements: two small matrix products per channel, with rows of DCT matrices."""

    num_axes: ClassVar[dict[str, int]] = {"corner": 1}

    size: int
    corner: jax.Array | np.ndarray


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class DCTWindow(_Frequencies):
    """A square block of DCT frequencies of all channels. Made by `dct_window`, `dct_diagonal` and `dct_grid`.

    >>> window = dct_window((8, 8, 3), row=1, column=2, size=4)
    >>> isinstance(window, DCTWindow), window.corner.tolist(), window.dimension
    (True, [1, 2], 48)
    """

    corner: jax.Array | np.ndarray  # first row and column of the block, (2,) integers
    size: int = dataclasses.field(metadata=STATIC)
    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    def _rows(self, axis, dtype):
        # A slice, and not all of the rolled matrix, which each lane of a measurement would copy in every step.
        matrix = jnp.asarray(dct_matrix(self.image_shape[axis]), dtype)
        return jax.lax.dynamic_slice_in_dim(matrix, self.corner[axis], self.size)

    def _project(self, image: jax.Array) -> jax.Array:
        rows, columns = self._rows(0, image.dtype), self._rows(1, image.dtype)
        return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=_PRECISION).reshape(-1)

    def _lift(self, z: jax.Array) -> jax.Array:
        rows, columns = self._rows(0, z.dtype), self._rows(1, z.dtype)
        block = z.reshape(self.size, self.size, self.image_shape[2])
        return jnp.einsum("ih,ijc,jw->hwc", rows, block, columns, precision=_PRECISION)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class DCTWindowComplement(_Frequencies):
    """All DCT frequencies outside a window. Made by `orthogonal_complement`.

    >>> from hmt_jax import subspaces
    >>> rest = subspaces.orthogonal_complement(dct_window((8, 8, 1), row=0, column=0, size=4))
    >>> isinstance(rest, DCTWindowComplement), rest.dimension
    (True, 48)
    """

    corner: jax.Array | np.ndarray  # as in DCTWindow
    size: int = dataclasses.field(metadata=STATIC)
    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    def _rolled_dct(self, axis: int, dtype) -> jax.Array:
        """The DCT matrix of an image axis with the window's first frequency moved to row 0."""
        matrix = jnp.asarray(dct_matrix(self.image_shape[axis]), dtype)
        return jnp.roll(matrix, -self.corner[axis], axis=0)

    def _kept(self) -> np.ndarray:
        """Flat positions outside the window, in coefficients that are rolled so that the window is the first block."""
        height, width, _ = self.image_shape
        is_inside = np.outer(np.arange(height) < self.size, np.arange(width) < self.size)
        return np.flatnonzero(~is_inside)

    def _project(self, image: jax.Array) -> jax.Array:
        rows, columns = self._rolled_dct(0, image.dtype), self._rolled_dct(1, image.dtype)
        coefficients = jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=_PRECISION)
        return coefficients.reshape(-1, self.image_shape[2])[self._kept()].reshape(-1)

    def _lift(self, z: jax.Array) -> jax.Array:
        rows, columns = self._rolled_dct(0, z.dtype), self._rolled_dct(1, z.dtype)
        height, width, channels = self.image_shape
        coefficients = jnp.zeros((height * width, channels), z.dtype).at[self._kept()].set(z.reshape(-1, channels))
        coefficients = coefficients.reshape(self.image_shape)
        return jnp.einsum("ih,ijc,jw->hwc", rows, coefficients, columns, precision=_PRECISION)


def dct_window(image_shape: Sequence[int], row: int, column: int, size: int) -> DCTWindow:
    """The subspace of the DCT frequencies [row, row + size) x [column, column + size) of all channels.

    Args:
      image_shape: (height, width, channels) of the images.
      row: first vertical frequency of the window.
      column: first horizontal frequency of the window.
      size: frequencies along each side; the dimension is size * size * channels.

    Raises:
      ValueError: if the window exceeds the height x width frequencies of the image.

    >>> window = dct_window((28, 28, 1), row=3, column=5, size=8)
    >>> window.dimension
    64
    """
    image_shape = check_image_shape(image_shape)
    height, width, _ = image_shape
    row, column = integer("row", row), integer("column", column)
    size = _check_window_size(image_shape, size)
    if not (0 <= row <= height - size and 0 <= column <= width - size):
        raise ValueError(
            f"a window of size {size} at row {row}, column {column} leaves the {height} x {width} frequencies of the "
            f"image; row must be between 0 and {height - size}, column between 0 and {width - size}"
        )
    return _windows([(row, column)], size, image_shape)[0]


def dct_diagonal(image_shape: Sequence[int], size: int, step: int) -> list[DCTWindow]:
    """The windows at (0, 0), (step, step), (2 step, 2 step), ... that fit into the image, from low to high frequencies.

    The paper uses size 8 and step 1 for MNIST (21 windows), size 8 and step 2 for CIFAR-10 (13 windows), and size 16
    and step 16 for ImageNet (14 windows).

    Args:
      image_shape: (height, width, channels) of the images.
      size: frequencies along each side of a window.
      step: frequencies from one window to the next, along both axes.

    Raises:
      ValueError: if size is not between 1 and the shorter side of the image, or step is below 1.

    >>> diagonal = dct_diagonal((28, 28, 1), size=8, step=1)
    >>> len(diagonal), diagonal[20].corner.tolist()
    (21, [20, 20])
    """
    image_shape = check_image_shape(image_shape)
    size, step = _check_window_size(image_shape, size), integer("step", step, at_least=1)
    firsts = range(0, min(image_shape[:2]) - size + 1, step)
    return _windows([(first, first) for first in firsts], size, image_shape)


def dct_grid(image_shape: Sequence[int], size: int, step: int) -> list[DCTWindow]:
    """All windows at multiples of `step` along both axes that fit into the image, row by row.

    Args:
      image_shape: (height, width, channels) of the images.
      size: frequencies along each side of a window.
      step: frequencies from one window to the next, along either axis.

    Raises:
      ValueError: if size is not between 1 and the shorter side of the image, or step is below 1.

    >>> grid = dct_grid((8, 12, 1), size=4, step=4)
    >>> [window.corner.tolist() for window in grid]
    [[0, 0], [0, 4], [0, 8], [4, 0], [4, 4], [4, 8]]
    """
    image_shape = check_image_shape(image_shape)
    size, step = _check_window_size(image_shape, size), integer("step", step, at_least=1)
    rows, columns = (range(0, length - size + 1, step) for length in image_shape[:2])
    return _windows([(row, column) for row in rows for column in columns], size, image_shape)


def _windows(corners, size, image_shape) -> list[DCTWindow]:
    # NumPy arrays: splitting a JAX array would dispatch a program for each window.
    return [DCTWindow(np.asarray(corner, np.int32), size, image_shape) for corner in corners]


def _check_window_size(image_shape, size) -> int:
    size, largest = integer("size", size), min(image_shape[:2])
    if not 1 <= size <= largest:
        raise ValueError(
            f"size must be between 1 and {largest} for images of shape (height, width, channels) = {image_shape}, got "
            f"{size}"
        )
    return size
