"""Euclidean projections onto convex sets and onto their intersections.

Every projection maps one point, an array of any shape, to the nearest point of a set, in the L2 norm over all entries
of the array. All functions are pure and take a single point: map them over samples with `jax.vmap`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hmt_jax._checks import as_array
from hmt_jax._misc import promoted
from hmt_jax.frequency import flip
from hmt_jax.subspaces import Subspace

__all__ = [
    "Projection",
    "affine",
    "box",
    "dykstra",
    "flipped_box",
    "l2_ball",
    "linf_ball",
    "multiple_to_half_space",
    "multiple_to_sphere",
]

# Entries of a normal below this share of the greatest one are ignored, because they may be its rounding errors.
_NEGLIGIBLE = 1e-6

#: A function from a point to the nearest point of a set.
Projection = Callable[[jax.Array], jax.Array]


def l2_ball(point: jax.Array, center: jax.Array, radius: ArrayLike) -> jax.Array:
    """The nearest point with L2 distance at most `radius` from the centre.

    >>> l2_ball(jnp.array([6.0, 8.0]), jnp.zeros(2), 5.0).tolist()
    [3.0, 4.0]
    """
    offset = point - center
    # In float16 that of an image may be infinite.
    squared_distance = jnp.sum(offset**2, dtype=promoted(offset.dtype, jnp.float32))
    is_outside = squared_distance > jnp.square(radius)
    # The distance of a point inside is not needed, and its gradient at the centre would be NaN.
    distance = jnp.sqrt(jnp.where(is_outside, squared_distance, 1))
    shortened = center + offset * (radius / distance).astype(jnp.result_type(offset, 1.0))
    return jnp.where(is_outside, shortened, point)


def linf_ball(point: jax.Array, center: jax.Array, radius: ArrayLike) -> jax.Array:
    """The nearest point whose entries differ from those of the centre by at most `radius`.

    >>> linf_ball(jnp.array([3.0, 0.5]), jnp.zeros(2), 1.0).tolist()
    [1.0, 0.5]
    """
    return jnp.clip(point, center - radius, center + radius)


def box(point: jax.Array, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> jax.Array:
    """The nearest point with entries in [low, high].

    >>> box(jnp.array([-0.5, 0.25, 1.5])).tolist()
    [0.0, 0.25, 1.0]
    """
    return jnp.clip(point, low, high)


def flipped_box(point: jax.Array) -> jax.Array:
    """The nearest image whose flip, as `hmt_jax.frequency.flip` returns it, has pixels in [0, 1].

    The image is flipped, clipped and flipped back.

    Args:
      point: (height, width, channels), or such images with leading axes.

    >>> image = flip(jnp.array([[0.0, 1.0], [1.0, 0.5]])[..., None])
    >>> bool(jnp.allclose(flipped_box(image), image, atol=1e-6))  # it is one already
    True
    """
    pixels = flip(point)
    # Only the clipped part is flipped back, so that images inside the set stay the same to the last bit.
    return point + flip(box(pixels) - pixels)


def affine(point: jax.Array, center: jax.Array, subspace: Subspace) -> jax.Array:
    """The nearest image of the form center + v with v in a subspace of `hmt_jax.subspaces`.

    >>> from hmt_jax import subspaces
    >>> pixel = subspaces.from_basis(jnp.eye(2, 1), (1, 2, 1))
    >>> affine(jnp.array([3.0, 4.0]).reshape(1, 2, 1), jnp.ones((1, 2, 1)), pixel).ravel().tolist()
    [3.0, 1.0]
    """
    return center + subspace.embed(subspace.coordinates(point - center))


def multiple_to_half_space(
    point: jax.Array, normal: jax.Array, gap: ArrayLike, low: ArrayLike = 0.0, high: ArrayLike = 1.0
) -> jax.Array:
    """The least t >= 0 for which x = box(point + t normal) satisfies normal . (x - point) >= gap.

    This x is the point nearest to `point` that lies both in the box and in that half-space. If the two do not
    intersect, x is the point of the box that is farthest along the normal.

    Args:
      point: a point of the box.
      normal: normal vector of the half-space, of any length; entries below 1e-6 times the greatest one are ignored.
      gap: distance from the point to the half-space, times the length of the normal.
      low: lower bound of the box; may be infinite.
      high: upper bound of the box; may be infinite.

    >>> point, normal = jnp.array([0.5, 0.9]), jnp.array([3.0, 4.0])
    >>> t = multiple_to_half_space(point, normal, 1.0)  # (0.12, 0.16) without the box
    >>> [round(entry, 4) for entry in box(point + t * normal).tolist()]
    [0.7, 1.0]
    """
    size, room, farthest = _sizes_and_room(point, normal, low, high)

    def next_multiple(t):
        is_free = t * size < room
        reached = _sum(jnp.where(is_free, 0, size * room))
        slope = _sum(jnp.where(is_free, size**2, 0))
        return jnp.where(slope > 0, jnp.minimum((gap - reached) / jnp.where(slope > 0, slope, 1), farthest), t)

    return _grow(next_multiple, farthest)


def multiple_to_sphere(
    point: jax.Array, direction: jax.Array, radius: ArrayLike, low: ArrayLike = 0.0, high: ArrayLike = 1.0
) -> jax.Array:
    """The t >= 0 for which box(point + t direction) has L2 distance `radius` from the point.

    If no such t exists, because the box is too small, t is so large that every entry that moves is at its bound.

    Args:
      point: a point of the box.
      direction: of any length; entries below 1e-6 times the greatest one are ignored.
      radius: the distance.
      low: lower bound of the box; may be infinite.
      high: upper bound of the box; may be infinite.

    >>> point, direction = jnp.array([0.5, 0.9]), jnp.array([3.0, 4.0])
    >>> t = multiple_to_sphere(point, direction, 0.5)
    >>> f"{jnp.linalg.norm(box(point + t * direction) - point):.4f}"
    '0.5000'
    """
    size, room, farthest = _sizes_and_room(point, direction, low, high)

    def next_multiple(t):
        is_free = t * size < room
        square = _sum(jnp.where(is_free, size**2, 0))
        rest = jnp.maximum(jnp.square(radius) - _sum(jnp.where(is_free, 0, room**2)), 0)
        return jnp.where(square > 0, jnp.minimum(jnp.sqrt(rest / jnp.where(square > 0, square, 1)), farthest), t)

    return _grow(next_multiple, farthest)


def _sizes_and_room(point, direction, low, high):
    """The sizes of the direction's entries, the room in the box along each, and the multiple that uses up all room."""
    size = jnp.abs(direction)
    size = jnp.where(size > _NEGLIGIBLE * jnp.max(size), size, 0)
    room = jnp.maximum(jnp.where(direction > 0, high - point, point - low), 0)
    return size, room, jnp.max(jnp.where(size > 0, room / jnp.where(size > 0, size, 1), 0))


