"""What is done to all images of a data set before training and measurement."""

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import data, frequency

_MANIPULATIONS = {"none": lambda images: images, "flip": frequency.flip}
_CHUNK = 2000  # images transformed at a time, to bound memory


def names() -> tuple[str, ...]:
    """The manipulations there are."""
    return tuple(_MANIPULATIONS)


def apply(name: str, images: np.ndarray) -> np.ndarray:
    """Images (N, height, width, channels), uint8 or in [0, 1], manipulated: in floating point, but for "none"."""
    if name == "none":
        return images
    manipulate = jax.jit(_MANIPULATIONS[name])
    return np.concatenate(
        [manipulate(data.as_floats(images[first : first + _CHUNK])) for first in range(0, len(images), _CHUNK)]
    )


def normalization(name: str, train_images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract from manipulated images, and to divide by: statistics of the original training images.

    The mean and the standard deviation of each channel. The mean of flipped images is the flip of the constant image
    with those means.
    """
    scale = 255 if train_images.dtype == np.uint8 else 1
    mean = train_images.mean(axis=(0, 1, 2), dtype=np.float64) / scale
    std = train_images.std(axis=(0, 1, 2), dtype=np.float64) / scale
    if name == "flip":
        mean = np.asarray(frequency.flip(jnp.broadcast_to(mean, train_images.shape[1:])))
    return mean, std
