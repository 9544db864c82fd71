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

from hmt_jax import _tables
from hmt_jax._checks import as_array, check_key
from hmt_jax.margins import MarginResult
from hmt_jax.solvers import Status

__all__ = [
    "MarginComparison",
    "MarginSummary",
    "bootstrap_medians",
    "censored",
    "censored_margins",
    "compare",
    "percentile",
    "summarize",
]


@dataclasses.dataclass(frozen=True)
class MarginSummary:
    """Order statistics of margins, for each of R subspaces. They are printed as a table with a row for each.

    Attributes:
      median: (R,) medians; infinite if half of the margins or more are censored, NaN if there are no margins.
      median_interval: (R, 2) bootstrap interval of each median.
      confidence: the probability with which that interval should cover the median.
      percentiles: (R, P) percentiles of the margins.
      ranks: the P percentages that `percentiles` holds, in [0, 100].
      counts: for each `hmt_jax.Status`, by its lower-case name, the (R,) numbers of samples.
      names: the names of the R subspaces; if None, their numbers are printed.

    >>> counts = {status.name.lower(): np.array([0]) for status in Status} | {"converged": np.array([8])}
    >>> found, percentiles = np.array([[0.4, 0.6]]), np.array([[0.1, 0.9]])
    >>> MarginSummary(np.array([0.5]), found, confidence=0.95, percentiles=percentiles, ranks=(5, 95), counts=counts)
    Margins of 8 images (L2, pixels in [0, 1])
    subspace  median    95% interval     5%    95%  converged
    0          0.500  0.400 to 0.600  0.100  0.900          8
    """

    median: np.ndarray
    median_interval: np.ndarray
    confidence: float
    percentiles: np.ndarray
    ranks: tuple[float, ...]
    counts: dict[str, np.ndarray]
    names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        num_samples = int(np.sum(list(self.counts.values()), axis=0).max(initial=0))
        rows = _tables.table(
            [
                _name_column(self.names, len(self.median)),
                ("median", _tables.numbers(self.median)),
                (_interval_title(self.confidence), _tables.intervals(self.median_interval)),
                *(
                    (f"{rank:g}%", _tables.numbers(values))
                    for rank, values in zip(self.ranks, self.percentiles.T, strict=True)
                    if rank != 50  # the median
                ),
                *_count_columns(self.counts),
            ]
        )
        return f"Margins of {_tables.counted(num_samples, 'image')} (L2, pixels in [0, 1])\n{rows}"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MarginComparison:
    """Ratios of paired margins b / a, for each of R subspaces. They are printed as a table with a row for each.

    Here, a pair is the two margins of one sample, in a and in b. If the margin in b is censored, the ratio is infinite;
    if the one in a is, the ratio is 0. If both are, nothing is known of the ratio, and the pair is left out of the
    ratios and of the shares. If either status is NON_FINITE, the pair is left out of everything.

    Attributes:
      median_ratio: (R,) medians of the ratios of pairs; infinite or 0 if half of them or more are censored in one
        result, NaN if there are none.
      median_ratio_interval: (R, 2) bootstrap interval of each.
      ratio_of_medians: (R,) median margin of b over that of a, with censored margins larger than all others; NaN if
        both medians are censored.
      ratio_of_medians_interval: (R, 2) bootstrap interval of each.
      confidence: the probability with which an interval should cover its ratio.
      larger: (R,) share of the pairs with a known ratio in which the margin of b is larger; NaN if there are none.
      smaller: (R,) share in which it is smaller.
      equal: (R,) share in which both are equal, to the last bit.
      counts: (R,) numbers of pairs: `compared`, with a known ratio, of which `censored_in_a` have no margin in a,
        `censored_in_b` none in b, and `other_label` another label in b than in a; and those left out,
        `censored_in_both` and `non_finite`.
      names: the names of the R subspaces; if None, their numbers are printed.

    >>> MarginComparison(
    ...     median_ratio=np.array([1.5]),
    ...     median_ratio_interval=np.array([[1.25, 1.75]]),
    ...     ratio_of_medians=np.array([1.5]),
    ...     ratio_of_medians_interval=np.array([[1.25, 1.75]]),
    ...     confidence=0.95,
    ...     larger=np.array([0.875]),
    ...     smaller=np.array([0.125]),
    ...     equal=np.array([0.0]),
    ...     counts={"compared": np.array([8])},
    ...     names=("low",),
    ... )
    Ratios b / a of paired margins
    subspace  median ratio  95% interval  ratio of medians  95% interval  larger  smaller  equal  compared
    low               1.50  1.25 to 1.75              1.50  1.25 to 1.75   87.5%    12.5%   0.0%         8
    """

    median_ratio: np.ndarray
    median_ratio_interval: np.ndarray
    ratio_of_medians: np.ndarray
    ratio_of_medians_interval: np.ndarray
    confidence: float
    larger: np.ndarray
    smaller: np.ndarray
    equal: np.ndarray
    counts: dict[str, np.ndarray]
    names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        interval = _interval_title(self.confidence)
        rows = _tables.table(
            [
                _name_column(self.names, len(self.median_ratio)),
                ("median ratio", _tables.numbers(self.median_ratio)),
                (interval, _tables.intervals(self.median_ratio_interval)),
                ("ratio of medians", _tables.numbers(self.ratio_of_medians)),
                (interval, _tables.intervals(self.ratio_of_medians_interval)),
                *((name, _tables.shares(getattr(self, name))) for name in ("larger", "smaller", "equal")),
                *_count_columns(self.counts),
            ]
        )
        return f"Ratios b / a of paired margins\n{rows}"


