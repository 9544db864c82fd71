"""Annealed walks along the boundary to its closest points."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Point, Restriction, norms_of
from hmt_jax.solvers._scan import Scan
from hmt_jax.solvers._search import Boundary, Look, Search

# How far the direction is turned towards the normal in a step, at the start and at the end of a round.
_TURN, _LAST_TURN = 2.5, 0.04
_LAST_TEMPERATURE = 0.001  # of the boundary, at the end of a round
# How far behind the boundary points are evaluated, so that they are adversarial, at the start and end of a round.
_OVERSHOOT, _LAST_OVERSHOOT = 0.02, 0.002
# The weight of the radius at which the linearised boundary cuts the new ray; the old ray has the rest. The slope along
# the old ray is known at the point itself, but the new ray is the one that the walk follows.
_BLEND = 0.5
_TRUST = 0.45  # the radius changes by at most this share in a step
# In a hasty walk, it may grow by this share more until there is an adversarial point, if the boundary is flat.
_REACH = 3.0
_FIRST = 0.45  # where the walk begins, in units of the first-order distance; margins are 0.5 to 0.75 of it
_NOISE = 2.0  # noise of later starts around the best direction
_CAP = 0.999  # a point as far out as the best one is no better
_OUTWARDS = 1e-6  # the polish aims this share behind the boundary, plus what rounding may hide
_FAR_OUTWARDS = 3e-4  # and a polish of one step this share, which covers the curvature that the step does not see
_CLOSE = 1e-4  # share of the norm: this near to the boundary, its linearisation is trusted
# How flat the boundary counts is this power of the cosine of the angle between the direction and the normal: a half at
# 15 degrees, and a hundredth at 37.
_FLAT_POWER = 20
_MAX_LOOKS = 100  # steps after which a sample without an adversarial point is given up
# In so few dimensions, a scan of all directions is cheap, and surer than a walk.
_FEW_DIMENSIONS, _SCAN = 2, Scan(num_angles=48)


class _Memory(NamedTuple):
    progress: jax.Array  # steps walked, as they count, and after the walk also steps of the polish
    average: jax.Array  # (d,) the running average of normals, as a unit vector; 0 at the start, () without momentum
    starts: jax.Array  # (S, d) unit directions to the next nearest candidates, where later rounds start
    edge: jax.Array  # the radius at which the linearised boundary cuts the ray of the best point
    first_order: jax.Array  # (d,) the closest point of the boundary linearised at the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """The solver that `tight` makes.

    Attributes:
      num_steps: steps of a round.
      num_rounds: rounds of the walk.
      num_starts: rounds that start towards different candidates.
      num_candidates: number of candidates, including the label.
      num_polish: steps of the polish.
      temperature: of the boundary at the start of a round, in units of the sample's gap. At first the walk leads away
        from the label, and towards the end, where the temperature is low, towards one class.
      momentum: weight of earlier normals in the normal that the direction turns to.
      haste: where the direction has reached the normal, a step counts as 1 + `haste` steps. If it is above 0, steps
        also count before there is an adversarial point, and are longer where the boundary is flat.

    >>> tight("fast") == Walk(num_steps=30, num_rounds=1, haste=4)
    True
    """

    num_steps: int
    num_rounds: int
    num_starts: int = 1
    num_candidates: int = 10
    num_polish: int = 2
    temperature: float = 0.2
    momentum: float = 0.0
    haste: float = 0.0

    def __repr__(self) -> str:
        # Results and stores have this text: the effort that a user chose, and the settings that it stands for.
        settings = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        efforts = [f'tight("{effort}") = ' for effort, walk in _EFFORTS.items() if walk == self]
        return f"{''.join(efforts)}Walk({settings})"

    @property
    def _num_walked(self):
        return self.num_steps * self.num_rounds

    @property
    def max_steps(self) -> int:
        return max(_MAX_LOOKS + self._num_walked + self.num_polish + 3, _SCAN.max_steps)

    def start(self, restriction: Restriction, at_sample: Linearization) -> Any:
        if at_sample.normals.shape[1] <= _FEW_DIMENSIONS:
            return _SCAN.start(restriction, at_sample)
        search, distance, directions = _search.begin(at_sample)
        memory = _Memory(
            progress=jnp.zeros((), jnp.float32),
            average=jnp.zeros_like(search.z) if self.momentum else jnp.zeros(()),
            starts=directions[1 : self.num_starts],
            edge=distance,
            first_order=search.z,
        )
        return search._replace(z=_FIRST * search.z, memory=memory)

    def step(self, restriction: Restriction, search: Any) -> Any:
        if not isinstance(search, Search):
            return _SCAN.step(restriction, search)
        before, progress = search.best_norm, search.memory.progress
        search, seen = _search.look(restriction, search)
        is_found = _search.is_found(search)
        step_of_round = jnp.minimum(progress, self._num_walked - 1) % self.num_steps
        fraction = (step_of_round / max(self.num_steps - 1, 1)).astype(search.z.dtype)
        is_walked = is_found & (progress >= self._num_walked - 1)
        temperature = self.temperature * (_LAST_TEMPERATURE / self.temperature) ** fraction
        near = _search.boundary(search, seen, jnp.where(is_walked, 0, temperature))
        memory = search.memory._replace(
            progress=progress + self._advance(seen, near, is_found, step_of_round),
            edge=jnp.where(search.best_norm < before, self._cut(seen, near, seen.along), search.memory.edge),
        )
        if self.momentum:
            average = self.momentum * search.memory.average + (1 - self.momentum) * near.normal
            memory = memory._replace(average=_search.unit(average))
        search = search._replace(memory=memory)
        z = self._walk(search, seen, near, fraction)
        if self.num_rounds > 1:
            num_ended = (progress // self.num_steps).astype(jnp.int32)
            z = jnp.where(is_found & (fraction == 1), self._restart(search, num_ended), z)
        num_polished = (progress - (self._num_walked - 1)).astype(jnp.int32)
        polish = self._polish(search, seen, near, num_polished)
        return search._replace(z=jnp.where(is_walked, polish, z).astype(search.z.dtype))

    def done(self, search: Any) -> jax.Array:
        if not isinstance(search, Search):
            return _SCAN.done(search)
        # For a linear classifier, the first-order point is the closest, but a walk may have ended at another class.
        is_nearer = norms_of(search.memory.first_order) * (1 + 10 * _OUTWARDS) < search.best_norm
        length = self._num_walked + self.num_polish + is_nearer.astype(jnp.float32)
        is_given_up = search.num_looks >= _MAX_LOOKS
        return jnp.where(_search.is_found(search), search.memory.progress >= length, is_given_up)

    def point(self, search: Any) -> Point:
        return Point(search.best_z, search.best_label) if isinstance(search, Search) else _SCAN.point(search)

    def _advance(self, seen: Look, near: Boundary, is_found, step_of_round):
        """The number of steps that this one counts as. A round ends with its last step, never beyond it."""
        if not self.haste:
            return is_found.astype(jnp.float32)
        counted = 1 + jnp.where(is_found, self.haste * _flatness(seen, near).astype(jnp.float32), 0)
        left = self.num_steps - 1 - step_of_round
        return jnp.where(left > 0, jnp.minimum(counted, left), is_found.astype(jnp.float32))

    def _walk(self, search: Search, seen: Look, near: Boundary, fraction):
        """The next point along the boundary: the direction turns to the normal, the radius follows the boundary."""
        is_found = _search.is_found(search)
        normal = search.memory.average if self.momentum else near.normal
        ahead = _search.unit(seen.along + _search.cosine(_LAST_TURN, _TURN, fraction) * normal)
        reach = jnp.where(is_found, 0, _REACH * _flatness(seen, near)) if self.haste else 0.0
        here, there = (self._cut(seen, near, ray, reach) for ray in (seen.along, ahead))
        # Before there is an adversarial point, only the old ray counts: the new one may miss the boundary.
        radius = here + jnp.where(is_found, _BLEND, 0) * (there - here)
        radius *= 1 + _search.cosine(_LAST_OVERSHOOT, _OVERSHOOT, fraction)
        return ahead * jnp.minimum(radius, _CAP * search.best_norm)

    def _cut(self, seen: Look, near: Boundary, ray, reach: float | jax.Array = 0.0):
        """The radius at which a ray meets the linearised boundary, clipped to where the linearisation is trusted."""
        slope = near.normal @ ray
        radius = near.offset / jnp.where(slope > 0, slope, 1)
        radius = jnp.where(slope > 0, radius, jnp.where(near.depth > 0, 0, jnp.inf))
        return jnp.clip(radius, (1 - _TRUST) * seen.norm, (1 + _TRUST + reach) * seen.norm)

    def _restart(self, search: Search, num_ended):
        """The start of the next round: towards the next candidate, later around the best point, always at its norm."""
        starts = search.memory.starts
        # All pairs share one sequence, so no result depends on which other pairs are measured.
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), num_ended), search.z.shape, search.z.dtype)
        direction = _search.unit(search.best_z) + _NOISE * _search.unit(noise)
        if len(starts):
            towards = starts[jnp.clip(num_ended, 0, len(starts) - 1)]
            direction = jnp.where(num_ended < len(starts), towards, direction)
        return _search.unit(direction) * search.best_norm

    def _polish(self, search: Search, seen: Look, near: Boundary, num_polished):
        """The next point of the polish: the point of the boundary, linearised here, that is nearest to the sample.

        If the point is too far from the boundary for that, it is the edge on the ray of the best point. The last one is
        the nearest point of the boundary linearised at the sample; it is evaluated only if it is nearer.
        """
        hidden = jnp.finfo(search.z.dtype).eps * jnp.abs(seen.logits[search.label]) / near.steepness
        outwards = (_OUTWARDS + hidden / jnp.maximum(seen.norm, hidden)) * jnp.where(num_polished > 0, 3.0, 1.0)
        if self.num_polish == 1:
            outwards += jnp.where(num_polished == 0, _FAR_OUTWARDS, 0)
        is_close = (num_polished == 0) | (jnp.abs(near.depth) < _CLOSE * seen.norm)
        edge = search.memory.edge * _search.unit(search.best_z)
        closest = jnp.where(is_close, near.offset * near.normal, edge)
        return (1 + outwards) * jnp.where(num_polished == self.num_polish, search.memory.first_order, closest)


def _flatness(seen: Look, near: Boundary):
    """How flat the boundary is: 1 where the direction has reached its normal, and 0 if the two are far apart."""
    return jnp.clip(seen.along @ near.normal, 0, 1) ** _FLAT_POWER


_EFFORTS = {
    "quick": Walk(num_steps=21, num_rounds=1, num_polish=1, temperature=0.1, momentum=0.4, haste=30.0),
    "fast": Walk(num_steps=30, num_rounds=1, haste=4.0),
    "normal": Walk(num_steps=30, num_rounds=3, num_starts=2, haste=3.0),
    "thorough": Walk(num_steps=29, num_rounds=20, num_starts=3),
}


def tight(effort: str = "normal") -> Walk:
    """The recommended solver for small margins: annealed walks along the boundary, at a bounded cost.

    With u = z / ||z||, n the unit normal of the boundary at z and r the radius at which the linearised boundary cuts a
    ray, a step is

      u' = unit(u + turn n),   z' = (1 + overshoot) r u'.

    From the first adversarial point on, turn and overshoot fall by half a cosine over the steps of a round. The normal
    n is the direction in which a cross-entropy grows, whose temperature is in units of the sample's gap and falls as
    well. At first, therefore, no facet between two classes decides alone; and no scale is absolute. Later rounds start
    around the best point, with noise. But the second of "normal", and the second and third of "thorough", start towards
    the next nearest candidates.

    All but "thorough" are hasty: where u has reached n, a step counts as several, so a walk ends early where the
    boundary is nearly flat. In "quick", n is also a running average, with two fifths of the weight on earlier normals.

    A polish of two steps, one for "quick", ends at the closest point of the last linearised boundary. If the closest
    point of the boundary linearised at the sample is nearer, it is evaluated as well. For a linear classifier the
    margin is therefore exact, provided that the nearest class is one of the ten candidates.

    In one and two dimensions, all efforts are the same scan of all directions, as in `Scan`. It takes a few hundred
    forward passes for each pair in one dimension, and a few thousand in two.

    A step takes one forward and one backward pass. All subspaces share the linearisation at the sample. The steps are

      "quick"     one round of 2 to 21 steps, fewest where the boundary is flat; there, a step counts as up to 31
      "fast"      one round of 7 to 30, where a step counts as up to 5
      "normal"    three rounds of 9 to 30, where a step counts as up to 4
      "thorough"  twenty rounds of 29

    as well as the polish and, in "thorough", the steps until the label first changes, usually two or three; the others
    count these as steps of the walk. All take more of them if the boundary is far; if the label has not changed after
    100 steps, the search is given up.

    Args:
      effort: "quick", "fast", "normal" or "thorough".

    Returns:
      A solver.

    Raises:
      ValueError: for an unknown effort.

    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), tight("fast"))
    >>> f"{result.margin[0, 0]:.4f}"  # (0.9 - 0.5) / sqrt(2)
    '0.2828'
    """
    if effort not in _EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(_EFFORTS)}, got {effort!r}")
    return _EFFORTS[effort]
