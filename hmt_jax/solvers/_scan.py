"""Margins in one and two dimensions, by a scan of all directions from near to far: no local minimum misleads it."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Point, Restriction, check_settings, has_label

# Default resolution and reach, in units of the sample's first-order distance.
_RESOLUTION, _REACH = 1 / 16, 64
_POINTS_IN_A_STEP = 32  # at least, so that matrix products are large enough
_LEAST_RINGS = 4
# The bracket of a margin is narrowed to this share of the margin, a few units in the last place of float32. The number
# of steps is limited, because two arcs that are equally near can't both be refined.
_ACCURACY, _MOST_REFINEMENTS = 1e-6, 24


class _State(NamedTuple):
    """The state of a scan."""

    resolution: jax.Array
    reach: jax.Array
    low: jax.Array  # up to this radius no direction evaluated has another label
    high: jax.Array  # the next step scans up to this radius; once an adversarial point is found, its radius
    arc: jax.Array  # (2,) the middle angle, and how far angles extend on either side of it
    z: jax.Array  # (d,) the nearest point with another label
    label: jax.Array
    adversarial_label: jax.Array  # -1 if logits at a nearer point named no label
    num_steps: jax.Array
    num_refinements: jax.Array
    is_found: jax.Array  # whether an adversarial point has been found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """Exact margins in subspaces of 1 and 2 dimensions, from labels on a fine grid of points, from near to far.

    In one dimension, the points are `resolution` apart on both sides of the sample. In two dimensions, they are
    `resolution` apart along rays in `num_angles` directions. The interval between the last radius without another label
    and the first radius with one is then refined, until the margin is known to one part in 10^6. In the plane, only the
    arc of directions with another label is refined.

    The margin is the distance to a point with another label, so it is never too small. It is too large only if a nearer
    region of another label is shorter than `resolution` on every ray, or lies between two rays. That can't happen if
    the boundary is flat, or is a corner of more than 360 / num_angles degrees as seen from the sample.

    If resolution and reach are not given, they are 1/16 and 64 times the sample's first-order distance, so that no
    scale is absolute. If then no class can gain on the label to first order, the status is ZERO_GRADIENT.

    In one dimension this takes about 2 (margin / resolution) forward passes, and in two dimensions `num_angles` / 2
    times as many. The only backward passes are in the linearisation at the sample.

    Attributes:
      reach: the greatest distance scanned, in pixels. If no other label is found up to there, the status is
        OUT_OF_STEPS.
      resolution: the distance of neighbouring points on a ray, in pixels.
      num_angles: number of rays in the plane.

    Raises:
      ValueError: for a resolution without a reach or the reverse, a resolution that is not positive or exceeds the
        reach, a reach that is not finite, or fewer than 3 angles; and, when run, for a subspace of more than 2
        dimensions.

    >>> import hmt_jax
    >>> disc = jax.tree_util.Partial(lambda r, x: jnp.stack([(x**2).sum((1, 2, 3)), r**2 + 0 * x[:, 0, 0, 0]], 1), 0.5)
    >>> images = jnp.array([[0.1, 0.2], [0.6, 0.8]]).reshape(2, 1, 2, 1)
    >>> result = hmt_jax.measure_margins(disc, images, hmt_jax.subspaces.full((1, 2, 1)), Scan(reach=2, resolution=0.1))
    >>> [round(margin, 4) for margin in result.margin[0].tolist()]  # 0.5 - ||x||, and ||x|| - 0.5
    [0.2764, 0.5]
    """

    reach: float | None = None
    resolution: float | None = None
    num_angles: int = 128

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.reach is None) != (self.resolution is None):
            raise ValueError(f"pass both resolution and reach, or neither, got {self.resolution} and {self.reach}")
        if self.reach is not None and self.resolution is not None and not 0 < self.resolution <= self.reach:
            raise ValueError(f"resolution must be positive and at most reach, got {self.resolution} and {self.reach}")
        if self.reach == math.inf:
            raise ValueError("reach must be finite: where the label never changes, the search would not end")
        if self.num_angles < 3:
            raise ValueError(f"num_angles must be at least 3, got {self.num_angles}")

    @property
    def num_candidates(self) -> int:
        """Ten, for the first-order distance; one if the reach is set, because no gradients are needed then."""
        return 10 if self.reach is None else 1

    @property
    def max_steps(self) -> int:
        """The steps to the end of the reach, with the fewest rings in each step, and all refinements."""
        resolutions = _REACH / _RESOLUTION if self.reach is None else self.reach / (self.resolution or self.reach)
        return math.ceil(resolutions / _LEAST_RINGS) + _MOST_REFINEMENTS + 3

    def start(self, restriction: Restriction, at_sample: Linearization) -> _State:
        dimension, dtype = at_sample.normals.shape[1], at_sample.normals.dtype
        if dimension > 2:
            raise ValueError(f"Scan is for subspaces of 1 or 2 dimensions, got {dimension}; use another solver")
        distance = jnp.ones((), dtype) if self.reach is not None else _search.begin(at_sample)[1]
        resolution = jnp.asarray(self.resolution or _RESOLUTION * distance, dtype)
        zero, label = jnp.zeros((), jnp.int32), at_sample.candidates[0]
        return _State(
            resolution=resolution,
            reach=jnp.asarray(self.reach or _REACH * distance, dtype),
            low=jnp.zeros((), dtype),
            high=resolution * self._num_rings(dimension),
            arc=jnp.asarray([0, jnp.pi], dtype),
            z=jnp.zeros(dimension, dtype),
            label=label,
            adversarial_label=label,
            num_steps=zero,
            num_refinements=zero,
            is_found=jnp.zeros((), bool),
        )

    def step(self, restriction: Restriction, state: _State) -> _State:
        num_rings = self._num_rings(state.z.size)
        radii = state.low + (state.high - state.low) * jnp.arange(1, num_rings + 1, dtype=state.z.dtype) / num_rings
        angles, spacing = self._angles(state)
        directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)[:, : state.z.size]
        logits = jax.vmap(jax.vmap(restriction))(radii[:, None, None] * directions[None])
        labels = jnp.argmax(logits, axis=2).astype(jnp.int32)

        is_finite, is_within = has_label(logits), radii <= state.reach
        is_other = (labels != state.label) & is_finite & is_within[:, None]
        is_found, was_found = is_other.any(), state.is_found
        ring = jnp.argmax(is_other.any(axis=1))
        changed = is_other[ring]
        middle = jnp.argmax(2 * jnp.cumsum(changed) >= jnp.sum(changed))
        width = jnp.max(jnp.abs(_wrapped(angles - angles[middle])), where=changed, initial=0) + spacing
        # In a refined arc, the label may change at a radius below `low`: go back by a whole bracket.
        closer = jnp.where(was_found & (spacing > 0), jnp.maximum(2 * state.low - state.high, 0), state.low)

        def now(found, not_found):
            return jnp.where(is_found, found, not_found)

        stride = state.resolution * num_rings
        farther = stride * (state.num_steps + 1).astype(state.z.dtype)
        # The point found counts, unless logits at a nearer point name no label.
        is_seen = is_within & now(radii < radii[ring], True)
        adversarial_label = now(labels[ring, middle], state.adversarial_label)
        return _State(
            resolution=state.resolution,
            reach=state.reach,
            low=now(jnp.where(ring > 0, radii[ring - 1], closer), jnp.where(was_found, state.high, farther)),
            high=now(radii[ring], jnp.where(was_found, state.high, farther + stride)),
            arc=now(jnp.stack([angles[middle], jnp.minimum(width, state.arc[1])]), state.arc),
            z=now(radii[ring] * directions[middle], state.z),
            label=state.label,
            adversarial_label=jnp.where((is_finite | ~is_seen[:, None]).all(), adversarial_label, -1),
            num_steps=state.num_steps + 1,
            num_refinements=state.num_refinements + was_found.astype(jnp.int32),
            is_found=was_found | is_found,
        )

    def done(self, state: _State) -> jax.Array:
        is_narrow = (state.high - state.low <= _ACCURACY * state.high) | (state.num_refinements >= _MOST_REFINEMENTS)
        return jnp.where(state.is_found, is_narrow, state.low >= state.reach)

    def point(self, state: _State) -> Point:
        # Before an adversarial point is found: the distance that the search will reach.
        farthest = jnp.zeros_like(state.z).at[0].set(state.reach)
        return Point(jnp.where(state.is_found, state.z, farthest), state.adversarial_label)

    def _num_rings(self, dimension):
        return max(_POINTS_IN_A_STEP // (2 if dimension == 1 else self.num_angles), _LEAST_RINGS)

    def _angles(self, state):
        """The angles of a step and the angle between neighbours: both directions of a line, or the arc in a plane."""
        if state.z.size == 1:
            return jnp.asarray([0, jnp.pi], state.z.dtype), jnp.zeros((), state.z.dtype)
        fractions = jnp.linspace(-1, 1, self.num_angles | 1, dtype=state.z.dtype)  # an odd number has a middle
        return state.arc[0] + state.arc[1] * fractions, state.arc[1] * (fractions[1] - fractions[0])


def _wrapped(angles):
    """Angles brought between -pi and pi."""
    return jnp.pi - (jnp.pi - angles) % (2 * jnp.pi)
