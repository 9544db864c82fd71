"""Compiled programs. All calls share them, but those of plain functions end with the call that made them.

JAX keeps every program that it has compiled, and what the program closes over. A plain function is a new one in every
call, because what it closes over may have changed, so that its programs are of no use to later calls.
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
    """A function as a pytree without leaves that JAX takes for another one than all before.

    JAX keeps the structures of all trees that it has met: those of this one refer to it weakly.
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
    """`jax.jit`, with programs that end with the call within `of_call`."""

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
            # A function of its own: JAX keeps programs by the function that they are of.
            own = functools.wraps(self._function)(lambda *arguments: self._function(*arguments))
            programs[self] = jax.jit(own, **self._options)
        return programs[self]


@contextlib.contextmanager
def of_call(*arguments: Any) -> Iterator[None]:
    """Within it, functions of `jit` share no programs if any of the arguments is a `NewFunction`."""
    programs: dict[jit, Any] | None = {} if any(isinstance(each, NewFunction) for each in arguments) else None
    token = _OF_THIS_CALL.set(programs)
    try:
        yield
    finally:
        _OF_THIS_CALL.reset(token)
        for compiled in (programs or {}).values():
            compiled.clear_cache()
