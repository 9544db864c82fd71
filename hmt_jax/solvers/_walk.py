"""Closest points of the boundary by annealed walks along it."""

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
# The temperature of the boundary, in units of the sample's gap, at the start and at the end of a round: first the way
# is away from the label, then towards one class.
_TEMPERATURE, _LAST_TEMPERATURE = 0.2, 0.001
# How far behind the boundary a point is looked at, so that it is adversarial: at the start and at the end of a round.
_OVERSHOOT, _LAST_OVERSHOOT = 0.02, 0.002
# Where the linearised boundary cuts the new ray counts by so much, where it cuts the old one by the rest: the slope
# along the old ray is known where it is needed, and the new ray is the one walked on.
_BLEND = 0.5
_TRUST = 0.45  # the radius changes by at most this part of it in a step
_FIRST = 0.45  # where the walk begins, in units of the first-order distance, of which margins are 0.5 to 0.75
_NOISE = 2.0  # of later starts around the best direction
_CAP = 0.999  # a point as far out as the best one is no better
_OUTWARDS = 1e-6  # the polish aims this part behind the boundary, and as far again as rounding may hide
_CLOSE = 1e-4  # of the norm: so near to the boundary, its linearisation is taken at its word
_NUM_POLISH = 2  # looks at the end
_MAX_LOOKS = 100  # after which a sample without an adversarial point is given up
# Where a walk has so few directions, to look at them all is cheap, and surer.
_FEW_DIMENSIONS, _SCAN = 2, Scan(num_angles=48)


class _Memory(NamedTuple):
    starts: jax.Array  # (S, d) unit directions of later rounds: the next nearest candidates
    edge: jax.Array  # where the linearised boundary cuts the ray of the best point
    first_order: jax.Array  # (d,) the closest point of the boundary linearised at the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """The solver that `tight` makes."""

    num_steps: int
    num_rounds: int
    num_starts: int = 1
    num_candidates: int = 10

    @property
    def _num_walked(self):
        return self.num_steps * self.num_rounds

    @property
    def max_steps(self) -> int:
        return max(_MAX_LOOKS + self._num_walked + _NUM_POLISH + 3, _SCAN.max_steps)

    def start(self, restriction: Restriction, at_sample: Linearization) -> Any:
        if at_sample.normals.shape[1] <= _FEW_DIMENSIONS:
            return _SCAN.start(restriction, at_sample)
        search, distance, directions = _search.begin(at_sample)
        memory = _Memory(starts=directions[1 : self.num_starts], edge=distance, first_order=search.z)
        return search._replace(z=_FIRST * search.z, memory=memory)

    def step(self, restriction: Restriction, search: Any) -> Any:
        if not isinstance(search, Search):
            return _SCAN.step(restriction, search)
        before = search.best_norm
        search, seen = _search.look(restriction, search)
        clock = search.num_found - 1  # 0 at the first adversarial point, before it below
        fraction = jnp.where(clock >= 0, clock % self.num_steps / max(self.num_steps - 1, 1), 0).astype(search.z.dtype)
        is_walked = clock >= self._num_walked - 1
        temperature = _TEMPERATURE * (_LAST_TEMPERATURE / _TEMPERATURE) ** fraction
        near = _search.boundary(search, seen, jnp.where(is_walked, 0, temperature))
        edge = jnp.where(search.best_norm < before, self._cut(seen, near, seen.along), search.memory.edge)
        search = search._replace(memory=search.memory._replace(edge=edge))
        z = self._walk(search, seen, near, clock, fraction)
        if self.num_rounds > 1:
            z = jnp.where(fraction == 1, self._restart(search, clock // self.num_steps), z)
        polish = self._polish(search, seen, near, clock - self._num_walked + 1)
        return search._replace(z=jnp.where(is_walked, polish, z).astype(search.z.dtype))

    def done(self, search: Any) -> jax.Array:
        if not isinstance(search, Search):
            return _SCAN.done(search)
        # Of a linear classifier the first-order point is the margin, and a walk may have ended at another class.
        is_nearer = norms_of(search.memory.first_order) * (1 + 10 * _OUTWARDS) < search.best_norm
        num_looks = self._num_walked + _NUM_POLISH + is_nearer.astype(jnp.int32)
        is_given_up = search.num_looks >= _MAX_LOOKS
        return jnp.where(_search.is_found(search), search.num_found >= num_looks, is_given_up)

    def point(self, search: Any) -> Point:
        return Point(search.best_z, search.best_label) if isinstance(search, Search) else _SCAN.point(search)

    def _walk(self, search: Search, seen: Look, near: Boundary, clock, fraction):
        """A step along the boundary: the direction turns towards the normal, the radius follows the boundary."""
        is_found = clock >= 0
        ahead = _search.unit(seen.along + _search.cosine(_LAST_TURN, _TURN, fraction) * near.normal)
        here, there = self._cut(seen, near, seen.along), self._cut(seen, near, ahead)
        # Before there is an adversarial point the way out counts alone, or the search turns where no boundary is.
        radius = here + jnp.where(is_found, _BLEND, 0) * (there - here)
        radius *= 1 + _search.cosine(_LAST_OVERSHOOT, _OVERSHOOT, fraction)
        return ahead * jnp.minimum(radius, _CAP * search.best_norm)

    def _cut(self, seen: Look, near: Boundary, ray):
        """The radius where a ray meets the linearised boundary, no farther from here than it is trusted."""
        slope = near.normal @ ray
        radius = near.offset / jnp.where(slope > 0, slope, 1)
        radius = jnp.where(slope > 0, radius, jnp.where(near.depth > 0, 0, jnp.inf))
        return jnp.clip(radius, (1 - _TRUST) * seen.norm, (1 + _TRUST) * seen.norm)

    def _restart(self, search: Search, num_ended):
        """Towards the next candidate, then around the best point; always at the least adversarial norm."""
        starts = search.memory.starts
        # One sequence for all pairs: no result depends on which others are measured.
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), num_ended), search.z.shape, search.z.dtype)
        direction = _search.unit(search.best_z) + _NOISE * _search.unit(noise)
        if len(starts):
            towards = starts[jnp.clip(num_ended, 0, len(starts) - 1)]
            direction = jnp.where(num_ended < len(starts), towards, direction)
        return _search.unit(direction) * search.best_norm

    def _polish(self, search: Search, seen: Look, near: Boundary, num_polished):
        """To the point nearest to the sample of the boundary linearised here; where that fails, inwards to its edge.

        In the end to that of the boundary linearised at the sample, which is looked at where it is nearer.
        """
        hidden = jnp.finfo(search.z.dtype).eps * jnp.abs(seen.logits[search.label]) / near.steepness
        outwards = (_OUTWARDS + hidden / jnp.maximum(seen.norm, hidden)) * jnp.where(num_polished > 0, 3.0, 1.0)
        is_close = (num_polished == 0) | (jnp.abs(near.depth) < _CLOSE * seen.norm)
        edge = search.memory.edge * _search.unit(search.best_z)
        closest = jnp.where(is_close, near.offset * near.normal, edge)
        return (1 + outwards) * jnp.where(num_polished == _NUM_POLISH, search.memory.first_order, closest)


