"""Claims on the results of a run, and the numbers that decide those on margins in windows of the DCT.

A claim is a number with a threshold, and a reason for the threshold. It was set before the number was known; if not,
the catalogue says so. The number has a bootstrap interval; the claim holds if the number itself meets the threshold.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats

from experiments import store
from hmt_jax import statistics

HOLDS, FAILS, UNDECIDED = "holds", "DOES NOT HOLD", "undecided"
HEADER = ("claim", "found", "95% interval", "threshold", "")

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
    """A claim on the results of a run.

    Attributes:
      text: the claim in words.
      statistic: the number that decides, computed from the run's folder.
      reason: the reason for the threshold.
      at_least: the least number with which the claim holds.
      at_most: the greatest one.
    """

    text: str
    statistic: Statistic
    reason: str
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
        undecided = None
        try:
            estimate = self.statistic(path)
            if math.isnan(estimate.value):
                undecided = "it has no value, as where medians that it compares are censored"
        except (ValueError, LookupError, OSError) as error:
            estimate, undecided = Estimate(math.nan, math.nan, math.nan), str(error)
        at_least = -math.inf if self.at_least is None else self.at_least
        at_most = math.inf if self.at_most is None else self.at_most
        return {
            "claim": self.text,
            "reason": self.reason,
            "at_least": self.at_least,
            "at_most": self.at_most,
            **{key: number if math.isfinite(number) else str(number) for key, number in estimate._asdict().items()},
            "holds": bool(at_least <= estimate.value <= at_most),  # never for NaN
            **({} if undecided is None else {"undecided": undecided}),
        }


def from_medians(statistic: Callable[..., float], *margins: np.ndarray) -> Estimate:
    """The estimate of a statistic of median margins, with its bootstrap interval over the samples.

    Samples are drawn with replacement, the same ones in every subspace and in every run.

    Args:
      statistic: returns a number for as many curves of medians, each (R,), as margins are passed.
      *margins: margins of one run each, (R, N), infinite where they are censored and NaN where there are none, for the
        same N samples.

    Raises:
      ValueError: for unequal numbers of samples.
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
    rng = np.random.default_rng(0)
    # Redrawing the samples would draw from the same binomial distribution.
    return _estimate(share, rng.binomial(num_samples, share, _NUM_RESAMPLES) / num_samples)


def from_runs(values: Sequence[float]) -> Estimate:
    """The mean of a number over runs, with the interval that holds the number of one more run, 19 times in 20.

    The prediction interval of Student's t, for numbers that are normally distributed over training runs. Its ends are
    NaN if a number is not finite.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        reach = scipy.stats.t.ppf(_TAILS[1] / 100, len(values) - 1) * deviation * math.sqrt(1 + 1 / len(values))
        return Estimate(float(mean), float(mean - reach), float(mean + reach))


def row(verdict: dict[str, Any]) -> tuple[str, ...]:
    """A verdict as cells of a table under `HEADER`."""
    value, low, high = (f"{float(verdict[field]):.3g}" for field in Estimate._fields)
    thresholds = [
        f"{sign} {verdict[field]:g}"
        for field, sign in (("at_least", ">="), ("at_most", "<="))
        if verdict[field] is not None
    ]
    outcome = UNDECIDED if math.isnan(float(verdict["value"])) else HOLDS if verdict["holds"] else FAILS
    return verdict["claim"], value, f"{low} to {high}", ", ".join(thresholds), outcome


def _check_numbers(numbers):
    if len(set(numbers)) > 1:
        raise ValueError(f"samples must be the same in all runs that are compared, got {numbers} of them")


def _estimate(value, resampled) -> Estimate:
    values = np.asarray(resampled)
    if np.isnan(values).mean() > _TAILS[0] / 100:  # an end of the interval may lie among them
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *(float(statistics.percentile(values, rank)) for rank in _TAILS))


# Numbers of runs that measure windows of the DCT

# Which windows, by their corners (R, 2), and the settings and the measurement of the run: (R,) truth values.
Keep = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


def test_accuracy(path: pathlib.Path) -> Estimate:
    """The share of correctly labelled test images."""
    summary = store.read_json(path / "summary.json")
    return from_share(summary["test_accuracy"], summary["num_test"])


def robust_accuracy(path: pathlib.Path) -> Estimate:
    """The share of correctly labelled images under attack."""
    return _robust_accuracy(path / "robustness.json")


def baseline_robust_accuracy(path: pathlib.Path) -> Estimate:
    """The same share for the run that this one is compared with."""
    return _robust_accuracy(path / "baseline_robustness.json")


def highest_over_lowest(path: pathlib.Path) -> Estimate:
    """The median margin of the highest window over that of the lowest."""
    return from_medians(lambda medians: medians[-1] / medians[0], margins(path)[0])


def correlation_with_baseline(path: pathlib.Path) -> Estimate:
    """Spearman's rank correlation, over the windows, of the medians of a run and of the one it is compared with."""
    return from_medians(spearman, *_both(path)[:2])


