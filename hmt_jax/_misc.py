"""Small helpers that belong to no other module."""

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def promoted(first: Any, second: Any) -> np.dtype:
    """The dtype that holds values of both arguments, even if `jax_numpy_dtype_promotion` is strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def take(tree: Any, index: Any) -> Any:
    """The tree with the entries at `index` along the first axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns, and points at the line of user code that called this library."""
    package = __name__.partition(".")[0]
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
