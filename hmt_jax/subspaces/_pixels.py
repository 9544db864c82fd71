"""Pixels, squares of pixels, and colours."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from hmt_jax._checks import as_array, check_image_shape, integer
from hmt_jax.subspaces._separable import Separable


def pixels(mask: ArrayLike) -> Separable:
    """The subspace of some pixels, in some or all channels: the others are left as they are.

    Args:
      mask: (height, width, channels) of True and False, True where the subspace has a coordinate.

    Raises:
      ValueError: if the mask has another shape or type, or no True.

    >>> border = np.ones((8, 8, 3), bool)
    >>> border[1:-1, 1:-1] = False
    >>> pixels(border).dimension
    84
    """
    mask = np.asarray(as_array("mask", mask))
    if mask.ndim != 3 or mask.dtype != bool:
        raise ValueError(
            f"mask must be an array (height, width, channels) of True and False, got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise ValueError("mask has no True: mark the pixels that may change")
    return Separable(None, None, None, np.flatnonzero(mask).astype(np.int32), check_image_shape(mask.shape))


def patches(image_shape: Sequence[int], size: int) -> list[Separable]:
    """The squares of a grid over the image, row by row, with all channels.

    Args:
      image_shape: (height, width, channels) of the images.
      size: pixels along each side of a square. It must divide both sides of the image.

    Raises:
      ValueError: if it does not.

    >>> [patch.dimension for patch in patches((8, 12, 3), size=4)]
    [48, 48, 48, 48, 48, 48]
    """
    image_shape = check_image_shape(image_shape)
    height, width, _ = image_shape
    size = integer("size", size, at_least=1)
    if height % size or width % size:
        raise ValueError(f"size must divide both sides of images of {height} x {width} pixels, got {size}")
    rows, columns = (np.eye(length).reshape(-1, size, length) for length in (height, width))
    return [Separable(row, column, None, None, image_shape) for row in rows for column in columns]


def channels(image_shape: Sequence[int]) -> list[Separable]:
    """The channels of the image, each with all its pixels.

    Args:
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: for any other shape.

    >>> [channel.dimension for channel in channels((8, 8, 3))]
    [64, 64, 64]
    """
    image_shape = check_image_shape(image_shape)
    return [Separable(None, None, colour[None], None, image_shape) for colour in np.eye(image_shape[2])]


def luma_chroma(image_shape: Sequence[int]) -> list[Separable]:
    """Brightness and colour: first the images whose three channels are equal, then those whose channels sum to 0.

    Args:
      image_shape: (height, width, 3) of the images.

    Raises:
      ValueError: if there are not three channels.

    >>> [each.dimension for each in luma_chroma((8, 8, 3))]
    [64, 128]
    """
    image_shape = check_image_shape(image_shape)
    if image_shape[2] != 3:
        raise ValueError(f"luma_chroma needs images of three channels, got image_shape {image_shape}")
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    return [Separable(None, None, part, None, image_shape) for part in (colours[:1], colours[1:])]
