"""Compiled programs: shared by all calls, except those of plain functions, which are dropped when their call ends.

JAX keeps every program that it has compiled, and what the program closes over. A plain function counts as new in every
call, because what it closes over may have changed, so later calls can't use its programs.
"""

import contextlib
import contextvars
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax

from hmt_jax import _paths

_OF_THIS_CALL: contextvars.ContextVar[dict | None] = contextvars.ContextVar("_OF_THIS_CALL", default=None)


@jax.tree_util.register_pytree_node_class
class NewFunction:
    """A function as a pytree without leaves, which JAX takes for a new one each time it is wrapped.

    JAX keeps the structure of every tree that it has met; this one's structure holds only a weak reference.
    """

    def __init__(self, function: Callable):
        self.__wrapped__ = function  # its signature is that of the function

    def __call__(self, *arguments: Any) -> Any:
        return self.__wrapped__(*arguments)

    def tree_flatten(self) -> tuple[tuple, Any]:
        """No children, and a weak reference as the structure."""
        return (), weakref.ref(self)

    @staticmethod
    def tree_unflatten(reference: Any, leaves: Any) -> Any:
        """The function that the structure refers to."""
        return reference()


class jit:  # noqa: N801 - used as `jax.jit` is
    """`jax.jit`, whose programs are dropped at the end of an `of_call` that has a `NewFunction` among its arguments."""

    def __init__(self, function: Callable, **options: Any):
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._shared = jax.jit(function, **options)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled()(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """The shapes and types of the results, as `jax.eval_shape` returns them."""
        return self._compiled().eval_shape(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        return self._compiled().lower(*arguments)

    def _compiled(self):
        programs = _OF_THIS_CALL.get()
        if programs is None:
            return self._shared
        if self not in programs:
            # A new function object, because JAX keeps programs by the function that they were compiled from.
            own = functools.wraps(self._function)(lambda *arguments: self._function(*arguments))
            programs[self] = jax.jit(own, **self._options)
        return programs[self]


class Programs:
    """The programs of one call: its own, dropped at the end, if an argument is a `NewFunction`; the shared ones if not.

    A call that returns in between, as a generator does, uses them whenever it goes on.
    """

    def __init__(self, *arguments: Any):
        self._own: dict[jit, Any] | None = {} if any(isinstance(each, NewFunction) for each in arguments) else None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which functions of `jit` use these programs."""
        token = _OF_THIS_CALL.set(self._own)
        try:
            yield
        finally:
            _OF_THIS_CALL.reset(token)

    def drop(self) -> None:
        """Drops the call's own programs."""
        for compiled in (self._own or {}).values():
            compiled.clear_cache()


@contextlib.contextmanager
def of_call(*arguments: Any) -> Iterator[None]:
    """A context in which functions of `jit` share no programs with other calls if an argument is a `NewFunction`."""
    programs = Programs(*arguments)
    try:
        with programs.in_use():
            yield
    finally:
        programs.drop()


def cache_programs(folder: str | os.PathLike[str] | None = None) -> None:
    """Keeps compiled programs on the disk, so that later processes load them and do not compile them again.

    Call it before the first computation. This turns JAX's persistent compilation cache on, for programs of any size
    and compilation time; a folder that JAX has been configured with before stays.

    Args:
      folder: where programs are kept; if not given, `hmt_jax/xla` in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`.
        By default, nothing is kept for a user without a home directory.

    Raises:
      ValueError: if the folder is no path.
    """
    is_default = folder is None
    if is_default and jax.config.values["jax_compilation_cache_dir"] is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "hmt_jax", "xla")
    if folder is not None:
        try:
            path = _paths.expand("folder", folder)
        except ValueError:
            if is_default:  # a user without a home directory
                return
            raise
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