def correlation_with_reversed_baseline(path: pathlib.Path) -> Estimate:
    """The same correlation, with the windows of the other run from high to low."""
    return from_medians(lambda medians, others: spearman(medians, others[::-1]), *_both(path)[:2])


def least_ratio(keep: Keep) -> Statistic:
    """The least ratio, over the windows kept, of the median to that of the run compared with; see `above`."""
    return _of_ratios(keep, np.min)


def greatest_ratio(keep: Keep) -> Statistic:
    """The greatest of those ratios."""
    return _of_ratios(keep, np.max)


def greatest_change(keep: Keep) -> Statistic:
    """The greatest difference of those ratios from one."""
    return _of_ratios(keep, lambda ratios: np.max(np.abs(ratios - 1)))


def high_ratios_over_low(path: pathlib.Path) -> Estimate:
    """The median of those ratios in the upper third of the windows, over that in the lower third."""

    def statistic(medians, others):
        ratios, num_third = medians / others, -(-len(medians) // 3)
        return np.median(ratios[-num_third:]) / np.median(ratios[:num_third])

    return from_medians(statistic, *_both(path)[:2])


def least_inside_over_least_beyond(field: str) -> Statistic:
    """The least median among windows within the cut of a field, over the least of those that reach beyond."""

    def statistic(path):
        found, corners = margins(path)
        is_inside = below(field)(corners, _settings(path))
        _check_any(is_inside, path)
        _check_any(~is_inside, path)
        return from_medians(lambda medians: medians[is_inside].min() / medians[~is_inside].min(), found)

    return statistic


def measured_epochs(path: pathlib.Path, *, at_least: int) -> list[dict[str, np.ndarray]]:
    """The arrays measured in training, epoch by epoch.

    Raises:
      ValueError: for fewer epochs than `at_least`.
    """
    found = list(store.monitored(path).values())
    if len(found) < at_least:
        raise ValueError(f"{len(found)} epochs of training were measured, and it takes {at_least}: lower measure_every")
    return found


def everywhere(corners: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Keeps every window."""
    return np.ones(len(corners), bool)


def below(field: str) -> Keep:
    """Keeps windows all of whose frequencies are below the cut of a field: within [0, 16) x [0, 16) for low_pass:16."""
    return lambda corners, settings: np.all(corners + settings["window_size"] <= _cut(settings, field), axis=1)


def above(field: str) -> Keep:
    """Keeps windows all of whose frequencies are the cut or more."""
    return lambda corners, settings: np.all(corners >= _cut(settings, field), axis=1)


def margins(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Censored margins (R, N) of a run, and the corners (R, 2) of its windows."""
    arrays = store.read_arrays(path / "margins.npz")
    return statistics.censored(arrays["margin"], arrays["status"]), arrays["corner"]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two curves, of which some values may be infinite; NaN if one has no order."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values):
    """Ranks from low to high; equal values share the mean of theirs."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    return ((values[None] < values[:, None]).sum(1) + (values[None] <= values[:, None]).sum(1)) / 2


def _both(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins of a run, margins of the run it is compared with, and corners."""
    origin = store.baseline(path)
    if origin is None:
        raise ValueError(f"{path} is compared with no other run: set baseline to the name of an experiment")
    found, corners = margins(path)
    return found, margins(origin)[0], corners


def _of_ratios(keep, function):
    def statistic(path):
        found, others, corners = _both(path)
        is_kept = keep(corners, _settings(path))
        _check_any(is_kept, path)
        return from_medians(lambda medians, other: function((medians / other)[is_kept]), found, others)

    return statistic


def _settings(path) -> dict[str, Any]:
    return {**store.read_json(path / "measurement.json"), **store.settings(path)}


def _check_any(is_kept, path) -> None:
    if not is_kept.any():
        raise ValueError(f"no window of {path} is on that side of the cut: take smaller windows, or another cut")


def _cut(settings, field) -> np.ndarray:
    """The frequencies along both axes that are the first above the cut of a band."""
    kind, _, size = settings[field].partition(":")
    if kind not in ("low_pass", "cutoff_low", "high_pass"):
        raise ValueError(f"{field}={settings[field]} has no cut between low and high frequencies")
    cut = np.full(2, int(size))
    return np.array(settings["image_shape"][:2]) - cut if kind == "high_pass" else cut


def _robust_accuracy(file) -> Estimate:
    strongest = store.read_json(file)["evaluations"][-1]
    return from_share(strongest["robust_accuracy"], strongest["num_images"])
