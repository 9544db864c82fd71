"""The numbers on a page, computed from margins."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hmt_jax import statistics
from hmt_jax.report._content import Measurement

RANKS = (5, 25, 50, 75, 95)
# Draws of the bootstrap, and fewer of them where each takes long.
_NUM_RESAMPLES, _FEW_RESAMPLES, _MANY_MARGINS = 1000, 200, 200_000


class Numbers(NamedTuple):
    """Order statistics of one measurement.

    Attributes:
      margins: (R, N), infinite where they are censored and NaN where there are none.
      percentiles: (R, 5), at `RANKS`.
      interval: (R, 2), the bootstrap interval of each median.
      counts: the (R,) numbers of samples of each status, by its name.
      num_resamples: draws of the bootstrap.
      bounds: (R,) medians of the certified bounds, or None.
    """

    margins: np.ndarray
    percentiles: np.ndarray
    interval: np.ndarray
    counts: dict[str, np.ndarray]
    num_resamples: int
    bounds: np.ndarray | None

    @property
    def median(self) -> np.ndarray:
        """The (R,) medians."""
        return self.percentiles[:, RANKS.index(50)]

    @property
    def num_failed(self) -> np.ndarray:
        """The (R,) numbers of samples without a margin."""
        return sum((counts for name, counts in self.counts.items() if name != "converged"), np.zeros(len(self.margins)))


def numbers_of(measurement: Measurement) -> Numbers:
    """The order statistics of a measurement."""
    num_resamples = _num_resamples(measurement)
    summary = statistics.summarize(measurement.result, ranks=RANKS, num_resamples=num_resamples)
    bounds = None if measurement.bounds is None else statistics.percentile(measurement.bounds, 50)
    return Numbers(
        statistics.censored_margins(measurement.result),
        summary.percentiles,
        summary.median_interval,
        summary.counts,
        num_resamples,
        bounds,
    )


class Pair(NamedTuple):
    """Two measurements in the same subspaces, and the ratios of their margins of the images that both have.

    The ratios are those of the second one to the first one.
    """

    first: int
    second: int
    same_classifier: bool
    ratios: statistics.MarginComparison
    num_resamples: int


def pairs_of(measurements: Sequence[Measurement]) -> list[Pair]:
    """Measurements with some of the same images in the same subspaces, each beside earlier ones.

    These are the first one by the same solver, and those of the same classifier by other solvers. If there is neither,
    it is the first of all.
    """
    found = []
    for b, second in enumerate(measurements):
        shared = {a: places for a in range(b) if len((places := _shared(measurements[a], second))[0])}
        solvers = {a: measurements[a].result.solver for a in shared}
        same_solver = [a for a, solver in solvers.items() if solver == second.result.solver][:1]
        same_classifier = [
            a
            for a, solver in solvers.items()
            if solver != second.result.solver and _is_of_same_classifier(measurements[a], second)
        ]
        for a in sorted(same_solver + same_classifier) or list(shared)[:1]:
            ours, theirs = shared[a]
            num_resamples = _num_resamples(second)
            results = measurements[a].result[:, ours], second.result[:, theirs]
            ratios = statistics.compare(*results, num_resamples=num_resamples)
            found.append(Pair(a, b, a in same_classifier, ratios, num_resamples))
    return found


def _is_of_same_classifier(first: Measurement, second: Measurement) -> bool:
    return first.classifier_id is not None and first.classifier_id == second.classifier_id


def _shared(first: Measurement, second: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the images that both have, in either of them; none if their subspaces are not the same."""
    if list(first.subspaces) != list(second.subspaces):
        return np.array([], int), np.array([], int)
    one, other = (np.asarray(measurement.image_ids, str) for measurement in (first, second))
    _, ours, theirs = np.intersect1d(one, other, return_indices=True)
    order = np.argsort(ours)
    return ours[order], theirs[order]


def _num_resamples(measurement) -> int:
    return _NUM_RESAMPLES if measurement.result.margin.size <= _MANY_MARGINS else _FEW_RESAMPLES


def subset(num_images: int, number: int) -> np.ndarray:
    """The numbers of images drawn at random, in order; all if there are no more than that."""
    return np.sort(np.random.default_rng(0).permutation(num_images)[:number])


def grid_of(corners: np.ndarray | None) -> tuple[list[int], list[int]] | None:
    """The rows and the columns of windows that fill a grid; None if they don't."""
    if corners is None:
        return None
    rows, columns = (sorted(set(np.asarray(corners)[:, axis].tolist())) for axis in (0, 1))
    is_grid = min(len(rows), len(columns)) > 1 and len(set(map(tuple, np.asarray(corners).tolist()))) == len(corners)
    return (rows, columns) if is_grid and len(rows) * len(columns) == len(corners) else None
