"""Spans of vectors, their complements, and the whole space of images."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, as_array, check_image_shape, check_key, integer
from hmt_jax.subspaces._base import STATIC, Checked, pytree

_PRECISION = jax.lax.Precision.HIGHEST
# Largest entry of |S^T S - I| that `from_basis` accepts: ten times the error of a float32 QR at ImageNet's size.
_ORTHONORMALITY_TOLERANCE = 1e-5


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class WholeSpace(Checked):
    """The whole space of images, whose coordinates are the pixels. Made by `full`.

    >>> isinstance(full((8, 8, 3)), WholeSpace), WholeSpace((8, 8, 3)).dimension
    (True, 192)
    """

    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    def _project(self, image: jax.Array) -> jax.Array:
        return image.reshape(-1)

    def _lift(self, z: jax.Array) -> jax.Array:
        return z.reshape(self.image_shape)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Span(Checked):
    """The span of orthonormal columns. Made by `from_basis` and `random`.

    >>> span = random(jax.random.key(0), (4, 4, 1), dimension=2)
    >>> isinstance(span, Span), span.basis.shape
    (True, (16, 2))
    """

    num_axes: ClassVar[dict[str, int]] = {"basis": 2}

    basis: jax.Array  # (D, dimension), D = height * width * channels
    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    def _project(self, image: jax.Array) -> jax.Array:
        return jnp.matmul(self.basis.astype(image.dtype).T, image.reshape(-1), precision=_PRECISION)

    def _lift(self, z: jax.Array) -> jax.Array:
        return jnp.matmul(self.basis.astype(z.dtype), z, precision=_PRECISION).reshape(self.image_shape)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class SpanComplement(Checked):
    """The orthogonal complement of a span, with as many numbers as the span. Made by `orthogonal_complement`.

    The block reflector H = I - 2 P P^T (Schreiber and Parlett, 1988) maps the span onto the first d axes, so its last
    D - d columns are an orthonormal basis of the complement, which is never formed.

    >>> from hmt_jax import subspaces
    >>> rest = subspaces.orthogonal_complement(random(jax.random.key(0), (4, 4, 1), dimension=2))
    >>> isinstance(rest, SpanComplement), rest.dimension
    (True, 14)
    """

    num_axes: ClassVar[dict[str, int]] = {"reflector": 2}

    reflector: jax.Array  # P, (D, d), orthonormal columns
    image_shape: ImageShape = dataclasses.field(metadata=STATIC)

    def _reflect(self, vector):
        p = self.reflector.astype(vector.dtype)
        return vector - 2 * jnp.matmul(p, jnp.matmul(p.T, vector, precision=_PRECISION), precision=_PRECISION)

    def _project(self, image: jax.Array) -> jax.Array:
        return self._reflect(image.reshape(-1))[self.reflector.shape[-1] :]

    def _lift(self, z: jax.Array) -> jax.Array:
        return self._reflect(jnp.pad(z, (self.reflector.shape[-1], 0))).reshape(self.image_shape)


def full(image_shape: Sequence[int]) -> WholeSpace:
    """The whole space of images, in which margins are the norms of ordinary minimal L2 perturbations.

    Args:
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: for any other shape.

    >>> full((28, 28, 1)).dimension
    784
    """
    return WholeSpace(check_image_shape(image_shape))


def from_basis(basis: ArrayLike, image_shape: Sequence[int]) -> Span:
    """The span of the columns of `basis`, which must be orthonormal.

    Args:
      basis: (D, d) with D = height * width * channels: each column an image, flattened.
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: if the shape does not fit, or an entry of |basis^T basis - I| is above 1e-5.

    >>> from_basis(jnp.eye(4, 2), (2, 2, 1)).coordinates(jnp.arange(4.0).reshape(2, 2, 1)).tolist()
    [0.0, 1.0]
    """
    image_shape = check_image_shape(image_shape)
    num_pixels = math.prod(image_shape)
    columns = np.asarray(as_array("basis", basis))
    if columns.ndim != 2 or columns.shape[0] != num_pixels or not 1 <= columns.shape[1] <= num_pixels:
        remedy = "; transpose it" if columns.ndim == 2 and columns.shape[1] == num_pixels else ""
        raise ValueError(
            f"basis must have shape ({num_pixels}, d) for images of shape {image_shape}, one flattened image a column, "
            f"got {columns.shape}{remedy}"
        )
    if not np.issubdtype(columns.dtype, np.floating):
        columns = columns.astype(np.float32)
    deviation = np.max(np.abs(columns.T @ columns - np.eye(columns.shape[1])))
    if not deviation <= _ORTHONORMALITY_TOLERANCE:
        raise ValueError(
            f"the columns of basis must be orthonormal, but |basis^T basis - I| reaches {deviation:.2g}; "
            "np.linalg.qr(basis)[0] has the same span"
        )
    return Span(jnp.asarray(columns), image_shape)


def random(key: jax.Array, image_shape: Sequence[int], dimension: int) -> Span:
    """A uniformly random subspace of the given dimension: the span of Gaussian vectors.

    Args:
      key: random key.
      image_shape: (height, width, channels) of the images.
      dimension: from 1 to height * width * channels.

    Raises:
      ValueError: if the dimension is out of range.
      TypeError: if the key is no random key.

    >>> random(jax.random.key(0), (28, 28, 1), dimension=3).dimension
    3
    """
    check_key(key)
    image_shape = check_image_shape(image_shape)
    num_pixels = math.prod(image_shape)
    dimension = integer("dimension", dimension)
    if not 1 <= dimension <= num_pixels:
        raise ValueError(
            f"dimension must be between 1 and {num_pixels} for images of shape {image_shape}, got {dimension}"
        )
    gaussian = jax.random.normal(key, (num_pixels, dimension))
    return Span(jnp.linalg.qr(gaussian)[0], image_shape)


def reflector_of(basis: jax.Array) -> jax.Array:
    """P with orthonormal columns such that I - 2 P P^T maps the span of an orthonormal basis onto the first axes.

    With basis = (S1; S2) and S1 = U diag(s) V^T, it is the reflector along Y = basis + (U V^T; 0), where
    Y^T Y = 2 V (I + diag(s)) V^T is well conditioned because s >= 0. It is computed on the host in float64, because the
    orthonormality of all later products depends on it.
    """
    columns = np.asarray(basis, np.float64)
    dimension = columns.shape[1]
    u, s, vt = np.linalg.svd(columns[:dimension])
    y = columns.copy()
    y[:dimension] += u @ vt
    return jnp.asarray(y @ vt.T / np.sqrt(2 * (1 + s)), basis.dtype)


def basis_of_reflected(reflector: jax.Array) -> jax.Array:
    """The orthonormal basis (D, d) of the span whose complement has reflector P: the first d columns of H."""
    first_axes = jnp.eye(reflector.shape[0], reflector.shape[1], dtype=reflector.dtype)
    head = reflector[: reflector.shape[1]].T
    return first_axes - 2 * jnp.matmul(reflector, head, precision=_PRECISION)
