"""Claims on the results of a run, and the intervals of the numbers that decide them.

A claim is a number with a threshold, and a reason for the threshold. It was set before the number was known; if not,
the catalogue says so. The number has a bootstrap interval; the claim holds if the number itself meets the threshold.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats

from hmt_jax import statistics

_TAILS = (2.5, 97.5)  # percentages that end an interval of 95%
_NUM_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A number and its 95% interval. Infinite where it comes from censored margins, NaN where it has no value.

    An interval is NaN, too, where more resamples than lie beyond one of its ends have no value.
    """

    value: float
    low: float
    high: float


Statistic = Callable[[pathlib.Path], Estimate]  # a number of a run, from its folder


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim on the results of a run, in words, which holds if a number of the run meets a threshold."""

    text: str
    statistic: Statistic
    reason: str  # for the threshold
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self):
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the claim {self.text!r} has no threshold: give at_least, at_most or both")

    def test(self, path: pathlib.Path) -> dict[str, Any]:
        """The verdict on the run in a folder, for JSON: numbers that are not finite are written as text.

        A run is not lost if settings left out the results that the statistic needs: the reason is written as
        "undecided", and the claim neither holds nor fails.
        """
        undecided = {}
        try:
            estimate = self.statistic(path)
            if math.isnan(estimate.value):
                undecided = {"undecided": "it has no value, as where medians that it compares are censored"}
        except (ValueError, LookupError, OSError) as error:
            estimate, undecided = Estimate(math.nan, math.nan, math.nan), {"undecided": str(error)}
        least, most = self.at_least, self.at_most
        is_met = (least is None or estimate.value >= least) and (most is None or estimate.value <= most)
        return {
            "claim": self.text,
            "reason": self.reason,
            "at_least": least,
            "at_most": most,
            **{field: for_json(number) for field, number in estimate._asdict().items()},
            "holds": bool(is_met),  # never for NaN
            **undecided,
        }


def for_json(number: float) -> float | str:
    """The number, or "inf" or "nan" in words, because JSON has no such numbers."""
    return float(number) if math.isfinite(number) else str(float(number))


def from_medians(statistic: Callable[..., float], *margins: np.ndarray) -> Estimate:
    """The estimate of a statistic of median margins, with its bootstrap interval over the samples.

    It takes a curve of medians (R,) for each run, whose censored margins (R, N) are passed. Samples are drawn with
    replacement, the same ones in every subspace and in every run.
    """
    _check_numbers([curves.shape[1] for curves in margins])
    rows = np.concatenate(margins)
    medians = statistics.percentile(rows, 50)
    resampled = statistics.bootstrap_medians(jax.random.key(0), rows, _NUM_RESAMPLES)
    ends = np.cumsum([len(curves) for curves in margins])[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):  # censored medians: infinity over infinity is no number
        value = float(statistic(*np.split(medians, ends)))
        values = [statistic(*np.split(column, ends)) for column in resampled.T]
    return _estimate(value, values)


def from_resampling(statistic: Callable[..., float], *samples: np.ndarray) -> Estimate:
    """The estimate of any statistic of arrays over the same N samples, (N,) each, with its bootstrap interval."""
    _check_numbers([len(array) for array in samples])
    rng, num_samples = np.random.default_rng(0), len(samples[0])
    draws = rng.integers(num_samples, size=(_NUM_RESAMPLES, num_samples))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [statistic(*(array[draw] for array in samples)) for draw in draws]
        return _estimate(float(statistic(*samples)), values)


def from_share(share: float, num_samples: int) -> Estimate:
    """The estimate of a share of samples, such as an accuracy, with its bootstrap interval over them."""
    # Redrawing the samples would draw from the same binomial distribution.
    return _estimate(share, np.random.default_rng(0).binomial(num_samples, share, _NUM_RESAMPLES) / num_samples)


def from_runs(values: Sequence[float]) -> Estimate:
    """The mean of a number over runs, with the interval that holds the number of one more run, 19 times in 20.

    The prediction interval of Student's t, for numbers that are normally distributed over training runs. Its ends are
    NaN if a number is not finite.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        mean, deviation = np.mean(values), np.std(values, ddof=1) * math.sqrt(1 + 1 / len(values))
        return Estimate(float(mean), *map(float, scipy.stats.t.interval(0.95, len(values) - 1, mean, deviation)))


def _check_numbers(numbers):
    if len(set(numbers)) > 1:
        raise ValueError(f"samples must be the same in all runs that are compared, got {numbers} of them")


def _estimate(value, resampled) -> Estimate:
    values = np.asarray(resampled)
    if np.isnan(values).mean() > _TAILS[0] / 100:  # an end of the interval may lie among them
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *(float(statistics.percentile(values, rank)) for rank in _TAILS))
