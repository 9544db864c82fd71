"""Solvers of the minimal perturbation that changes a label, one sample at a time.

A solver is an immutable value with four pure methods on a *restriction* g, a function from coordinates z of shape
(d,) to logits of shape (L,), with g(0) the logits of the unperturbed sample:

  start(restriction, at_sample) -> state   the first step, from the linearization of g at z = 0
  step(restriction, state) -> state        one more step
  done(state) -> bool                      whether another step would change nothing
  result(state) -> Solution                the answer, from a state that is done

and with a number `num_candidates` of classes, the label included, that the linearization is to hold. States are pytrees
of arrays that keep their shapes and dtypes. A solver owns no loop and knows nothing of images:
`hmt_jax.measure_margins` linearizes the classifier once for each sample, shares that among all subspaces, and runs any
solver from there in its lanes.
"""

from hmt_jax.solvers._closest_point import ClosestPoint, closest_point
from hmt_jax.solvers._ddn import DDN, ddn
from hmt_jax.solvers._deepfool import DeepFool, deepfool
from hmt_jax.solvers._fmn import FMN, fmn
from hmt_jax.solvers._solution import Linearization, Restriction, Solution, Solver, Status, linearize, normals_of
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
    "linearize",
    "normals_of",
    "superdeepfool",
    "tight",
]
