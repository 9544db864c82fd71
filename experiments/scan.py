"""Margins along a line without a solver's error: the line is walked both ways until the label changes.

DeepFool's margins are upper bounds. In one dimension there is a way to see by how much they overstate.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import Solution, Status

_POINTS_IN_A_STEP = 16  # on either side: products of matrices are large enough then


class _State(NamedTuple):
    z: jax.Array  # (1,), where the label changed
    label: jax.Array
    adversarial_label: jax.Array
    num_steps: jax.Array
    status: jax.Array  # OUT_OF_STEPS while the search goes on


@dataclasses.dataclass(frozen=True)
class LineScan:
    """A solver of `hmt_jax.measure_margins` for subspaces of one dimension.

    The label is looked at every multiple of `resolution` away, on both sides; the margin is the first at which it has
    changed, at most `resolution` above the true one unless the label changes twice in between. Without a change
    within `reach` the margin is censored.

    Attributes:
      resolution: of the distance, in pixels.
      reach: the greatest distance looked at.
    """

    resolution: float
    reach: float
    num_candidates = 2  # the scan needs no gradient, and a linearization has two classes at least

    def __post_init__(self):
        if not 0 < self.resolution <= self.reach:
            raise ValueError(f"resolution must be positive and at most reach, got {self.resolution} and {self.reach}")

    def start(self, restriction, at_sample):
        origin = jnp.zeros_like(at_sample.normals[0])
        if origin.shape != (1,):
            raise ValueError(f"a line is scanned, so the subspace must have dimension 1, got {origin.shape[0]}")
        nothing = jnp.zeros((), jnp.int32)
        return _State(origin, nothing, nothing, nothing, nothing + Status.OUT_OF_STEPS)

    def step(self, restriction, state):
        first = state.num_steps * _POINTS_IN_A_STEP
        distances = self.resolution * (first + jnp.arange(_POINTS_IN_A_STEP)).astype(state.z.dtype)
        points = jnp.stack([distances, -distances], axis=1).reshape(-1, 1)  # from near to far
        logits = jax.vmap(restriction)(points)
        labels = jnp.argmax(logits, axis=1).astype(jnp.int32)
        # The first point of all is the sample itself.
        own_label = jnp.where(jnp.isfinite(logits[0]).all(), labels[0], -1)
        label = jnp.where(state.num_steps == 0, own_label, state.label)
        is_other = (labels != label) & (jnp.abs(points[:, 0]) <= self.reach)
        found = jnp.argmax(is_other)
        status = jnp.where(is_other.any(), Status.CONVERGED, Status.OUT_OF_STEPS)
        status = jnp.where(jnp.isfinite(logits).all(), status, Status.NON_FINITE).astype(jnp.int32)
        return _State(points[found], label, labels[found], state.num_steps + 1, status)

    def done(self, state):
        reached = self.resolution * (state.num_steps * _POINTS_IN_A_STEP)
        return (state.status != Status.OUT_OF_STEPS) | (reached > self.reach)

    def result(self, state):
        not_found = jnp.where(state.status == Status.NON_FINITE, jnp.nan, self.reach)
        return Solution(
            margin=jnp.where(state.status == Status.CONVERGED, jnp.abs(state.z[0]), not_found),
            label=state.label,
            adversarial_label=jnp.where(state.status == Status.CONVERGED, state.adversarial_label, state.label),
            num_steps=state.num_steps,
            status=state.status,
            coordinates=state.z,
        )
