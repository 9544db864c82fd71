"""Distances from images to a network's decision boundary, feature by feature.

`plots` is imported separately, `from hmt_jax import plots`, because it needs matplotlib.
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
from hmt_jax._exported_files import load_exported, save_exported
from hmt_jax._images import PixelRangeWarning
from hmt_jax._programs import cache_programs
from hmt_jax.margins import (
    MarginResult,
    MarginStore,
    bisect,
    measure_in_chunks,
    measure_margin,
    measure_margins,
    measure_to_store,
)
from hmt_jax.models import from_torch_module
from hmt_jax.solvers import Solution, Status

#: The version of this library.
__version__ = "0.1.0"

__all__ = [
    "MarginResult",
    "MarginStore",
    "PixelRangeWarning",
    "Solution",
    "Status",
    "__version__",
    "attacks",
    "bisect",
    "bounds",
    "cache_programs",
    "checkpoints",
    "classifiers",
    "data",
    "exact",
    "frequency",
    "from_torch_module",
    "lanes",
    "load_exported",
    "measure_in_chunks",
    "measure_margin",
    "measure_margins",
    "measure_to_store",
    "models",
    "projections",
    "save_exported",
    "solvers",
    "statistics",
    "subspaces",
    "training",
]
