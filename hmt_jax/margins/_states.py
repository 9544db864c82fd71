"""The states of solvers, with random keys as numbers, and checks of the values that solvers return."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax._checks import text_of
from hmt_jax.solvers import Point, Solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Key:
    """A random key as an array of numbers, because NumPy arrays can't hold keys."""

    data: jax.Array
    kind: str = dataclasses.field(metadata={"static": True})


def with_numbers(state: Any) -> Any:
    """A solver's state with arrays of numbers in place of random keys."""

    def numbers(leaf):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _Key(jax.random.key_data(leaf), str(jax.random.key_impl(leaf)))
        return jnp.asarray(leaf)

    return jax.tree.map(numbers, state)


def with_keys(state: Any) -> Any:
    """A solver's state with its random keys: the inverse of `with_numbers`."""
    return jax.tree.map(
        lambda leaf: jax.random.wrap_key_data(leaf.data, impl=leaf.kind) if isinstance(leaf, _Key) else leaf,
        state,
        is_leaf=lambda leaf: isinstance(leaf, _Key),
    )


def done(solver: Solver, state: Any) -> jax.Array:
    """Whether a solver is done with a state, a single bool."""
    is_done = jnp.asarray(solver.done(with_keys(state)))
    if is_done.shape or is_done.dtype != bool:
        raise TypeError(
            f"done of {type(solver).__name__} must return a single bool, got {is_done.dtype}{list(is_done.shape)}"
        )
    return is_done


def point(solver: Solver, state: Any) -> Point:
    """A solver's point in a state: z (d,) in floating point and an int32 label."""
    name, found = type(solver).__name__, solver.point(with_keys(state))
    if not isinstance(found, Point):
        raise TypeError(f"point of {name} must return a hmt_jax.solvers.Point, got {type(found).__name__}")
    z, label = map(jnp.asarray, found)
    if z.ndim != 1 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"point of {name} must have coordinates (d,) as z, got {z.dtype}{list(z.shape)}")
    if label.shape or not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(
            f"point of {name} must have a single whole number as label, got {label.dtype}{list(label.shape)}"
        )
    return Point(z, label.astype(jnp.int32))


def check_same_types(solver: Solver, before: Any, after: Any) -> None:
    """Raises TypeError unless a step keeps the structure, shapes and dtypes of the state."""
    name = type(solver).__name__
    structures = [str(jax.tree.structure(state)) for state in (before, after)]
    if structures[0] != structures[1]:
        raise TypeError(
            f"step of {name} must return a state of the structure that start returns, {structures[0]}, got "
            f"{structures[1]}"
        )
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        types = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(jnp.asarray, (old, new))]
        if types[0] != types[1]:
            raise TypeError(
                f"step of {name} must keep the shapes and dtypes of its state, but state{jax.tree_util.keystr(path)} "
                f"is {types[0]} after start and {types[1]} after step: make it the same in both"
            )


def check_solver(solver: Any) -> None:
    """Raises TypeError unless this has the attributes of a solver."""
    names = ("num_candidates", "max_steps", "start", "step", "done", "point")
    missing = [name for name in names if not hasattr(solver, name)]
    if isinstance(solver, type) or len(missing) == len(names):
        raise TypeError(
            "solver must be a solver such as hmt_jax.solvers.tight('fast'), with its parentheses, got "
            f"{text_of(solver)}"
        )
    if missing:
        raise TypeError(
            f"solver {type(solver).__name__} has no {', '.join(missing)}: a solver has {', '.join(names)}, as "
            "hmt_jax.solvers describes"
        )
    try:
        hash(solver)
    except TypeError as error:
        raise TypeError(
            f"solver {type(solver).__name__} must be hashable: decorate its class with "
            "dataclasses.dataclass(frozen=True), and hold no lists or arrays in it"
        ) from error
    for name in ("num_candidates", "max_steps"):
        value = getattr(solver, name)
        if not isinstance(value, int | np.integer) or not 1 <= value <= np.iinfo(np.int32).max:
            raise TypeError(
                f"{name} of solver {type(solver).__name__} must be a whole number from 1 on, in int32, got "
                f"{text_of(value)}"
            )
