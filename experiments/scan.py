"""Margins along a line without a solver's error: the line is walked both ways until the label changes.

DeepFool's margins are upper bounds. In one dimension there is a way to see by how much they overstate.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax.solvers import Solution, Status


class _State(NamedTuple):
    distance: jax.Array  # to the farther of the two points looked at
    side: jax.Array  # the direction in which the label changed, 1 or -1
    label: jax.Array
    adversarial_label: jax.Array
    num_steps: jax.Array
    status: jax.Array  # OUT_OF_STEPS while the search goes on


@dataclasses.dataclass(frozen=True)
class LineScan:
    """A solver of `hmt_jax.measure_margins` for subspaces of one dimension.

    Step n looks at the labels n * resolution away on both sides; the margin is the first distance at which one has
    changed, at most `resolution` above the true one unless the label changes twice in between. Without a change
    within `reach` the margin is censored.

    Attributes:
      resolution: of the distance, in pixels.
      reach: the greatest distance looked at.
    """

    resolution: float
    reach: float

    def __post_init__(self):
        if not 0 < self.resolution <= self.reach:
            raise ValueError(f"resolution must be positive and at most reach, got {self.resolution} and {self.reach}")

    def start(self, restriction, origin):
        if origin.shape != (1,):
            raise ValueError(f"a line is scanned, so the subspace must have dimension 1, got {origin.shape[0]}")
        nothing = jnp.zeros((), jnp.int32)
        return _State(jnp.zeros((), origin.dtype), nothing, nothing, nothing, nothing, nothing + Status.OUT_OF_STEPS)

    def step(self, restriction, state):
        distance = (self.resolution * state.num_steps).astype(state.distance.dtype)
        logits = jnp.stack([restriction(distance[None]), restriction(-distance[None])])
        labels = jnp.argmax(logits, axis=1).astype(jnp.int32)
        label = jnp.where(state.num_steps == 0, labels[0], state.label)  # the first step looks at the sample itself
        is_other = labels != label
        side = jnp.argmax(is_other)
        status = jnp.where(is_other.any(), Status.CONVERGED, Status.OUT_OF_STEPS)
        status = jnp.where(jnp.isfinite(logits).all(), status, Status.NON_FINITE).astype(jnp.int32)
        return _State(distance, (1 - 2 * side).astype(jnp.int32), label, labels[side], state.num_steps + 1, status)

    def done(self, state):
        return (state.status != Status.OUT_OF_STEPS) | (self.resolution * state.num_steps > self.reach)

    def result(self, state):
        return Solution(
            margin=jnp.where(state.status == Status.NON_FINITE, jnp.nan, state.distance),
            label=state.label,
            adversarial_label=jnp.where(state.status == Status.CONVERGED, state.adversarial_label, state.label),
            num_steps=state.num_steps,
            status=state.status,
            coordinates=(state.side * state.distance)[None],
        )
