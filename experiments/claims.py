"""Numbers that decide claims on margins along the diagonal, each from the folder of a run."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import baseline, folder, summary
from experiments.checks import Estimate, Statistic, from_medians, from_resampling, from_share
from hmt_jax import statistics

# Which windows, by their corners (R, 2), and the configuration and measurement of the run: (R,) truth values.
Keep = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


def test_accuracy(path: pathlib.Path) -> Estimate:
    """Share of right labels of the test images."""
    return from_share(folder.read_json(path / "summary.json")["test_accuracy"], _num_test(path))


def robust_accuracy(path: pathlib.Path) -> Estimate:
    """Share of right labels under attack."""
    return _robust_accuracy(path / "robustness.json")


def baseline_robust_accuracy(path: pathlib.Path) -> Estimate:
    """The same of the run that this one is compared with."""
    return _robust_accuracy(path / "baseline_robustness.json")


def highest_over_lowest(path: pathlib.Path) -> Estimate:
    """The median margin of the highest window over that of the lowest."""
    return from_medians(lambda medians: medians[-1] / medians[0], margins(path)[0])


def correlation_with_baseline(path: pathlib.Path) -> Estimate:
    """Spearman's rank correlation, over the windows, of the medians of a run and of the one it is compared with."""
    return from_medians(spearman, *_both(path)[:2])


def correlation_with_reversed_baseline(path: pathlib.Path) -> Estimate:
    """The same, with the windows of the run that is compared with from high to low."""
    return from_medians(lambda medians, others: spearman(medians, others[::-1]), *_both(path)[:2])


def least_ratio(keep: Keep) -> Statistic:
    """The least, over the windows kept, of the median over that of the run compared with; see `above`."""
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


def growth_of_low_energy(path: pathlib.Path) -> Estimate:
    """The share of the perturbations' energy in the lowest window after the last epoch, over that after the first."""
    first, *_, last = measured_epochs(path, at_least=2)

    def statistic(first_low, first_total, last_low, last_total):
        return (last_low.mean() / last_total.mean()) / (first_low.mean() / first_total.mean())

    arrays = [part for epoch in (first, last) for part in (epoch["energy"][0], epoch["total_energy"])]
    return from_resampling(statistic, *arrays)


def early_growth(path: pathlib.Path) -> Estimate:
    """The growth of the high windows' medians by half of the measured epochs, over that by all of them; of logarithms.

    The high windows are the upper third; their medians count by the geometric mean, and grow from the first epoch on.
    """
    found = measured_epochs(path, at_least=3)
    epochs = [found[place]["margin"] for place in (0, (len(found) - 1) // 2, -1)]
    highs = [found[len(found) * 2 // 3 :] for found in epochs]

    def statistic(*medians):
        first, half, last = (np.log(high).mean() for high in medians)
        return (half - first) / (last - first)

    return from_medians(statistic, *highs)


def measured_epochs(path: pathlib.Path, *, at_least: int) -> list[dict[str, np.ndarray]]:
    """What was measured in training, epoch by epoch.

    Raises:
      ValueError: for fewer epochs than it takes.
    """
    found = list(summary.monitored(path).values())
    if len(found) < at_least:
        raise ValueError(f"{len(found)} epochs of training were measured, and it takes {at_least}: lower measure_every")
    return found


def everywhere(corners: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Keeps every window."""
    return np.ones(len(corners), bool)


def below(field: str) -> Keep:
    """Keeps windows all of whose frequencies are below the cut of a field: within [0, 16) x [0, 16) for low_pass:16."""
    return lambda corners, config: np.all(corners + config["window_size"] <= _cut(config, field), axis=1)


def above(field: str) -> Keep:
    """Keeps windows all of whose frequencies are the cut or more."""
    return lambda corners, config: np.all(corners >= _cut(config, field), axis=1)


def _settings(path) -> dict[str, Any]:
    return {**folder.read_json(path / "measurement.json"), **folder.read_config(path)}


def _check_any(is_kept, path) -> None:
    if not is_kept.any():
        raise ValueError(f"no window of {path} is on that side of the cut: take smaller windows, or another cut")


def _cut(config, field) -> np.ndarray:
    """The frequencies along both axes that are the first above the cut of a band."""
    kind, _, size = config[field].partition(":")
    if kind not in ("low_pass", "cutoff_low", "high_pass"):
        raise ValueError(f"{field}={config[field]} has no cut between low and high frequencies")
    cut = np.full(2, int(size))
    return np.array(config["image_shape"][:2]) - cut if kind == "high_pass" else cut


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two curves, of which some values may be infinite; NaN if one has no order."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values):
    """Ranks from low to high; equal values share the mean of theirs."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    return ((values[None] < values[:, None]).sum(1) + (values[None] <= values[:, None]).sum(1)) / 2


def _of_ratios(keep, function):
    def statistic(path):
        margins, others, corners = _both(path)
        is_kept = keep(corners, _settings(path))
        _check_any(is_kept, path)
        return from_medians(lambda medians, other: function((medians / other)[is_kept]), margins, others)

    return statistic


def margins(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Censored margins (R, N) of a run, and the corners (R, 2) of its windows."""
    arrays = folder.read_arrays(path / "margins.npz")
    return statistics.censored(arrays["margin"], arrays["status"]), arrays["corner"]


def _both(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, with the margins of the run compared with in the second place."""
    origin = baseline.of(path)
    if origin is None:
        raise ValueError(f"{path} is compared with no other run: set baseline to standard_training or plain_data")
    found, corners = margins(path)
    return found, margins(origin)[0], corners


def _robust_accuracy(file) -> Estimate:
    strongest = folder.read_json(file)["evaluations"][-1]
    return from_share(strongest["robust_accuracy"], strongest["num_images"])


def _num_test(path) -> int:
    return folder.read_json(path / "summary.json")["num_test"]
