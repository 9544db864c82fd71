"""Rings of Fourier frequencies, whatever their orientation."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from hmt_jax._checks import check_image_shape, number
from hmt_jax.subspaces._separable import Separable

# Radii are compared with edges up to this much, in cycles, because they are rounded.
_ROUNDING = 1e-9


def fourier_rings(image_shape: Sequence[int], edges: Sequence[float]) -> list[Separable]:
    """The bands of real Fourier frequencies between radii, from low to high.

    Ring i holds all frequencies whose radius r satisfies edges[i] <= r < edges[i + 1], in every orientation. A
    frequency of u cycles along the height and v cycles along the width has radius s * sqrt((u / height)^2 + (v /
    width)^2), where s is the shorter side. In square images, that is sqrt(u^2 + v^2), which is at most 0.71 sides. The
    projection of an image is its inverse Fourier transform after all other frequencies were set to 0.

    Args:
      image_shape: (height, width, channels) of the images.
      edges: two or more radii in ascending order, in cycles along the shorter side.

    Raises:
      ValueError: if there are not two edges, they do not ascend, or a ring holds no frequency.

    >>> rings = fourier_rings((8, 8, 1), [0, 1, 3, 6])
    >>> [ring.dimension for ring in rings]
    [1, 24, 39]
    """
    image_shape = check_image_shape(image_shape)
    edges = [number("edges", each) for each in edges]
    if len(edges) < 2 or not all(a < b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must be two or more radii in ascending order, got {edges}")
    height, width, channels = image_shape
    (rows, u), (columns, v) = _real_fourier(height), _real_fourier(width)
    radii = min(height, width) * np.hypot(u[:, None] / height, v / width)
    rings = []
    for inner, outer in itertools.pairwise(edges):
        is_inside = (radii >= inner - _ROUNDING) & (radii < outer - _ROUNDING)
        if not is_inside.any():
            raise ValueError(
                f"no frequency of images of {height} x {width} pixels has a radius from {inner:g} to {outer:g}: the "
                f"greatest radius is {radii.max():.4g}"
            )
        positions = np.flatnonzero(np.repeat(is_inside.ravel(), channels)).astype(np.int32)
        rings.append(Separable(rows, columns, None, positions, image_shape))
    return rings


@functools.cache
def _real_fourier(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The orthonormal sines and cosines of signals of a length, as rows, and the number of cycles of each.

    A product of a row for the height and one for the width consists of frequencies that differ only in the signs of u
    and v, so products with one pair of |u| and |v| span what these frequencies span.
    """
    cycles = np.arange(length // 2 + 1)
    # Reduced to one period while still whole numbers, so that the angles are right to the last bits.
    angles = 2 * np.pi * (np.outer(cycles, np.arange(length)) % length) / length
    matrix = np.concatenate([np.cos(angles), np.sin(angles[1 : (length + 1) // 2])])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix.flags.writeable = False
    return matrix, np.concatenate([cycles, cycles[1 : (length + 1) // 2]])
