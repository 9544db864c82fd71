"""Small helpers that belong to no other module."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
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


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], there: str = "there", here: str = "here") -> str:
    """The names whose values differ, with both values, as text; an empty text if there are none.

    >>> differences({"seed": 0, "side": 8}, {"seed": 7, "side": 8})
    'seed is 0 there, 7 here'
    """
    one, other = ({name: repr(value) for name, value in values.items()} for values in (found, expected))
    return "; ".join(
        f"{name} is {one.get(name, 'missing')} {there}, {other.get(name, 'missing')} {here}"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    )


@contextlib.contextmanager
def repeated(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls a function every so many seconds, in a thread, until the block ends."""
    ended = threading.Event()

    def repeat():
        while not ended.wait(seconds):
            function()

    thread = threading.Thread(target=repeat, name="hmt_jax-repeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns, and points at the line of user code that called this library."""
    package = __name__.partition(".")[0]
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
