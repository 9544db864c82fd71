"""Exact margins computed without a solver, as references for solvers.

`piecewise_linear` is for small networks of ReLU and max-pooling in subspaces of a few dimensions, and `sphere` is the
closed form of a curved boundary. Exact solvers are `hmt_jax.solvers.Linear`, for linear classifiers in any subspace,
and `hmt_jax.solvers.Scan`, for any classifier in subspaces of one or two dimensions.
"""

from hmt_jax.exact._piecewise_linear import piecewise_linear
from hmt_jax.exact._sphere import sphere

__all__ = ["piecewise_linear", "sphere"]
