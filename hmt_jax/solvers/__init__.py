"""Solvers that search for the smallest perturbation that changes a label, one sample at a time.

A *restriction* g is a function from coordinates z of shape (d,) to logits of shape (L,). Its value g(0) is the logits
of the unperturbed sample. A solver is an immutable value with four pure methods:

  start(restriction, at_sample) -> state   the first step, from the linearisation of g at z = 0
  step(restriction, state) -> state        one more step
  done(state) -> bool                      whether the search has ended
  point(state) -> Point                    the nearest adversarial point so far, and its label

and two numbers. `num_candidates` is the number of classes in the linearisation, including the label; it is 1 if the
solver needs no gradients at the sample. `max_steps` is the number of steps after which a search is stopped. States are
pytrees of arrays, which may be random keys. A step keeps their shapes and dtypes.

A solver decides where to go, and `hmt_jax.measure_margins` does the rest. It linearises the classifier once for each
sample and shares the linearisation among all subspaces. It counts the steps, and stops searches that meet NaN or have
no gradient. At the end it evaluates the point found once more, and computes the margin, the labels and the `Status`.

`DeepFool` is the solver of the paper; its margins are upper bounds, 1.5 to 2.3 times too large on a LeNet. `tight`
comes within a few percent of the smallest known margins. `Scan` and `Linear` are exact where they apply. This example
is a solver that walks along the first-order direction and doubles the distance until the label changes:

>>> import dataclasses
>>> import jax, jax.numpy as jnp
>>> import hmt_jax
>>> from hmt_jax.solvers import Point, label_of
>>> @dataclasses.dataclass(frozen=True)
... class StraightAhead:
...     num_candidates: int = 2
...     max_steps: int = 20
...     def start(self, restriction, at_sample):
...         logits, (label, other), (normal,) = at_sample
...         z = (logits[label] - logits[other]) / (normal @ normal) * normal
...         return Point(z, label_of(restriction(z))), label
...     def step(self, restriction, state):
...         (z, _), label = state
...         return Point(2 * z, label_of(restriction(2 * z))), label
...     def done(self, state):
...         return state[0].label != state[1]
...     def point(self, state):
...         return state[0]
>>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
>>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
>>> whole = hmt_jax.subspaces.full((2, 2, 1))
>>> result = hmt_jax.measure_margins(classifier, image, whole, StraightAhead(), keep_coordinates=True)
>>> result = hmt_jax.bisect(classifier, image, whole, result)
>>> f"{result.margin[0, 0]:.3f}"  # (0.9 - 0.5) / sqrt(2)
'0.283'
"""

from hmt_jax.solvers._base import (
    Linearization,
    Point,
    Restriction,
    Solution,
    Solver,
    Status,
    has_label,
    label_of,
    linearize,
    normals_of,
    norms_of,
)
from hmt_jax.solvers._closest_point import ClosestPoint
from hmt_jax.solvers._ddn import DDN
from hmt_jax.solvers._deepfool import DeepFool
from hmt_jax.solvers._fmn import FMN
from hmt_jax.solvers._linear import Linear
from hmt_jax.solvers._scan import Scan
from hmt_jax.solvers._superdeepfool import SuperDeepFool
from hmt_jax.solvers._walk import Walk, tight

__all__ = [
    "DDN",
    "FMN",
    "ClosestPoint",
    "DeepFool",
    "Linear",
    "Linearization",
    "Point",
    "Restriction",
    "Scan",
    "Solution",
    "Solver",
    "Status",
    "SuperDeepFool",
    "Walk",
    "has_label",
    "label_of",
    "linearize",
    "normals_of",
    "norms_of",
    "tight",
]
