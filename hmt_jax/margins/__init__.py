"""Margins of classifiers in subspaces: measured at once, chunk by chunk, into a store, or for one image."""

from hmt_jax.margins._measure import measure_in_chunks, measure_margin, measure_margins
from hmt_jax.margins._refine import bisect
from hmt_jax.margins._result import MarginResult
from hmt_jax.margins._store import MarginStore
from hmt_jax.margins._to_store import measure_to_store

__all__ = [
    "MarginResult",
    "MarginStore",
    "bisect",
    "measure_in_chunks",
    "measure_margin",
    "measure_margins",
    "measure_to_store",
]
