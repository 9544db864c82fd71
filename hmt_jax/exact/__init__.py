"""Exact margins, where they can be had: what solvers are measured against.

`linear` and `scan` are solvers of `hmt_jax.measure_margins`: of linear classifiers in any subspace, and of any
classifier in subspaces of one or two dimensions. `piecewise_linear` is for small networks of ReLU and max-pooling in
subspaces of a few dimensions, and `sphere` the closed form of a curved boundary.
"""

from hmt_jax.exact._closed_forms import linear, sphere
from hmt_jax.exact._piecewise_linear import piecewise_linear
from hmt_jax.solvers._scan import scan

__all__ = ["linear", "piecewise_linear", "scan", "sphere"]
