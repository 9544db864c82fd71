"""Damped steps to the closest points of linearised boundaries."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Restriction, norms_of
from hmt_jax.solvers._search import InSteps, Search

_DAMPING = 0.3  # the share of the way that the first step takes
_GROWTH, _SHRINKAGE = 1.3, 0.5
_TRUST = 0.3  # a point is moved to the boundary by at most this share of its norm
# Points are evaluated this far behind the boundary, so that they are adversarial; farther after one that was not.
_OVERSHOOT, _OVERSHOOT_GROWTH = 0.01, 1.5


class _Memory(NamedTuple):
    anchor: jax.Array  # (d,) the point with the least norm so far, on the boundary to first order
    target: jax.Array  # (d,) the closest point of the boundary linearised there
    damping: jax.Array
    overshoot: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosestPoint(InSteps):
    """A solver that takes damped steps to the closest point of the linearised boundary.

    At a point z on the boundary with unit normal n, the point of the tangent plane nearest to the sample is (n . z) n.
    A step takes a share of the way there, and then returns to the boundary along the ray, to first order. If the norm
    has fallen, the next step starts there and takes a larger share of its way; if not, the share is halved. Undamped
    steps would alternate between the facets of a network.

    A step takes one forward and one backward pass.

    Attributes:
      num_steps: number of steps, if the search has found an adversarial point by then.
      max_steps: steps after which the search is given up if it has not found an adversarial point. Until it finds one,
        it continues beyond `num_steps`.
      num_candidates: classes considered for the first step, including the label.

    Raises:
      ValueError: for a `num_steps` below 1, a `max_steps` below `num_steps`, or fewer than 2 candidates.

    >>> import jax, hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), ClosestPoint())
    >>> f"{result.margin[0, 0]:.2f}"  # above (0.9 - 0.5) / sqrt(2) = 0.283, by an overshoot
    '0.29'
    """

    num_steps: int = 20
    max_steps: int = 100

    def start(self, restriction: Restriction, at_sample: Linearization) -> Search:
        search, distance, _ = _search.begin(at_sample)
        nowhere = jnp.full_like(search.z, jnp.inf)
        memory = _Memory(nowhere, search.z, jnp.full_like(distance, _DAMPING), jnp.full_like(distance, _OVERSHOOT))
        return search._replace(z=(1 + _OVERSHOOT) * search.z, memory=memory)

    def step(self, restriction: Restriction, search: Search) -> Search:
        anchor, target, damping, overshoot = search.memory
        search, seen = _search.look(restriction, search)
        near = _search.boundary(search, seen, 0.0)
        slope = near.normal @ seen.along
        radius = jnp.where(slope > 0, near.offset / jnp.where(slope > 0, slope, 1), jnp.inf)
        radius = jnp.clip(radius, (1 - _TRUST) * seen.norm, (1 + _TRUST) * seen.norm)
        # A corrected point counts only if the boundary is within reach of the correction.
        is_met = jnp.abs(near.depth) < _TRUST * slope * seen.norm
        is_nearer = is_met & (radius < norms_of(anchor))
        is_first = ~jnp.isfinite(anchor).all()
        new = _Memory(
            anchor=jnp.where(is_nearer, radius * seen.along, anchor),
            target=jnp.where(is_nearer, near.offset * near.normal, target),
            damping=jnp.where(is_nearer, jnp.minimum(_GROWTH * damping, 1), _SHRINKAGE * damping),
            overshoot=jnp.where(seen.is_adversarial, _OVERSHOOT, jnp.minimum(_OVERSHOOT_GROWTH * overshoot, 1)),
        )
        new = new._replace(damping=jnp.where(is_first, damping, new.damping))
        ahead = new.anchor + new.damping * (new.target - new.anchor)
        # A step of DeepFool, until the boundary has been met.
        onwards = search.z + jnp.clip(-near.depth, -_TRUST * seen.norm, seen.norm) * near.normal
        z = jnp.where(jnp.isfinite(new.anchor).all(), ahead, onwards)
        return search._replace(z=(1 + new.overshoot) * z, memory=new)
