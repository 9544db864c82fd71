"""DeepFool on the restriction of a classifier to a subspace."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers._solution import (
    Linearization,
    Restriction,
    Solution,
    Status,
    check_settings,
    has_label,
    normals_of,
    norms_of,
)

# Shortest step, in pixels, as in the authors' code: it carries the iterate over a boundary that it already touches.
_SHORTEST_STEP = 1e-4


class DeepFoolState(NamedTuple):
    """An iterate of DeepFool; the overshot point (1 + overshoot) z is where the label is checked."""

    z: jax.Array  # (d,)
    candidates: jax.Array  # (C,) classes by falling logit at z = 0, the label first; -1 if those logits name no label
    adversarial_label: jax.Array
    num_steps: jax.Array
    status: jax.Array  # OUT_OF_STEPS while the search goes on


@dataclasses.dataclass(frozen=True)
class DeepFool:
    """The solver that `deepfool` makes."""

    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self):
        check_settings(self)

    def start(self, restriction: Restriction, at_sample: Linearization) -> DeepFoolState:
        unknown = jnp.asarray(-1, jnp.int32)
        state = DeepFoolState(
            z=jnp.zeros_like(at_sample.normals[0]),
            candidates=jnp.where(has_label(at_sample.logits), at_sample.candidates, unknown),
            adversarial_label=unknown,
            num_steps=jnp.asarray(0, jnp.int32),
            status=jnp.asarray(Status.OUT_OF_STEPS, jnp.int32),
        )
        return self._move(restriction, state, at_sample.logits, at_sample.normals)

    def step(self, restriction: Restriction, state: DeepFoolState) -> DeepFoolState:
        logits, pull_back = jax.vjp(restriction, state.z)
        return self._move(restriction, state, logits, normals_of(pull_back, logits, state.candidates))

    def _move(self, restriction, state, logits, normals):
        """To the nearest of the linearised boundaries, where the label is looked at."""
        label, others = state.candidates[0], state.candidates[1:]
        norms = norms_of(normals)
        gaps = jnp.abs(logits[others] - logits[label]).astype(norms.dtype)
        distances = jnp.where(norms > 0, gaps / jnp.where(norms > 0, norms, 1), jnp.inf)
        nearest = jnp.argmin(distances)
        has_direction = jnp.isfinite(distances[nearest])

        length = jnp.maximum(distances[nearest], _SHORTEST_STEP)
        unit_normal = normals[nearest] / jnp.where(has_direction, norms[nearest], 1)
        z = jnp.where(has_direction, state.z + length * unit_normal, state.z)
        overshot_logits = restriction((1 + self.overshoot) * z)
        adversarial_label = jnp.argmax(overshot_logits).astype(jnp.int32)

        is_finite = has_label(logits) & jnp.isfinite(norms).all() & has_label(overshot_logits)
        status = jnp.where(adversarial_label != label, Status.CONVERGED, Status.OUT_OF_STEPS)
        status = jnp.where(has_direction, status, Status.ZERO_GRADIENT)
        status = jnp.where(is_finite, status, Status.NON_FINITE).astype(jnp.int32)
        return state._replace(z=z, adversarial_label=adversarial_label, num_steps=state.num_steps + 1, status=status)

    def done(self, state: DeepFoolState) -> jax.Array:
        return (state.status != Status.OUT_OF_STEPS) | (state.num_steps >= self.max_steps)

    def result(self, state: DeepFoolState) -> Solution:
        z = (1 + self.overshoot) * state.z
        margin = norms_of(z)
        # A point whose distance overflows is not a margin.
        is_beyond = (state.status == Status.CONVERGED) & ~jnp.isfinite(margin)
        status = jnp.where(is_beyond, Status.ZERO_GRADIENT, state.status).astype(jnp.int32)
        margin = jnp.where(status == Status.NON_FINITE, jnp.nan, margin)
        margin = jnp.where(status == Status.ZERO_GRADIENT, jnp.inf, margin)
        label = state.candidates[0]
        is_adversarial = status == Status.CONVERGED
        return Solution(
            margin=margin,
            label=label,
            adversarial_label=jnp.where(is_adversarial, state.adversarial_label, label),
            num_steps=state.num_steps,
            status=status,
            coordinates=z,
        )


def deepfool(*, num_candidates: int = 10, overshoot: float = 0.02, max_steps: int = 100) -> DeepFool:
    """DeepFool as the authors of *Hold me tight!* run it in a subspace.

    With y the label and k over the other candidates, w_k = grad (g_k - g_y) and rho_k = |g_k - g_y| / ||w_k|| at the
    iterate z, a step goes to the nearest of the linearised boundaries,

      k* = argmin_k rho_k,    z <- z + max(rho_k*, 1e-4) w_k* / ||w_k*||,

    and the search ends when the label at (1 + overshoot) z is not y. The perturbation is (1 + overshoot) z, an upper
    bound of the margin. A candidate whose w_k is zero is passed over.

    Args:
      num_candidates: classes to move towards, the label included: those with the largest logits at z = 0. A
        classifier with fewer classes has them all as candidates.
      overshoot: relative length added to every iterate before the label is checked.
      max_steps: steps after which a sample is given up.

    Raises:
      ValueError: for fewer than 2 candidates, a negative overshoot, or no step; or what is no single number, known
        when compiling.

    References:
      Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016, arXiv:1511.04599.
      Ortiz-Jimenez, Modas, Moosavi-Dezfooli and Frossard, "Hold me tight!", NeurIPS 2020, arXiv:2002.06349.
    """
    return DeepFool(num_candidates, overshoot, max_steps)
