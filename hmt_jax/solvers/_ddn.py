"""Decoupled direction and norm, with all scales taken from the sample."""

import dataclasses

import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Restriction
from hmt_jax.solvers._search import InSteps, Search

# In units of the radius: the step along the sphere, and the change of the radius, at the start and at the end.
_STEP, _LAST_STEP = 1.0, 0.05
_CHANGE, _LAST_CHANGE = 0.15, 0.005
# The temperature of the cross-entropy, in units of the sample's gap: 1 in logits if the label leads by about 12.
_TEMPERATURE = 0.08


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDN(InSteps):
    """Decoupled direction and norm: steps on a sphere towards other labels, as its radius closes in on the boundary.

    In every step z moves along the gradient of the cross-entropy, by a share of the radius, and returns to a sphere.
    The radius grows by another share if the label is unchanged, and shrinks by it if the label has changed. Both shares
    fall by half a cosine over the steps. Unlike in the publication, the radius starts at the first-order
    distance, steps are in units of the radius, and logits enter the cross-entropy in units of the sample's gap, so that
    no scale is absolute.

    A step takes one forward and one backward pass.

    The first step goes towards the runner-up. If no direction in the subspace changes the gap between the runner-up and
    the label, it goes towards the most likely candidate whose gap can be changed. If there is none, the status is
    ZERO_GRADIENT.

    Attributes:
      num_steps: steps over which the search closes in.
      max_steps: steps after which the search is given up if it has not found an adversarial point. Until it finds one,
        it continues beyond `num_steps`.
      num_candidates: classes considered for the first step, including the label.

    Raises:
      ValueError: for a `num_steps` below 1, a `max_steps` below `num_steps`, or fewer than 2 candidates.

    References:
      Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient
      gradient-based L2 adversarial attacks and defenses", CVPR 2019, arXiv:1811.09600.

    >>> import jax, hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), DDN())
    >>> f"{result.margin[0, 0]:.2f}"  # (0.9 - 0.5) / sqrt(2) = 0.283
    '0.28'
    """

    num_steps: int = 50
    max_steps: int = 200

    def start(self, restriction: Restriction, at_sample: Linearization) -> Search:
        search, distance, _ = _search.begin(at_sample, nearest_first=False)
        return search._replace(memory=distance)

    def step(self, restriction: Restriction, search: Search) -> Search:
        search, seen = _search.look(restriction, search)
        near = _search.boundary(search, seen, _TEMPERATURE)
        fraction = (search.num_looks / self.num_steps).astype(search.z.dtype)
        change = _search.cosine(_LAST_CHANGE, _CHANGE, fraction)
        is_found = _search.is_found(search)
        growth = jnp.where(is_found, change, 2 * _CHANGE)
        factor = jnp.where(seen.is_adversarial, 1 - change, 1 + growth)
        radius = jnp.minimum(factor * search.memory, search.best_norm)
        ahead = _search.unit(search.z + _search.cosine(_LAST_STEP, _STEP, fraction) * search.memory * near.normal)
        return search._replace(z=radius * ahead, memory=radius)
