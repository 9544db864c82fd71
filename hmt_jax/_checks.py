"""Checks of arguments: numbers, arrays, random keys, shapes and labels, as users pass them."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ImageShape = tuple[int, int, int]

_NUMBERS = (int, float, float | None)
_MOST_CHARACTERS = 200  # of a value in a message


def text_of(value: Any) -> str:
    """A value as text for a message: in one line, and cut if it is long, as arrays are.

    >>> text_of(np.zeros((2, 1)))
    'array([[0.], [0.]])'
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def as_numbers(settings: Any) -> None:
    """Converts the numeric fields of a frozen dataclass to Python numbers, so that equal settings hash alike.

    Raises:
      ValueError: for a value that is not a single number or is not known when compiling, and for a fractional count.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in _NUMBERS or (value is None and field.type == float | None):
            continue
        value = number(field.name, value)
        object.__setattr__(settings, field.name, integer(field.name, value) if field.type is int else value)


def number(argument: str, value: Any) -> int | float:
    """The Python number that a value, or a scalar array, holds.

    Raises:
      ValueError: for anything else, and for a traced value, which is not known when compiling.
    """
    if not isinstance(value, jax.core.Tracer | list | tuple | dict | set | str | None) and not np.ndim(value):
        item = np.asarray(value).item()
        if isinstance(item, int | float):
            return item
    raise ValueError(f"{argument} must be a single number, known when compiling, got {text_of(value)}")


def integer(argument: str, value: Any, at_least: int | None = None) -> int:
    """The value as a Python int.

    Raises:
      ValueError: for a value that is not a whole number, or is less than `at_least`.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} must be a whole number, got {text_of(value)}") from None
    if at_least is not None and whole < at_least:
        raise ValueError(f"{argument} must be at least {at_least}, got {whole}")
    return whole


def as_array(argument: str, values: Any) -> jax.Array | np.ndarray:
    """The values as an array that JAX accepts: JAX arrays are returned unchanged, anything else as a NumPy array.

    Arrays in another byte order, or wider than float64, are converted; other arrays are not copied.

    Raises:
      ValueError: for masked entries, rows of unequal length, and values that are not numbers.
    """
    if isinstance(values, jax.Array):
        return values
    if np.ma.is_masked(values):
        raise ValueError(
            f"{argument} has {np.ma.count_masked(values)} masked entries, which have no value: leave those samples "
            f"out, or set them with {argument}.filled(value)"
        )
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"{argument} must be one array of numbers: {error}") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(
            f"{argument} must be an array of numbers, got {array.dtype}: make it of items of one shape and type, "
            f"such as np.stack(list({argument}))"
        )
    if array.dtype == np.longdouble:
        return array.astype(np.float64, copy=False)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_key(key: Any) -> None:
    """Raises TypeError unless this is a random key, and ValueError if it is an array of keys."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    is_typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed and not (is_array and key.dtype == np.uint32 and key.ndim):
        seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
        raise TypeError(f"key must be a random key, got {text_of(key)}: make one with jax.random.key({seed})")
    if key.ndim != (0 if is_typed else 1):
        raise ValueError(f"key must be one random key, got an array of them, {key.shape}: choose one, such as key[0]")


def check_callback(argument: str, function: Any, arguments: str) -> None:
    """Raises TypeError unless the function is None or callable."""
    if function is not None and not callable(function):
        raise TypeError(f"{argument} must be a function of {arguments}, or None, got {text_of(function)}")


def check_floating(argument: str, images: Any) -> None:
    """Raises ValueError unless images are floating point."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{argument} must be floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")


def check_type(argument: str, images: Any) -> None:
    """Raises ValueError unless images are uint8 or floating point."""
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{argument} must be uint8, or floating point in [0, 1], got {images.dtype}; convert 8-bit images with "
            f"{argument}.astype(np.uint8), and 16-bit ones with {argument}.astype(np.float32) / 65535"
        )


def check_image(image: Any) -> None:
    """Raises ValueError unless this is one image, uint8 or floating point."""
    if image.ndim != 3:
        raise ValueError(
            f"image must have shape (height, width, channels), got {image.shape}; add the channel axis of a grey image "
            "with image[..., None], and pass batches to measure_margins"
        )
    check_type("image", image)


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """The shape (height, width, channels) as a tuple.

    Raises:
      ValueError: for any other shape.
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or any(length < 1 for length in shape):
        raise ValueError(f"image_shape must be (height, width, channels), all at least 1, got {shape}")
    return shape


def check_labels(argument: str, labels: Any) -> None:
    """Raises ValueError unless these are whole numbers (N,) from 0."""
    if labels.ndim != 1:
        remedy = "pass one whole number for each image"
        if labels.ndim == 2:
            is_column = labels.shape[1] == 1
            remedy = f"take {argument}[:, 0]" if is_column else f"convert one-hot labels with {argument}.argmax(-1)"
        raise ValueError(f"{argument} must have shape (N,), got {labels.shape}; {remedy}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{argument} must be whole numbers from 0, got {labels.dtype}; convert them with {argument}.astype(int)"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{argument} must be whole numbers from 0, but the lowest one is {labels.min()}")
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        raise ValueError(f"{argument} must be whole numbers in int32, but the greatest one is {labels.max()}")


def check_are_classes(labels: Any, num_classes: int) -> None:
    """Raises ValueError if a label is not below the number of classes."""
    if (greatest := labels.max()) >= num_classes:
        raise ValueError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, since the classifier has {num_classes} logits, "
            f"but the greatest one is {greatest}: number the classes from 0, with labels - 1 if they count from 1"
        )