_EFFORTS = {
    # With the gradients of eight classes it stays under 25 backward passes a pair where six subspaces share them.
    "fast": Walk(num_steps=18, num_rounds=1, num_candidates=8),
    "normal": Walk(num_steps=20, num_rounds=3),
    "thorough": Walk(num_steps=29, num_rounds=20, num_starts=3),
}


def tight(effort: str = "normal") -> Walk:
    """The recommended solver of small margins: annealed walks along the boundary, at a fixed cost.

    With u = z / ||z||, n the unit normal of the boundary at z and r the radius at which the linearised boundary cuts a
    ray, a step is

      u' = unit(u + turn n),   z' = (1 + overshoot) r u'.

    Turn and overshoot fall over the steps of a round by half a cosine, from the first adversarial point on. n is the
    gradient of a cross-entropy whose temperature, in units of the sample's gap, falls as well, so that no facet between
    two classes decides alone at first, and no scale is absolute. Later rounds start around the best point, with noise;
    those of "thorough" first from the next nearest candidates. A polish of two looks ends at the closest point of the
    boundary's last linearisation, and a third one is at that of the first, at the sample, where that is nearer than
    what was found: of a linear classifier the margin is exact, as long as the nearest class is one of the candidates, 8
    for "fast" and 10 for the others.

    In one and two dimensions it is a `hmt_jax.exact.scan` of all directions, whatever the effort, some hundred forward
    passes a pair on a line and some thousand in the plane.

    Takes one forward and one backward pass a step, besides the linearization at the sample, which all subspaces share:

      "fast"      one round of 18 steps
      "normal"    three rounds of 20
      "thorough"  twenty rounds of 29

    with those of the polish, and two or three more until the label changes first. More are needed where the
    boundary is far; a sample whose label has not changed after 100 is given up.

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
