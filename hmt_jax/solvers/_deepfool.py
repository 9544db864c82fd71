"""DeepFool on the restriction of a classifier to a subspace."""

import dataclasses
from typing import NamedTuple

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
    normals_of,
    norms_of,
)

# Shortest step, in pixels, as in the authors' code: it carries the iterate over a boundary that it already touches.
_SHORTEST_STEP = 1e-4


class DeepFoolState(NamedTuple):
    """An iterate of DeepFool."""

    z: jax.Array  # (d,)
    candidates: jax.Array  # (C,) classes by falling logit at z = 0, the label first
    label: jax.Array  # at the overshot point (1 + overshoot) z


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFool:
    """DeepFool as the authors of *Hold me tight!* run it in a subspace: the solver of the paper.

    With y the label and k over the other candidates, w_k = grad (g_k - g_y) and rho_k = |g_k - g_y| / ||w_k|| at the
    iterate z, a step goes to the nearest of the linearised boundaries,

      k* = argmin_k rho_k,    z <- z + max(rho_k*, 1e-4) w_k* / ||w_k*||,

    and the search ends when the label at (1 + overshoot) z is not y. The perturbation is (1 + overshoot) z, and its
    norm is an upper bound of the margin. A candidate whose w_k is zero is skipped.

    Attributes:
      num_candidates: number of candidates, including the label: the classes with the largest logits at z = 0. If the
        classifier has fewer classes, all are candidates.
      overshoot: relative length added to every iterate before the label is checked.
      max_steps: steps after which a sample is given up.

    Raises:
      ValueError: for fewer than 2 candidates, a negative overshoot, or a `max_steps` below 1; and for a setting that is
        not a single number, or not known when compiling.

    References:
      Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016, arXiv:1511.04599.
      Ortiz-Jimenez, Modas, Moosavi-Dezfooli and Frossard, "Hold me tight!", NeurIPS 2020, arXiv:2002.06349.

    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), DeepFool(overshoot=0.1))
    >>> f"{result.margin[0, 0]:.4f}"  # (1 + 0.1) * (0.9 - 0.5) / sqrt(2)
    '0.3111'
    """

    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_settings(self)

    def start(self, restriction: Restriction, at_sample: Linearization) -> DeepFoolState:
        logits, candidates, normals = at_sample
        state = DeepFoolState(jnp.zeros_like(normals[0]), candidates, candidates[0])
        return self._move(restriction, state, logits, normals)

    def step(self, restriction: Restriction, state: DeepFoolState) -> DeepFoolState:
        logits, pull_back = jax.vjp(restriction, state.z)
        return self._move(restriction, state, logits, normals_of(pull_back, logits, state.candidates))

    def done(self, state: DeepFoolState) -> jax.Array:
        return state.label != state.candidates[0]

    def point(self, state: DeepFoolState) -> Point:
        return Point((1 + self.overshoot) * state.z, state.label)

    def _move(self, restriction, state, logits, normals) -> DeepFoolState:
        """The state at the nearest of the linearised boundaries, with the label there."""
        label, others = state.candidates[0], state.candidates[1:]
        lengths = lengths_of(normals)
        distances = jnp.abs(distances_of((logits[label], logits[others]), lengths)).astype(normals.dtype)
        nearest = jnp.argmin(distances)  # of a NaN if there is one, and then z is NaN
        has_direction = ~jnp.isinf(distances[nearest])
        # Rounding would lose a step that is shorter than the last place of z; in half precision, that is soon.
        last_place = jnp.finfo(state.z.dtype).eps * norms_of(state.z)
        step = jnp.maximum(distances[nearest], jnp.maximum(last_place, _SHORTEST_STEP))
        z = jnp.where(has_direction, state.z + step * divided(normals[nearest], lengths[nearest]), state.z)
        return state._replace(z=z, label=label_of(restriction((1 + self.overshoot) * z)))
