"""Manipulations of all images of a data set before training and measurement.

A manipulation is named by a text: `none`, `flip` (reverses both frequency axes), or a *band*, the subspace that images
are restricted to:

    low_pass:B                the frequencies [0, B) x [0, B)
    high_pass:B               the last B x B frequencies
    cutoff_low:B              all but [0, B) x [0, B)
    window:ROW:COLUMN:SIZE    a window of the DCT
    outside:ROW:COLUMN:SIZE   all but that window
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import data, frequency, subspaces

_NUM_NUMBERS = {"low_pass": 1, "high_pass": 1, "cutoff_low": 1, "window": 3, "outside": 3}
_SYNTAX = "none, flip, low_pass:B, high_pass:B, cutoff_low:B, window:ROW:COLUMN:SIZE, outside:ROW:COLUMN:SIZE"
_CHUNK = 2000  # images transformed at a time, to bound memory


def check(name: str) -> None:
    """Raises ValueError unless the name is that of a manipulation."""
    if name not in ("none", "flip"):
        _parse(name)


def band(name: str, image_shape: tuple[int, int, int]) -> subspaces.Subspace:
    """The subspace of images of a shape that a band's name stands for.

    Raises:
      ValueError: if the name is that of no band, or the band does not fit the images.
    """
    kind, numbers = _parse(name)
    if kind in ("window", "outside"):
        row, column, size = numbers
    else:
        (size,) = numbers
        height, width, _ = image_shape
        row, column = (height - size, width - size) if kind == "high_pass" else (0, 0)
    window = subspaces.dct_window(image_shape, row, column, size)
    return subspaces.orthogonal_complement(window) if kind in ("cutoff_low", "outside") else window


def apply(name: str, images: np.ndarray) -> np.ndarray:
    """Images (N, height, width, channels), uint8 or in [0, 1], manipulated: in floating point, but for "none"."""
    if name == "none":
        return images
    if name == "flip":
        return _in_chunks(frequency.flip, images)
    subspace = band(name, images.shape[1:])
    return _in_chunks(jax.vmap(lambda image: subspace.embed(subspace.coordinates(image))), images)


def manipulate(name: str, dataset: data.Dataset) -> tuple[data.Dataset, np.ndarray, np.ndarray]:
    """A data set with all its images manipulated, and what to subtract from them and to divide them by.

    Flipped images: the flip of the constant image of the original means, and the original standard deviations. All
    others: the mean and the standard deviation of each channel after the manipulation.
    """
    manipulated = dataclasses.replace(
        dataset, train_images=apply(name, dataset.train_images), test_images=apply(name, dataset.test_images)
    )
    images = dataset.train_images if name == "flip" else manipulated.train_images
    scale = 255 if images.dtype == np.uint8 else 1
    mean, std = (function(axis=(0, 1, 2), dtype=np.float64) / scale for function in (images.mean, images.std))
    if name == "flip":
        mean = np.asarray(frequency.flip(jnp.broadcast_to(mean, dataset.image_shape)))
    return manipulated, mean, std


def _in_chunks(manipulate, images):
    compiled = jax.jit(manipulate)
    return np.concatenate(
        [compiled(data.as_floats(images[first : first + _CHUNK])) for first in range(0, len(images), _CHUNK)]
    )


def _parse(name: str) -> tuple[str, list[int]]:
    kind, *numbers = name.split(":")
    if len(numbers) != _NUM_NUMBERS.get(kind) or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"unknown manipulation {name!r}; the known ones are {_SYNTAX}, with whole numbers")
    return kind, [int(number) for number in numbers]
