"""Solvers of the minimal perturbation that changes a label, one sample at a time.

A solver is an immutable value with four pure methods on a *restriction* g, a function from coordinates z of shape
(d,) to logits of shape (L,), with g(0) the logits of the unperturbed sample:

  start(restriction, origin) -> state      the state before the first step; origin is z = 0
  step(restriction, state) -> state        one step; all evaluations of the restriction belong here
  done(state) -> bool                      whether another step would change nothing
  result(state) -> Solution                the answer, from a state that is done

States are pytrees of arrays that keep their shapes and dtypes. A solver owns no loop and knows nothing of images:
`hmt_jax.measure_margins` batches any solver over samples and subspaces, and refills a lane by `start` in every step, so
`start` may ask for the shape of the logits (`jax.eval_shape`) but should evaluate nothing.
"""

from hmt_jax.solvers._deepfool import DeepFool, deepfool
from hmt_jax.solvers._solution import Restriction, Solution, Solver, Status

__all__ = ["DeepFool", "Restriction", "Solution", "Solver", "Status", "deepfool"]
