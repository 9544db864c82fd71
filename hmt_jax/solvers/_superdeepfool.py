"""DeepFool, with repeated projections onto the boundary's normal."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Restriction, distances_of, divided, lengths_of, normals_of
from hmt_jax.solvers._search import Search

_LEAST_GAIN = 1e-3
_LONGEST = 10.0  # the longest step, in units of the norm: where gradients vanish, lengths mean nothing


class _Memory(NamedTuple):
    candidates: jax.Array  # (C,) the label first
    is_projected: jax.Array  # whether z is a projection of the point before it
    has_ended: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperDeepFool(_search.Searcher):
    """SuperDeepFool (infinity, 1): DeepFool to the boundary and projections onto its normal, in turn.

    Once the label has changed, z is replaced by (z . n) n, where n is the unit normal of the boundary at z. If the
    boundary were flat, that would be its closest point. DeepFool continues from there. The search ends when a projected
    point is adversarial, or when DeepFool returns to the boundary at nearly the same norm as before.

    A step takes one forward and C - 1 backward passes.

    Attributes:
      num_candidates: the number C of candidates, including the label: the classes with the largest logits at the
        sample.
      overshoot: relative length added to every step of DeepFool.
      max_steps: steps after which the search is ended.

    Raises:
      ValueError: for fewer than 2 candidates, a negative overshoot, or a `max_steps` below 1.

    References:
      Abdollahpour, Abroshan and Moosavi-Dezfooli, "Revisiting DeepFool: generalization and improvement", 2023,
      arXiv:2303.12481.

    >>> import jax, hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), SuperDeepFool())
    >>> f"{result.margin[0, 0]:.2f}"  # above (0.9 - 0.5) / sqrt(2) = 0.283, by an overshoot
    '0.29'
    """

    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def start(self, restriction: Restriction, at_sample: Linearization) -> Search:
        search, *_ = _search.begin(at_sample)
        no = jnp.zeros((), bool)
        return search._replace(z=(1 + self.overshoot) * search.z, memory=_Memory(at_sample.candidates, no, no))

    def step(self, restriction: Restriction, search: Search) -> Search:
        before = search.best_norm
        search, seen = _search.look(restriction, search)
        candidates, is_projected, _ = search.memory
        # Behind the boundary, the normal belongs to the class found; before it, to the nearest candidate.
        normals = normals_of(seen.pull_back, seen.logits, candidates)
        lengths = lengths_of(normals)
        lead = seen.logits[search.label], seen.logits[candidates[1:]]
        distances = distances_of(lead, lengths).astype(normals.dtype)
        nearest = jnp.argmin(distances)
        # Rounding would lose a shorter step, and the search would stand still.
        last_place = jnp.finfo(seen.norm.dtype).eps * seen.norm
        length = jnp.clip(distances[nearest], last_place, _LONGEST * seen.norm)
        normal = divided(normals[nearest], lengths[nearest])
        onwards = search.z + (1 + self.overshoot) * length * normal
        projected = (search.z @ normal) * normal
        # The search also ends if gains become small, as they do at a boundary that curves away from the sample.
        is_end = is_projected | (seen.norm > (1 - _LEAST_GAIN) * before)
        return search._replace(
            z=jnp.where(seen.is_adversarial, projected, onwards),
            memory=_Memory(candidates, seen.is_adversarial, seen.is_adversarial & is_end),
        )

    def done(self, search: Search) -> jax.Array:
        return _search.is_found(search) & search.memory.has_ended
