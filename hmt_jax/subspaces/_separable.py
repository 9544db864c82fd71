"""Subspaces of coefficients of transforms that act on rows, columns and channels one after the other."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax._checks import ImageShape
from hmt_jax.subspaces._base import STATIC, Checked, pytree

# These products must be exact for coordinates to be orthonormal; the default on accelerators may be bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Separable(Checked):
    """Coefficients of an orthonormal transform that acts on rows, columns and channels one after the other.

    Each of the three matrices has orthonormal rows; None stands for the identity. The coefficients form an array (a, b,
    k), of which `positions` are kept, or all if it is None. Memory and time are those of three small matrix products.

    Made by `wavelet_bands`, `fourier_rings`, `patches`, `pixels`, `channels` and `luma_chroma`.

    >>> from hmt_jax import subspaces
    >>> patch = subspaces.patches((8, 8, 3), size=4)[0]
    >>> isinstance(patch, Separable), patch.rows.shape, patch.dimension
    (True, (4, 8), 48)
    """

    num_axes: ClassVar[dict[str, int]] = {"rows": 2, "columns": 2, "colours": 2, "positions": 1}

    rows: jax.Array | np.ndarray | None  # (a, height)
    columns: jax.Array | np.ndarray | None  # (b, width)
    colours: jax.Array | np.ndarray | None  # (k, channels)
    positions: jax.Array | np.ndarray | None  # in the flattened coefficients, whole numbers in ascending order
    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    @property
    def _matrices(self) -> tuple[Any, Any, Any]:
        return self.rows, self.columns, self.colours

    @property
    def _coefficient_shape(self) -> tuple[int, ...]:
        lengths = zip(self._matrices, self.image_shape, strict=True)
        return tuple(length if matrix is None else matrix.shape[0] for matrix, length in lengths)

    def _project(self, image: jax.Array) -> jax.Array:
        coefficients = _transformed(image, self._matrices, image.dtype).reshape(-1)
        return coefficients if self.positions is None else coefficients[self.positions]

    def _lift(self, z: jax.Array) -> jax.Array:
        shape = self._coefficient_shape
        if self.positions is not None:
            z = jnp.zeros(math.prod(shape), z.dtype).at[self.positions].set(z)
        transposed = [None if matrix is None else matrix.T for matrix in self._matrices]
        return _transformed(z.reshape(shape), transposed, z.dtype)


def _transformed(array, matrices, dtype):
    for subscripts, matrix in zip(("ih,hwc->iwc", "jw,hwc->hjc", "kc,hwc->hwk"), matrices, strict=True):
        if matrix is not None:
            array = jnp.einsum(subscripts, jnp.asarray(matrix, dtype), array, precision=_PRECISION)
    return array


def complement_of(subspace: Separable) -> Separable:
    """The orthogonal complement: the matrices are completed to square ones, and all other positions are kept."""
    matrices = [None if matrix is None else _completed(np.asarray(matrix)) for matrix in subspace._matrices]
    shape = [length if m is None else len(m) for m, length in zip(matrices, subspace.image_shape, strict=True)]
    # The coefficients of the subspace are the first ones along each axis.
    numbers = np.arange(math.prod(shape)).reshape(shape)[tuple(map(slice, subspace._coefficient_shape))].ravel()
    if subspace.positions is not None:
        numbers = numbers[np.asarray(subspace.positions)]
    positions = np.setdiff1d(np.arange(math.prod(shape)), numbers)
    rows, columns, colours = matrices
    return Separable(rows, columns, colours, positions.astype(np.int32), subspace.image_shape)


def _completed(matrix: np.ndarray) -> np.ndarray:
    """A square matrix with orthonormal rows, of which the first are those of the given one."""
    number, length = matrix.shape
    if number == length:
        return matrix
    q, _ = np.linalg.qr(matrix.T.astype(np.float64), mode="complete")
    return np.concatenate([matrix, q[:, number:].T.astype(matrix.dtype)])