def _sum(entries):
    """The sum of entries, computed in float32 at least."""
    return jnp.sum(entries, dtype=promoted(entries.dtype, jnp.float32)).astype(entries.dtype)


def _grow(next_multiple, like):
    """The fixed point that t reaches from 0 under `next_multiple`.

    Each t is exact if the entries that were free at the previous t still are. If more entries reach their bounds, t is
    too small, so it grows until no further entry does.
    """
    start = jnp.full_like(like, -1), jnp.zeros_like(like)
    return jax.lax.while_loop(lambda two: two[1] > two[0], lambda two: (two[1], next_multiple(two[1])), start)[1]


def dykstra(point: jax.Array, projections: Sequence[Projection], num_steps: int) -> jax.Array:
    """An approximation of the nearest point of the intersection of convex sets, by Dykstra's algorithm.

    In each step the sets take turns. With P_i the projection onto a set and p_i a correction that starts at zero, a
    turn is

      y = P_i(x + p_i),    p_i <- x + p_i - y,    x <- y.

    Without the corrections, these would be plain alternating projections, and x would converge to some point of the
    intersection; with them it converges to the nearest one. After a finite number of steps it lies in the last set, and
    near the others.

    Args:
      point: the point to project.
      projections: functions from point to point, one for each set. The sets must be closed and convex, with a common
        point.
      num_steps: number of turns of each set.

    Raises:
      ValueError: if there are no projections, or no steps.

    References:
      Boyle and Dykstra, "A method for finding projections onto the intersection of convex sets in Hilbert spaces",
      Advances in Order Restricted Statistical Inference, 1986.

    >>> lower = lambda x: jnp.minimum(x, jnp.array([jnp.inf, 0.0]))  # x_1 <= 0
    >>> diagonal = lambda x: x - jnp.maximum(x.sum(), 0) / 2  # x_0 + x_1 <= 0
    >>> nearest = dykstra(jnp.array([1.0, 0.5]), [lower, diagonal], num_steps=30)
    >>> [round(entry, 4) for entry in nearest.tolist()]
    [0.25, -0.25]
    """
    if not projections:
        raise ValueError("projections is empty: pass at least one function from point to point")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    def step(carry, _):
        x, corrections = carry
        next_corrections = []
        for project, correction in zip(projections, corrections, strict=True):
            shifted = x + correction
            x = project(shifted)
            next_corrections.append(shifted - x)
        return (x, next_corrections), None

    point = jnp.asarray(as_array("point", point))
    point = point.astype(jnp.result_type(point, 1.0))  # projections of whole numbers are seldom whole
    carry = (point, [jnp.zeros_like(point) for _ in projections])
    return jax.lax.scan(step, carry, length=num_steps)[0][0]
