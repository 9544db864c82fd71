"""Numbers, arrays and random keys, as users pass them."""

import dataclasses
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_NUMBERS = (int, float, float | None)


def as_numbers(settings) -> None:
    """Makes numbers of the fields of a frozen dataclass that are to be some: equal ones are hashed alike.

    Raises:
      ValueError: for what is no single number, known when compiling, or a count that is not whole.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in _NUMBERS or (value is None and field.type == float | None):
            continue
        value = number(field.name, value)
        object.__setattr__(settings, field.name, whole_number(field.name, value) if field.type is int else value)


def number(argument: str, value) -> int | float:
    """The Python number that a value, or a scalar array, holds.

    Raises:
      ValueError: for anything else, and for a traced value, which is not known when compiling.
    """
    if not isinstance(value, jax.core.Tracer | list | tuple | dict | set | str | None) and not np.ndim(value):
        item = np.asarray(value).item()
        if isinstance(item, int | float):
            return item
    raise ValueError(f"{argument} must be a single number, known when compiling, got {value!r}")


def as_array(argument: str, values: ArrayLike | Sequence[float]) -> jax.Array | np.ndarray:
    """The values as an array that JAX can take: a JAX array as it is, anything else as a NumPy array.

    Numbers in another byte order, and those wider than float64, are converted; other arrays are not copied.

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


def check_key(key) -> None:
    """Raises TypeError if this is no random key, and ValueError if it is an array of several."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    is_typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed and not (is_array and key.dtype == np.uint32 and key.ndim):
        seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
        raise TypeError(f"key must be a random key, got {key!r}: make one with jax.random.key({seed})")
    if key.ndim != (0 if is_typed else 1):
        raise ValueError(f"key must be one random key, got an array of them, {key.shape}: choose one, such as key[0]")


def promoted(first, second) -> np.dtype:
    """The dtype that holds both, even if `jax_numpy_dtype_promotion` is strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def whole_number(argument: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} must be a whole number, got {value!r}") from None
