"""Summaries of margins over samples.

A sample whose search ended without a boundary (out of steps, zero gradient, unconfirmed) has a *censored* margin: it
enters order statistics as larger than every margin that was found, so that a median is finite only if more than half of
the samples have a margin. Unconfirmed samples are not left out, because that would favour samples whose margins are
easy to find. Samples with the status NON_FINITE have no margin at all and are left out. Both kinds are counted.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from hmt_jax._checks import as_array, check_key
from hmt_jax.margins import MarginResult
from hmt_jax.solvers import Status

__all__ = ["MarginSummary", "bootstrap_medians", "censored", "censored_margins", "percentile", "summarize"]


@dataclasses.dataclass(frozen=True)
class MarginSummary:
    """Order statistics of margins, for each of R subspaces.

    Attributes:
      median: (R,) medians; infinite where half of the margins or more are censored, NaN where there are none.
      median_interval: (R, 2) bootstrap interval of each median.
      confidence: the probability with which that interval should cover the median.
      percentiles: (R, P) percentiles of the margins.
      ranks: the P percentages that `percentiles` holds, in [0, 100].
      counts: for each `hmt_jax.Status`, by its lower-case name, the (R,) numbers of samples.
    """

    median: np.ndarray
    median_interval: np.ndarray
    confidence: float
    percentiles: np.ndarray
    ranks: tuple[float, ...]
    counts: dict[str, np.ndarray]


def summarize(
    result: MarginResult,
    *,
    ranks: Sequence[float] = (5, 50, 95),
    confidence: float = 0.95,
    num_resamples: int = 1000,
    key: jax.Array | None = None,
) -> MarginSummary:
    """Medians, percentiles and counts for each subspace, over its samples.

    The interval of a median is a percentile bootstrap: each of `num_resamples` draws takes N samples, with
    replacement, and has a median. The draws are the same for every subspace.

    Args:
      result: margins with axes (R, N).
      ranks: percentages, in [0, 100], of the percentiles to return.
      confidence: confidence of the interval, in (0, 1).
      num_resamples: number of bootstrap draws.
      key: random key of the draws; `jax.random.key(0)` if not given.

    Raises:
      ValueError: if the ranks, the confidence or the number of resamples are out of range.
      TypeError: if `result` is no MarginResult, or `key` no random key.
    """
    ranks = tuple(ranks)
    if not all(0 <= rank <= 100 for rank in ranks):
        raise ValueError(f"ranks must be percentages between 0 and 100, got {ranks}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    margins = censored_margins(result)
    tail = 50 * (1 - confidence)
    key = jax.random.key(0) if key is None else key
    medians = bootstrap_medians(key, margins, num_resamples)
    return MarginSummary(
        median=percentile(margins, 50),
        median_interval=np.stack([percentile(medians, tail), percentile(medians, 100 - tail)], axis=-1),
        confidence=confidence,
        percentiles=np.array([percentile(margins, rank) for rank in ranks]).reshape(-1, len(margins)).T,
        ranks=ranks,
        counts={status.name.lower(): np.sum(result.status == status, axis=1) for status in Status},
    )


def censored_margins(result: MarginResult) -> np.ndarray:
    """Margins (R, N) with infinity for censored samples, and NaN for samples without a margin.

    Args:
      result: margins with axes (R, N).

    Raises:
      TypeError: if it is no MarginResult.
    """
    if not isinstance(result, MarginResult):
        raise TypeError(
            f"pass the MarginResult of hmt_jax.measure_margins, got {type(result)}; for stored arrays, compute order "
            "statistics with hmt_jax.statistics.censored(margin, status) and percentile"
        )
    return censored(result.margin, result.status)


def censored(margin: np.ndarray, status: np.ndarray) -> np.ndarray:
    """Margins with infinity for censored samples, and NaN for samples without a margin, from a result's arrays.

    Args:
      margin: the margins.
      status: the `hmt_jax.Status` of each.

    >>> status = [Status.CONVERGED, Status.OUT_OF_STEPS, Status.NON_FINITE]
    >>> censored(np.array([1.0, 2.0, 3.0]), np.array(status)).tolist()
    [1.0, inf, nan]
    """
    found = np.where(status == Status.CONVERGED, margin, np.inf)
    return np.where(status == Status.NON_FINITE, np.nan, found)


def percentile(values: ArrayLike, rank: float) -> np.ndarray:
    """The percentile (...) of values (..., N), some of which may be infinite; NaNs are left out.

    Neighbouring values are interpolated linearly, as in NumPy; between a finite and an infinite value the percentile is
    infinite. It is NaN if no value is left.

    Args:
      values: (..., N).
      rank: a percentage in [0, 100].

    Raises:
      ValueError: if the rank is not between 0 and 100.

    >>> percentile(np.array([[1.0, 2.0, 4.0, np.inf], [3.0, np.nan, 5.0, np.nan]]), 50).tolist()
    [3.0, 4.0]
    """
    if not 0 <= rank <= 100:
        raise ValueError(f"rank must be a percentage between 0 and 100, got {rank}")
    ordered = np.sort(np.asarray(as_array("values", values), float), axis=-1)  # NaNs last
    if not ordered.shape[-1]:
        return np.full(ordered.shape[:-1], np.nan)[()]
    num_values = np.sum(~np.isnan(ordered), axis=-1)
    position = np.maximum(rank * (num_values - 1) / 100, 0)
    below, above = (
        np.take_along_axis(ordered, end(position).astype(int)[..., None], axis=-1)[..., 0]
        for end in (np.floor, np.ceil)
    )
    with np.errstate(invalid="ignore"):  # between two infinite ones
        return np.where(below == above, below, below + position % 1 * (above - below))[()]


def bootstrap_medians(key: jax.Array, margins: np.ndarray, num_resamples: int) -> np.ndarray:
    """Medians (R, num_resamples) of margins (R, N), over samples drawn with replacement.

    Args:
      key: random key of the draws.
      margins: (R, N), as from `censored_margins`.
      num_resamples: number of draws, which all R rows share.

    >>> bootstrap_medians(jax.random.key(0), np.full((1, 4), 2.0), 3).tolist()
    [[2.0, 2.0, 2.0]]
    """
    check_key(key)
    num_samples = margins.shape[1]
    draws = np.asarray(jax.random.randint(key, (num_resamples, num_samples), 0, num_samples))
    return np.array([percentile(row[draws], 50) for row in margins])
