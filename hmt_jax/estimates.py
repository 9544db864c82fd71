"""Numbers with their intervals, such as the ratio of two median margins, by the bootstrap over samples.

Each function takes the statistic, an ordinary function, and the samples that it is computed from.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hmt_jax import statistics

__all__ = ["Estimate", "from_medians", "from_runs", "from_samples", "from_share"]

_CONFIDENCE, _NUM_RESAMPLES = 0.95, 1000


class Estimate(NamedTuple):
    """A number and its interval. Infinite where it comes from censored margins, NaN where it has no value.

    The ends are NaN if too many resamples have no value: more than should lie beyond one end.

    Attributes:
      value: the number.
      low: the lower end of its interval.
      high: the upper end.

    >>> Estimate(2.2, 2.1, 2.4).high
    2.4
    """

    value: float
    low: float
    high: float


def from_medians(
    statistic: Callable[..., float],
    *margins: np.ndarray,
    confidence: float = _CONFIDENCE,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The estimate of a statistic of median margins, with its bootstrap interval over the samples.

    Samples are drawn with replacement, the same ones in every subspace and in every network.

    Args:
      statistic: takes a curve of medians (R,) for each array of margins, and returns a number.
      margins: censored margins (R, N) of the same N samples, as `hmt_jax.statistics.censored_margins` returns them, one
        array or several.
      confidence: confidence of the interval, in (0, 1).
      num_resamples: number of bootstrap draws.
      seed: seed of the draws.

    Raises:
      ValueError: if the numbers of samples differ, or the confidence or the number of resamples is out of range.

    >>> margins = np.array([[1.0, 1.5, 2.0], [3.0, 4.5, 6.0]])
    >>> from_medians(lambda medians: medians[-1] / medians[0], margins)
    Estimate(value=3.0, low=3.0, high=3.0)
    """
    _check_numbers([curves.shape[1] for curves in margins])
    statistics.check_bootstrap(confidence, num_resamples)
    rows = np.concatenate(margins)
    medians = statistics.percentile(rows, 50)
    resampled = statistics.bootstrap_medians(jax.random.key(seed), rows, num_resamples)
    ends = np.cumsum([len(curves) for curves in margins])[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):  # censored medians: infinity over infinity is no number
        value = float(statistic(*np.split(medians, ends)))
        values = [statistic(*np.split(column, ends)) for column in resampled.T]
    return _estimate(value, values, confidence)


def from_samples(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    confidence: float = _CONFIDENCE,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The estimate of any statistic of arrays over the same N samples, with its bootstrap interval.

    Args:
      statistic: takes an array (N,) for each of `samples`, and returns a number.
      samples: arrays (N,), which are drawn from together.
      confidence, num_resamples, seed: as in `from_medians`.

    Raises:
      ValueError: as in `from_medians`.

    >>> from_samples(np.mean, np.array([2.0, 2.0, 2.0]))
    Estimate(value=2.0, low=2.0, high=2.0)
    """
    _check_numbers([len(array) for array in samples])
    statistics.check_bootstrap(confidence, num_resamples)
    draws = np.random.default_rng(seed).integers(len(samples[0]), size=(num_resamples, len(samples[0])))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [statistic(*(array[draw] for array in samples)) for draw in draws]
        return _estimate(float(statistic(*samples)), values, confidence)


def from_share(
    share: float,
    num_samples: int,
    *,
    confidence: float = _CONFIDENCE,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The estimate of a share of samples, such as an accuracy, with its bootstrap interval over them.

    Args:
      share: of the samples, in [0, 1].
      num_samples: number of samples.
      confidence, num_resamples, seed: as in `from_medians`.

    Raises:
      ValueError: if the share, the confidence or the number of resamples is out of range.

    >>> from_share(1.0, 500)
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    statistics.check_bootstrap(confidence, num_resamples)
    # Redrawing the samples would draw from the same binomial distribution.
    counts = np.random.default_rng(seed).binomial(num_samples, share, num_resamples)
    return _estimate(share, counts / num_samples, confidence)


def from_runs(values: Sequence[float], *, confidence: float = _CONFIDENCE) -> Estimate:
    """The mean of a number over trainings with different seeds, and an interval for the number of one more training.

    The prediction interval of Student's t, for numbers that are normally distributed over trainings. Its ends are NaN
    if a number is not finite.

    Args:
      values: the number of each training, at least two.
      confidence: confidence of the interval, in (0, 1).

    Raises:
      ValueError: if there are fewer than two numbers, or the confidence is out of range.

    >>> mean, low, high = from_runs([2.0, 2.1, 2.2])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.1, 1.603, 2.597)
    """
    if len(values) < 2:
        raise ValueError(f"values must be those of at least two runs, got {len(values)}: one has no spread")
    statistics.check_bootstrap(confidence)
    import scipy.stats  # which takes a second

    with np.errstate(invalid="ignore"):  # infinity less infinity
        mean, deviation = np.mean(values), np.std(values, ddof=1) * math.sqrt(1 + 1 / len(values))
        return Estimate(float(mean), *map(float, scipy.stats.t.interval(confidence, len(values) - 1, mean, deviation)))


def _check_numbers(numbers):
    if len(set(numbers)) > 1:
        raise ValueError(f"samples must be the same in all arrays that are compared, got {numbers} of them")


def _estimate(value, resampled, confidence) -> Estimate:
    values = np.asarray(resampled)
    if np.isnan(values).mean() > (1 - confidence) / 2:  # an end of the interval may lie among them
        return Estimate(value, math.nan, math.nan)
    ends = 50 - 50 * confidence, 50 + 50 * confidence
    return Estimate(value, *(float(statistics.percentile(values, rank)) for rank in ends))
