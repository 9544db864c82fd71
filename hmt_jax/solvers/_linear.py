"""Exact margins of classifiers with affine logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax.solvers._base import Linearization, Point, Restriction, distances_of, divided, lengths_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Exact margins of classifiers whose logits are affine in the image, for any number of classes in any subspace.

    With g the restriction and y the label, the margin is the distance to the nearest of the hyperplanes between y and
    the other classes,

      min_k (g_y - g_k) / ||grad (g_k - g_y)||.

    If no other class can gain on y except by rounding, it is infinite, and the status is ZERO_GRADIENT. `coordinates`
    are a point on that hyperplane, where both logits are equal. For any other classifier, this is the first-order
    estimate of the margin, which is no bound.

    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), Linear())
    >>> f"{result.margin[0, 0]:.4f}"  # (0.9 - 0.5) / sqrt(2)
    '0.2828'
    """

    @property
    def num_candidates(self) -> int:
        """All classes."""
        return int(np.iinfo(np.int32).max)

    @property
    def max_steps(self) -> int:
        """One step: the linearisation at the sample is all that is needed."""
        return 1

    def start(self, restriction: Restriction, at_sample: Linearization) -> Point:
        logits, candidates, normals = at_sample
        label, others, lengths = candidates[0], candidates[1:], lengths_of(normals)
        distances = distances_of((logits[label], logits[others]), lengths).astype(normals.dtype)
        nearest = jnp.argmin(distances)
        is_crossed = jnp.isfinite(distances[nearest])
        z = jnp.where(is_crossed, distances[nearest], 0) * divided(normals[nearest], lengths[nearest])
        return Point(z, jnp.where(is_crossed, others[nearest], label))

    def step(self, restriction: Restriction, state: Point) -> Point:
        return state

    def done(self, state: Point) -> jax.Array:
        return jnp.asarray(True)

    def point(self, state: Point) -> Point:
        return state
