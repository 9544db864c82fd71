"""Distances from images to a network's decision boundary, feature by feature.

Each name is imported when it is first used, because importing JAX takes a second, and `hmt --help` does not need it.
`plots` is imported separately, with `from hmt_jax import plots`, because it needs matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmt_jax import (
        attacks,
        bounds,
        checkpoints,
        classifiers,
        data,
        estimates,
        exact,
        frequency,
        lanes,
        models,
        projections,
        report,
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
__version__ = "0.1.0b1"

# The modules of the names above that are no modules themselves.
_MODULES = {
    "MarginResult": "margins",
    "MarginStore": "margins",
    "PixelRangeWarning": "_images",
    "Solution": "solvers",
    "Status": "solvers",
    "bisect": "margins",
    "cache_programs": "_programs",
    "from_torch_module": "models",
    "load_exported": "_exported_files",
    "measure_in_chunks": "margins",
    "measure_margin": "margins",
    "measure_margins": "margins",
    "measure_to_store": "margins",
    "save_exported": "_exported_files",
}

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
    "estimates",
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
    "report",
    "save_exported",
    "solvers",
    "statistics",
    "subspaces",
    "training",
]

if not TYPE_CHECKING:  # which would take any name for one of this module

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
        globals()[name] = value = getattr(found, name) if name in _MODULES else found
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
