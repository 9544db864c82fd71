"""Where a network's decision boundary is, feature by feature.

`plots` is imported by itself, `from hmt_jax import plots`, for it needs matplotlib.
"""

from hmt_jax import (
    attacks,
    bounds,
    checkpoints,
    classifiers,
    data,
    exact,
    frequency,
    lanes,
    models,
    projections,
    solvers,
    statistics,
    subspaces,
    training,
)
from hmt_jax._checks import PixelRangeWarning
from hmt_jax.margins import MarginResult, deepfool, measure_margins
from hmt_jax.solvers import Solution, Status

__all__ = [
    "MarginResult",
    "PixelRangeWarning",
    "Solution",
    "Status",
    "attacks",
    "bounds",
    "checkpoints",
    "classifiers",
    "data",
    "deepfool",
    "exact",
    "frequency",
    "lanes",
    "measure_margins",
    "models",
    "projections",
    "solvers",
    "statistics",
    "subspaces",
    "training",
]
