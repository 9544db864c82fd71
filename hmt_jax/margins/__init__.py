"""Margins of classifiers in subspaces: measured whole, chunk by chunk, or for one sample, and made smaller."""

from hmt_jax.margins._measure import measure_in_chunks, measure_margin, measure_margins
from hmt_jax.margins._refine import bisect
from hmt_jax.margins._result import MarginResult

__all__ = ["MarginResult", "bisect", "measure_in_chunks", "measure_margin", "measure_margins"]
