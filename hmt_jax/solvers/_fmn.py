"""Fast minimum-norm, with all scales taken from the sample."""

import dataclasses

import jax.numpy as jnp

from hmt_jax.solvers import _search
from hmt_jax.solvers._base import Linearization, Restriction, norms_of
from hmt_jax.solvers._search import InSteps, Search

# In units of the radius: the step, and the change of the radius, at the start and at the end.
_STEP, _LAST_STEP = 1.0, 0.01
_CHANGE, _LAST_CHANGE = 0.05, 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class FMN(InSteps):
    """Fast minimum-norm: gradient steps on the gap in logits, in a ball whose radius closes in on the boundary.

    It differs from `DDN` in three ways: steps follow the gradient of the gap to the runner-up, they end inside the ball
    rather than on its sphere, and until the boundary has been crossed the radius comes from the linearised boundary.
    Unlike in the publication, steps are in units of the radius, so that no scale is absolute.

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
      Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
      NeurIPS 2021, arXiv:2102.12827.

    >>> import jax, hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), FMN())
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
        near = _search.boundary(search, seen, 0.0)
        fraction = (search.num_looks / self.num_steps).astype(search.z.dtype)
        change = _search.cosine(_LAST_CHANGE, _CHANGE, fraction)
        is_found = _search.is_found(search)
        shrunk = (1 - change) * jnp.minimum(search.memory, search.best_norm)
        # Before the boundary has been crossed, the radius extends to the linearised boundary.
        reached = seen.norm + jnp.clip(jnp.abs(near.depth), change * seen.norm, seen.norm)
        grown = jnp.where(is_found, (1 + change) * search.memory, reached)
        radius = jnp.minimum(jnp.where(seen.is_adversarial, shrunk, grown), search.best_norm)
        ahead = search.z + _search.cosine(_LAST_STEP, _STEP, fraction) * radius * near.normal
        length = jnp.minimum(norms_of(ahead), radius)
        return search._replace(z=length * _search.unit(ahead), memory=radius)
