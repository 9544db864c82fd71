"""A search that evaluates one point in each step and keeps the nearest adversarial point, the base of most solvers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers._base import (
    Linearization,
    Point,
    Restriction,
    check_settings,
    distances_of,
    divided,
    label_of,
    lengths_of,
    norms_of,
)

_COLDEST = 1e-6  # a temperature at which only the runner-up counts
_SAME_GAP = 0.99  # a class has not moved if its gap to the label is still at least this share of the first gap


class Search(NamedTuple):
    """The state of a search. The next point to be evaluated is `z`."""

    z: jax.Array  # (d,)
    label: jax.Array
    gap: jax.Array  # at z = 0, between the label and the first candidate that can gain on it
    unmoved: jax.Array  # (L,) gaps at z = 0 of candidates that can't gain on the label; infinite for other classes
    best_z: jax.Array  # (d,) the nearest adversarial point; the last point evaluated if there is none yet
    best_norm: jax.Array  # infinite if there is none yet
    best_label: jax.Array  # if there is none yet: the label, or -1 if the last logits named none
    num_found: jax.Array  # points evaluated since the first adversarial point, including it
    num_looks: jax.Array  # points evaluated
    memory: Any  # whatever else the solver remembers


class Look(NamedTuple):
    """The evaluation of one point."""

    norm: jax.Array
    along: jax.Array  # (d,) z / ||z||
    logits: jax.Array
    is_adversarial: jax.Array
    pull_back: Callable


class Boundary(NamedTuple):
    """The linearised boundary, { z' : normal . z' = offset }, seen from a point."""

    normal: jax.Array  # (d,) unit vector from the label's side to the other side
    depth: jax.Array  # how far the point is behind the boundary; negative before it
    offset: jax.Array
    steepness: jax.Array  # of the gap in logits along the normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searcher:
    """Base class of the solvers whose state is a `Search`."""

    def __post_init__(self) -> None:
        check_settings(self)

    def point(self, search: Search) -> Point:
        return Point(search.best_z, search.best_label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InSteps(Searcher):
    """Base class of the solvers that take `num_steps` steps, or more until they find an adversarial point."""

    num_steps: int
    max_steps: int
    num_candidates: int = 10

    def done(self, search: Search) -> jax.Array:
        return is_found(search) & (search.num_looks >= self.num_steps)


def begin(at_sample: Linearization, *, nearest_first: bool = True) -> tuple[Search, jax.Array, jax.Array]:
    """A search that starts at the linearised boundary of the nearest candidate, or of the likeliest.

    Returns:
      The search, without a memory; the distance to that boundary, or 0 if no class can gain on the label; and the unit
      directions (C - 1, d) to the boundaries of all candidates, the nearest or the likeliest first. For candidates that
      can't gain on the label, the first direction is repeated.
    """
    label, others = at_sample.candidates[0], at_sample.candidates[1:]
    dtype, lengths = at_sample.normals.dtype, lengths_of(at_sample.normals)
    gaps = at_sample.logits[label].astype(lengths.dtype) - at_sample.logits[others].astype(lengths.dtype)
    # The distance of a sample on the boundary is 0, and sets no scale. It is therefore at least the rounding error of
    # the two logits or, if both are 0, of the logits one pixel away. Other logits do not count, because one of -1e9 may
    # rule a class out.
    sizes = jnp.abs(at_sample.logits)
    greatest = jnp.maximum(jnp.maximum(sizes[label], sizes[others]).astype(lengths.dtype), lengths)
    hidden = 8 * float(jnp.finfo(dtype).eps) * greatest
    distances = distances_of((at_sample.logits[label], at_sample.logits[others]), lengths)
    distances = jnp.maximum(distances, hidden / jnp.where(lengths > 0, lengths, 1)).astype(dtype)
    can_gain = jnp.isfinite(distances)
    likeliest = jnp.argmax(can_gain)
    order = jnp.argsort(distances if nearest_first else ~can_gain)
    distances, directions = distances[order], divided(at_sample.normals, lengths)[order]
    is_way = jnp.isfinite(distances)
    distance = jnp.where(is_way[0], distances[0], 0)

    zero, origin = jnp.zeros((), jnp.int32), jnp.zeros_like(at_sample.normals[0])
    nowhere = jnp.full(at_sample.logits.shape, jnp.inf, dtype)
    search = Search(
        z=distance * directions[0],
        label=label,
        gap=jnp.minimum(jnp.maximum(gaps, hidden)[likeliest], float(jnp.finfo(dtype).max)).astype(dtype),
        unmoved=nowhere.at[others].set(jnp.where(can_gain, jnp.inf, gaps).astype(dtype)),
        best_z=origin,
        best_norm=jnp.full((), jnp.inf, dtype),
        best_label=label,
        num_found=zero,
        num_looks=zero,
        memory=(),
    )
    return search, distance, jnp.where(is_way[:, None], directions, directions[0])


def look(restriction: Restriction, search: Search) -> tuple[Search, Look]:
    """The search after its point has been evaluated, with the nearest adversarial point so far, and the evaluation."""
    logits, pull_back = jax.vjp(restriction, search.z)
    norm, label = norms_of(search.z), label_of(logits)
    is_adversarial = (label >= 0) & (label != search.label)
    is_better = is_adversarial & (norm < search.best_norm)
    best_norm = jnp.where(is_better, norm, search.best_norm)
    search = search._replace(
        best_z=jnp.where(is_better | ~jnp.isfinite(best_norm), search.z, search.best_z),
        best_norm=best_norm,
        best_label=jnp.where(is_better | ~jnp.isfinite(best_norm), label, search.best_label),
        num_found=search.num_found + jnp.isfinite(best_norm).astype(jnp.int32),
        num_looks=search.num_looks + 1,
    )
    return search, Look(norm, unit(search.z), logits, is_adversarial, pull_back)


def boundary(search: Search, seen: Look, temperature: float | jax.Array) -> Boundary:
    """The linearised boundary between the label and the other classes, weighted by a softmax of this temperature.

    The temperature is in units of the gap at the sample. At 0, only the runner-up counts. If it is 1 in units of the
    logits, the normal is the direction in which the cross-entropy grows. Classes that could not gain on the label at
    the sample, and have not gained since, count only if there are no other classes.
    """
    is_other = jnp.arange(seen.logits.size, dtype=search.label.dtype) != search.label
    gaps = (seen.logits[search.label] - seen.logits).astype(search.unmoved.dtype)
    has_moved = gaps < _SAME_GAP * search.unmoved
    is_rival = is_other & (has_moved | ~(is_other & has_moved).any())
    # Finite even if all classes are ruled out, because infinity minus infinity is NaN.
    lowest = jnp.asarray(jnp.finfo(seen.logits.dtype).min, seen.logits.dtype)
    others = jnp.where(is_rival, jnp.maximum(seen.logits, lowest), -jnp.inf)
    runner_up = jnp.max(others)
    scale = jnp.maximum(temperature, _COLDEST) * search.gap
    # In half precision the product may be 0.
    smoothed = jax.nn.softmax((others - runner_up) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny))
    cotangent = smoothed - jax.nn.one_hot(search.label, others.size, dtype=smoothed.dtype)
    gradient = seen.pull_back(cotangent.astype(seen.logits.dtype))[0]
    length = lengths_of(gradient)
    normal = divided(gradient, length)
    distance = distances_of((seen.logits[search.label], runner_up), jnp.where(length > 0, length, 1))
    depth = -distance.astype(normal.dtype)
    return Boundary(normal, depth, normal @ search.z - depth, length.astype(normal.dtype))


def cosine(low: float, high: float | jax.Array, fraction: jax.Array) -> jax.Array:
    """A value that falls from `high` to `low` by half a cosine, as the fraction goes from 0 to 1."""
    return low + (high - low) * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0, 1))) / 2


def unit(vector: jax.Array) -> jax.Array:
    return divided(vector, lengths_of(vector))


def is_found(search: Search) -> jax.Array:
    """Whether there is an adversarial point."""
    return jnp.isfinite(search.best_norm)
