"""Compiled programs: shared by all calls, except those of plain functions, which are dropped when their call ends.

JAX keeps every program that it has compiled, and what the program closes over. A plain function counts as new in every
call, because what it closes over may have changed, so later calls can't use its programs.
"""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax

_OF_THIS_CALL: contextvars.ContextVar[dict | None] = contextvars.ContextVar("_OF_THIS_CALL", default=None)


@jax.tree_util.register_pytree_node_class
class NewFunction:
    """A function as a pytree without leaves, which JAX takes for a new one each time it is wrapped.

    JAX keeps the structure of every tree that it has met; this one's structure holds only a weak reference.
    """

    def __init__(self, function: Callable):
        self.__wrapped__ = function  # its signature is that of the function

    def __call__(self, *arguments):
        return self.__wrapped__(*arguments)

    def tree_flatten(self):
        return (), weakref.ref(self)

    @staticmethod
    def tree_unflatten(reference, leaves):
        return reference()


class jit:  # noqa: N801 - used as `jax.jit` is
    """`jax.jit`, with programs that are dropped at the end of an `of_call` that was given a `NewFunction`."""

    def __init__(self, function: Callable, **options: Any):
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._shared = jax.jit(function, **options)

    def __call__(self, *arguments) -> Any:
        return self._compiled()(*arguments)

    def eval_shape(self, *arguments) -> Any:
        return self._compiled().eval_shape(*arguments)

    def _compiled(self):
        programs = _OF_THIS_CALL.get()
        if programs is None:
            return self._shared
        if self not in programs:
            # A new function object, because JAX keeps programs by the function that they were compiled from.
            own = functools.wraps(self._function)(lambda *arguments: self._function(*arguments))
            programs[self] = jax.jit(own, **self._options)
        return programs[self]


@contextlib.contextmanager
def of_call(*arguments: Any) -> Iterator[None]:
    """A context in which functions of `jit` share no programs with other calls if an argument is a `NewFunction`."""
    programs: dict[jit, Any] | None = {} if any(isinstance(each, NewFunction) for each in arguments) else None
    token = _OF_THIS_CALL.set(programs)
    try:
        yield
    finally:
        _OF_THIS_CALL.reset(token)
        for compiled in (programs or {}).values():
            compiled.clear_cache()
