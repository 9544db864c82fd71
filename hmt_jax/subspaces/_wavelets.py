"""Bands of orthonormal wavelets."""

from collections.abc import Sequence

import numpy as np

from hmt_jax._checks import check_image_shape, integer
from hmt_jax._extras import require
from hmt_jax.subspaces._separable import Separable

# Of W W^T - I, in float64: some filters are tabulated to a few digits only.
_TOLERANCE = 1e-6


def wavelet_bands(image_shape: Sequence[int], wavelet: str, levels: int) -> list[Separable]:
    """The bands of an orthonormal wavelet transform with periodic borders, from the coarsest to the finest.

    The first is the approximation of the last level. After it come three bands of details for each level, from the last
    level to the first: horizontal ones, which are high frequencies from row to row, vertical ones, which are high
    frequencies from column to column, and diagonal ones, which are both. Together, they are all of image space. The
    coefficients are those of `pywt.wavedec2(image, wavelet, mode="periodization", level=levels)` for each channel.

    Args:
      image_shape: (height, width, channels) of the images.
      wavelet: name of an orthogonal wavelet of PyWavelets, such as "haar", "db2" or "sym4".
      levels: how often the approximation is halved.

    Raises:
      ValueError: if the wavelet is unknown or not orthogonal, or a side of the image can't be halved so often.
      ModuleNotFoundError: without PyWavelets.

    >>> bands = wavelet_bands((28, 28, 1), "db2", levels=2)
    >>> [band.dimension for band in bands]
    [49, 49, 49, 49, 196, 196, 196]
    """
    image_shape = check_image_shape(image_shape)
    levels = integer("levels", levels, at_least=1)
    halvings = min(_num_halvings(length) for length in image_shape[:2])
    if levels > halvings:
        raise ValueError(
            f"levels must be at most {halvings} for images of {image_shape[0]} x {image_shape[1]} pixels, got "
            f"{levels}: each level halves both sides, which must be even"
        )
    low, high = zip(*(_matrices(length, wavelet, levels) for length in image_shape[:2]), strict=True)
    bands = [(low[0][-1], low[1][-1])]
    for level in reversed(range(levels)):
        bands += [
            (high[0][level], low[1][level]),
            (low[0][level], high[1][level]),
            (high[0][level], high[1][level]),
        ]
    return [Separable(rows, columns, None, None, image_shape) for rows, columns in bands]


def _num_halvings(length: int) -> int:
    return (length & -length).bit_length() - 1


def _matrices(length: int, wavelet: str, levels: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The rows that give the approximation and the details of each level, from signals of a length."""
    require("a wavelet", "wavelets", "pywt")
    import pywt

    if not isinstance(wavelet, str) or wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"unknown wavelet {wavelet!r}: use one of PyWavelets, such as haar, db2 or sym4")
    low, high, signal = [], [], np.eye(length)
    for _ in range(levels):
        signal, details = pywt.dwt(signal, wavelet, mode="periodization", axis=0)
        low.append(signal)
        high.append(details)
        both = np.concatenate([signal, details])
        if np.abs(both @ both.T - np.eye(len(both))).max() > _TOLERANCE:
            raise ValueError(f"the wavelet {wavelet} is not orthogonal: use one that is, such as haar, db2 or sym4")
    return low, high
