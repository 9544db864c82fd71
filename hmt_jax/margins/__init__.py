"""Margins of classifiers in subspaces: measured at once, chunk by chunk or for one image, and reduced by bisection."""

from hmt_jax.margins._measure import measure_in_chunks, measure_margin, measure_margins
from hmt_jax.margins._refine import bisect
from hmt_jax.margins._result import MarginResult

__all__ = ["MarginResult", "bisect", "measure_in_chunks", "measure_margin", "measure_margins"]