def summarize(
    result: MarginResult,
    *,
    ranks: Sequence[float] = (5, 50, 95),
    confidence: float = 0.95,
    num_resamples: int = 1000,
    key: jax.Array | None = None,
    names: Sequence[str] | None = None,
) -> MarginSummary:
    """Medians, percentiles and counts for each subspace, over its samples.

    The interval of a median is a percentile bootstrap: each of `num_resamples` draws takes N samples with
    replacement, and their median. The draws are the same for every subspace.

    Args:
      result: margins with axes (R, N).
      ranks: percentages, in [0, 100], of the percentiles to return.
      confidence: confidence of the interval, in (0, 1).
      num_resamples: number of bootstrap draws.
      key: random key of the draws; `jax.random.key(0)` if not given.
      names: names of the R subspaces, for the printed table.

    Raises:
      ValueError: if the ranks, the confidence or the number of resamples are out of range, or there are not R names.
      TypeError: if `result` is not a MarginResult, or `key` not a random key.

    >>> from hmt_jax import measure_margins, subspaces
    >>> network = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, np.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 2, 2, 1))
    >>> summarize(measure_margins(network, images, subspaces.full((2, 2, 1))), names=["whole space"])
    Margins of 5 images (L2, pixels in [0, 1])
    subspace     median     95% interval      5%    95%  converged
    whole space  0.0767  0.0219 to 0.407  0.0284  0.383          5
    """
    ranks = tuple(ranks)
    if not all(0 <= rank <= 100 for rank in ranks):
        raise ValueError(f"ranks must be percentages between 0 and 100, got {ranks}")
    check_bootstrap(confidence, num_resamples)
    margins = censored_margins(result)
    names = _checked_names(names, len(margins))
    medians = bootstrap_medians(jax.random.key(0) if key is None else key, margins, num_resamples)
    return MarginSummary(
        median=percentile(margins, 50),
        median_interval=_interval(medians, confidence),
        confidence=confidence,
        percentiles=np.array([percentile(margins, rank) for rank in ranks]).reshape(-1, len(margins)).T,
        ranks=ranks,
        counts={status.name.lower(): np.sum(result.status == status, axis=1) for status in Status},
        names=names,
    )


