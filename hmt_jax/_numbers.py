"""Checks of the numbers that users give."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np

_NUMBERS = (int, float, float | None)


def as_numbers(settings) -> None:
    """Makes numbers of the fields of a frozen dataclass that are to be some: equal ones are hashed alike.

    Raises:
      ValueError: for what is no single number, known when compiling, or a count that is not whole.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in _NUMBERS or value is None:
            continue
        if isinstance(value, jax.core.Tracer) or np.ndim(value):
            raise ValueError(f"{field.name} must be a single number, known when compiling, got {value}")
        value = np.asarray(value).item()
        object.__setattr__(settings, field.name, whole_number(field.name, value) if field.type is int else value)


def promoted(first, second) -> np.dtype:
    """The dtype that holds both, also where `jax_numpy_dtype_promotion` refuses what is not asked for."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def whole_number(argument: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} must be a whole number, got {value!r}") from None
