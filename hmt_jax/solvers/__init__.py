"""Solvers of the minimal perturbation that changes a label, one sample at a time.

A solver is an immutable value with four pure methods on a *restriction* g, a function from coordinates z of shape
(d,) to logits of shape (L,), with g(0) the logits of the unperturbed sample:

  start(restriction, at_sample) -> state   the first step, from the linearization of g at z = 0
  step(restriction, state) -> state        one more step
  done(state) -> bool                      whether another step would change nothing
  result(state) -> Solution                the answer, from a state that is done

and with a number `num_candidates` of classes, the label included, that the linearization is to hold. States are pytrees
of arrays, random keys included, that keep their shapes and dtypes. A solver owns no loop and knows nothing of images:
`hmt_jax.measure_margins` linearizes the classifier once for each sample, shares that among all subspaces, and runs any
solver from there in its lanes. A pair that is not done after `max_steps` calls of `step` gets the status OUT_OF_STEPS;
`max_steps` is an attribute of the solver, or 1000 if it has none.

`deepfool` is that of the paper, whose margins are upper bounds, 1.5 to 2.5 times too large on a LeNet; `tight` comes
within some percent of the least margins known. A new solver is such a value, here one that goes straight ahead along
the first-order direction and doubles the distance until the label changes:

>>> import dataclasses
>>> from typing import NamedTuple
>>> import jax, jax.numpy as jnp
>>> import hmt_jax
>>> from hmt_jax.solvers import Solution, Status, has_label, norms_of
>>> class State(NamedTuple):
...     direction: jax.Array
...     distance: jax.Array
...     label: jax.Array
...     label_there: jax.Array
...     num_steps: jax.Array
...     status: jax.Array
>>> @dataclasses.dataclass(frozen=True)
... class StraightAhead:
...     num_candidates: int = 2
...     max_steps: int = 20
...     def start(self, restriction, at_sample):
...         logits, (label, other), (normal,) = at_sample
...         length = norms_of(normal)
...         status = jnp.where(length > 0, Status.OUT_OF_STEPS, Status.ZERO_GRADIENT)
...         status = jnp.where(has_label(logits) & jnp.isfinite(length), status, Status.NON_FINITE).astype(jnp.int32)
...         label = jnp.where(has_label(logits), label, -1)
...         distance = jnp.where(length > 0, (logits[label] - logits[other]) / length, jnp.inf)
...         return State(normal / length, distance, label, label, jnp.asarray(0), status)
...     def step(self, restriction, state):
...         distance = 2 * state.distance
...         logits = restriction(distance * state.direction)
...         label = jnp.where(has_label(logits), jnp.argmax(logits), state.label).astype(jnp.int32)
...         status = jnp.where(label != state.label, Status.CONVERGED, state.status)
...         status = jnp.where(has_label(logits), status, Status.NON_FINITE).astype(jnp.int32)
...         return State(state.direction, distance, state.label, label, state.num_steps + 1, status)
...     def done(self, state):
...         return state.status != Status.OUT_OF_STEPS
...     def result(self, state):
...         margin = jnp.where(state.status == Status.NON_FINITE, jnp.nan, state.distance)
...         z = state.distance * state.direction
...         return Solution(margin, state.label, state.label_there, state.num_steps, state.status, z)
>>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
>>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
>>> stack = hmt_jax.subspaces.full((2, 2, 1))
>>> result = hmt_jax.measure_margins(classifier, image, stack, StraightAhead(), num_bisections=12)
>>> f"{result.margin[0, 0]:.3f}"  # (0.9 - 0.5) / sqrt(2)
'0.283'
"""

from hmt_jax.solvers._closest_point import ClosestPoint, closest_point
from hmt_jax.solvers._ddn import DDN, ddn
from hmt_jax.solvers._deepfool import DeepFool, deepfool
from hmt_jax.solvers._fmn import FMN, fmn
from hmt_jax.solvers._solution import (
    Linearization,
    Restriction,
    Solution,
    Solver,
    Status,
    has_label,
    linearize,
    normals_of,
    norms_of,
)
from hmt_jax.solvers._superdeepfool import SuperDeepFool, superdeepfool
from hmt_jax.solvers._walk import Walk, tight

__all__ = [
    "DDN",
    "FMN",
    "ClosestPoint",
    "DeepFool",
    "Linearization",
    "Restriction",
    "Solution",
    "Solver",
    "Status",
    "SuperDeepFool",
    "Walk",
    "closest_point",
    "ddn",
    "deepfool",
    "fmn",
    "has_label",
    "linearize",
    "normals_of",
    "norms_of",
    "superdeepfool",
    "tight",
]
