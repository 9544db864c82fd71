"""Angles between two subspaces, and what they have in common and together."""

import jax.numpy as jnp
import numpy as np

from hmt_jax.subspaces._base import Subspace, basis_of, check_fits
from hmt_jax.subspaces._span import Span, full

# Radians. Principal angles up to the first one are rounding, and from the second one on two directions are different.
_SAME, _DIFFERENT = 1e-4, 1e-2


def principal_angles(a: Subspace, b: Subspace) -> np.ndarray:
    """The principal angles between two subspaces, in radians, from the smallest to the largest.

    The first is the smallest angle between any two directions of a and b. Each of the next ones is that between
    directions orthogonal to the ones before (Björck and Golub, 1973). There are as many as the smaller of both has
    dimensions. Bases of both are formed.

    Args:
      a, b: subspaces for images of one shape.

    Raises:
      ValueError: if they are for images of different shapes.

    >>> from hmt_jax import subspaces
    >>> a, b = (subspaces.dct_window((8, 8, 1), row=0, column=c, size=2) for c in (0, 1))
    >>> principal_angles(a, b).round(2).tolist()
    [0.0, 0.0, 1.57, 1.57]
    """
    return _principal(*_bases(a, b))[0]


def intersection(a: Subspace, b: Subspace) -> Span:
    """The subspace of the directions that lie in both a and b.

    Args:
      a, b: subspaces for images of one shape.

    Raises:
      ValueError: if they have no direction in common, if some directions are nearly the same, with an angle between
        1e-4 and 1e-2, or if they are for images of different shapes.

    >>> from hmt_jax import subspaces
    >>> a, b = (subspaces.dct_window((8, 8, 1), row=0, column=c, size=2) for c in (0, 1))
    >>> intersection(a, b).dimension
    2
    """
    angles, directions = _principal(*_bases(a, b))
    number = _num_same(angles)
    if not number:
        raise ValueError(f"the subspaces have no direction in common: the smallest angle is {angles[0]:.3g} radians")
    return _span(directions[:, :number], a)


def sum(a: Subspace, b: Subspace) -> Subspace:  # noqa: A001 - as the field calls it
    """The subspace of all sums of a direction in a and one in b.

    Args:
      a, b: subspaces for images of one shape.

    Raises:
      ValueError: if some directions are nearly the same, with an angle between 1e-4 and 1e-2, or if they are for images
        of different shapes.

    >>> from hmt_jax import subspaces
    >>> a, b = (subspaces.dct_window((8, 8, 1), row=0, column=c, size=2) for c in (0, 1))
    >>> sum(a, b).dimension
    6
    """
    small, large = _bases(a, b)
    angles, directions = _principal(small, large)
    rest = directions[:, _num_same(angles) :]
    # The part of the rest that the larger one lacks, orthonormal up to the rounding that the second pass takes away.
    for _ in range(2):
        rest = rest - large @ (large.T @ rest)
        rest = np.linalg.qr(rest)[0]
    both = np.concatenate([large, rest], axis=1)
    return full(a.image_shape) if both.shape[0] == both.shape[1] else _span(both, a)


def _bases(a: Subspace, b: Subspace) -> list[np.ndarray]:
    """Orthonormal bases of two subspaces for images of one shape, that of the smaller one first."""
    check_fits(b, a.image_shape)
    return sorted((basis_of(a), basis_of(b)), key=lambda basis: basis.shape[1])


def _principal(small: np.ndarray, large: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The principal angles, and the principal directions in the smaller subspace as columns."""
    u, cosines, _ = np.linalg.svd(small.T @ large, full_matrices=False)
    directions = small @ u
    # Cosines hardly tell small angles apart, and sines large ones.
    sines = np.linalg.norm(directions - large @ (large.T @ directions), axis=0)
    return np.arctan2(sines, np.clip(cosines, 0, 1)), directions


def _num_same(angles: np.ndarray) -> int:
    if near := [angle for angle in angles if _SAME < angle < _DIFFERENT]:
        raise ValueError(
            f"an angle between the subspaces is {near[0]:.2g} radians, too small to tell whether that direction is in "
            "both: round it away, or take other subspaces"
        )
    return int(np.sum(angles <= _SAME))


def _span(basis: np.ndarray, like: Subspace) -> Span:
    return Span(jnp.asarray(np.linalg.qr(basis)[0]), like.image_shape)