def compare(
    a: MarginResult,
    b: MarginResult,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    key: jax.Array | None = None,
    names: Sequence[str] | None = None,
) -> MarginComparison:
    """Ratios b / a of the margins of the same samples, for each subspace, and the shares that are larger and smaller.

    The results may be of two networks, which may give a sample different labels: `counts["other_label"]` says how many.
    Intervals are a percentile bootstrap over samples: a draw takes a sample's margins in a and in b together, and the
    draws are the same for every subspace. Some draws may have no ratio, because both of their medians are censored, or
    all of their pairs are left out. An interval is NaN if there are more of these than draws beyond one of its ends.

    Args:
      a: margins with axes (R, N).
      b: margins of the same N samples in the same R subspaces, in the same order.
      confidence: confidence of the intervals, in (0, 1).
      num_resamples: number of bootstrap draws.
      key: random key of the draws; `jax.random.key(0)` if not given.
      names: names of the R subspaces, for the printed table.

    Raises:
      ValueError: if the shapes of the results differ, the confidence or the number of resamples are out of range, or
        there are not R names.
      TypeError: if `a` or `b` is not a MarginResult, or `key` not a random key.

    >>> from hmt_jax import measure_margins, subspaces
    >>> network = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, np.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 2, 2, 1))
    >>> margins = measure_margins(network, images, subspaces.full((2, 2, 1)))
    >>> twice = dataclasses.replace(margins, margin=2 * margins.margin)
    >>> compare(margins, twice)
    Ratios b / a of paired margins
    subspace  median ratio  95% interval  ratio of medians  95% interval  larger  smaller  equal  compared
    0                 2.00  2.00 to 2.00              2.00  2.00 to 2.00  100.0%     0.0%   0.0%         5
    """
    check_bootstrap(confidence, num_resamples)
    of_a, of_b = (censored_margins(result).astype(float) for result in (a, b))
    if of_a.shape != of_b.shape:
        raise ValueError(
            "a and b must hold margins of the same images in the same subspaces, got results of "
            f"{of_a.shape} and {of_b.shape} (subspaces, images): select those that both have, as in a[:, is_in_both]"
        )
    names = _checked_names(names, len(of_a))
    is_missing = np.isnan(of_a) | np.isnan(of_b)
    of_a, of_b = (np.where(is_missing, np.nan, margins) for margins in (of_a, of_b))
    ratios = _ratios(of_b, of_a)
    is_compared = ~np.isnan(ratios)

    rows = np.concatenate([of_a, of_b, ratios])  # together, so that all have the same draws
    medians_a, medians_b, median_ratio = np.split(percentile(rows, 50), 3)
    resampled = bootstrap_medians(jax.random.key(0) if key is None else key, rows, num_resamples)
    resampled_a, resampled_b, resampled_ratios = np.split(resampled, 3)

    def share(is_so):
        num_compared = is_compared.sum(axis=1)
        return np.where(num_compared > 0, (is_so & is_compared).sum(axis=1) / np.maximum(num_compared, 1), np.nan)

    return MarginComparison(
        median_ratio=median_ratio,
        median_ratio_interval=_known_interval(resampled_ratios, confidence),
        ratio_of_medians=_ratios(medians_b, medians_a),
        ratio_of_medians_interval=_known_interval(_ratios(resampled_b, resampled_a), confidence),
        confidence=confidence,
        larger=share(of_b > of_a),
        smaller=share(of_b < of_a),
        equal=share(of_b == of_a),
        counts={
            name: np.sum(is_counted, axis=1)
            for name, is_counted in {
                "compared": is_compared,
                "censored_in_a": np.isinf(of_a) & is_compared,
                "censored_in_b": np.isinf(of_b) & is_compared,
                "other_label": (a.label != b.label) & is_compared,
                "censored_in_both": np.isinf(of_a) & np.isinf(of_b),
                "non_finite": is_missing,
            }.items()
        },
        names=names,
    )


def censored_margins(result: MarginResult) -> np.ndarray:
    """Margins (R, N) with infinity for censored samples, and NaN for samples without a margin.

    Args:
      result: margins with axes (R, N).

    Raises:
      TypeError: if it is not a MarginResult.

    >>> from hmt_jax import measure_margins, subspaces
    >>> network = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, np.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 2, 2, 1))
    >>> margins = measure_margins(network, images, subspaces.full((2, 2, 1)))
    >>> none_found = dataclasses.replace(margins, status=np.full((1, 5), Status.OUT_OF_STEPS))
    >>> censored_margins(none_found).tolist()
    [[inf, inf, inf, inf, inf]]
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


def _ratios(upper, lower) -> np.ndarray:
    """Ratios of margins; 1 if both are 0, and NaN if both are infinite, because nothing is known then."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((upper == 0) & (lower == 0), 1.0, upper / lower)


def _interval(resampled, confidence) -> np.ndarray:
    """The percentile interval (R, 2) of resampled values (R, num_resamples)."""
    tail = 50 * (1 - confidence)
    return np.stack([percentile(resampled, tail), percentile(resampled, 100 - tail)], axis=-1)


def _known_interval(resampled, confidence) -> np.ndarray:
    """The same interval, but NaN if one of its ends may lie among the values that are NaN."""
    is_known = np.isnan(resampled).mean(axis=-1, keepdims=True) <= (1 - confidence) / 2
    return np.where(is_known, _interval(resampled, confidence), np.nan)


def check_bootstrap(confidence: float, num_resamples: int = 1) -> None:
    """Raises ValueError for a confidence or a number of resamples out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")


def _checked_names(names, num_subspaces) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(names) != num_subspaces:
        found = repr(names) if isinstance(names, str) else len(names)
        raise ValueError(f"names must be a list with one name for each of the {num_subspaces} subspaces, got {found}")
    return tuple(map(str, names))


def _name_column(names, num_subspaces) -> tuple[str, Sequence[str]]:
    return "subspace", names if names is not None else [str(r) for r in range(num_subspaces)]


def _interval_title(confidence) -> str:
    return f"{100 * confidence:g}% interval"


def _count_columns(counts) -> list[tuple[str, list[str]]]:
    """Columns of the first count, and of all others that are not 0 everywhere."""
    return [(name, [str(n) for n in found]) for i, (name, found) in enumerate(counts.items()) if i == 0 or found.any()]
