"""Claims on margins over a grid of windows, and over the epochs of training."""

import numpy as np
import pytest

from experiments import claims, folder, margin_map
from experiments.configs import margin_map as experiment

ROWS, COLUMNS = (axis.reshape(-1) for axis in np.meshgrid([0, 2, 4, 6], [0, 2, 4], indexing="ij"))


def margins_of(medians):
    """Margins (R, 9) with the given medians."""
    return np.asarray(medians, float)[:, None] * np.linspace(0.5, 1.5, 9)


def put(path, medians):
    """The folder of a run with the given medians, of windows in row-major order."""
    folder.write_json(path / "config.json", {"window_size": 2})
    margin = margins_of(medians)
    corners = np.stack([ROWS, COLUMNS], axis=1)
    folder.write_arrays(path / "margins.npz", {"margin": margin, "status": np.zeros_like(margin), "corner": corners})


def put_epochs(path, *medians):
    for epoch, found in enumerate(medians, 1):
        folder.write_arrays(path / "monitored" / f"{epoch:03}.npz", {"margin": margins_of(found)})


def test_windows_are_a_grid_from_the_lowest_to_the_highest_in_both_directions():
    corners = [window.corner for window in experiment.CONFIG.windows((28, 28, 1))]
    expected = [[row, column] for row in range(0, 21, 2) for column in range(0, 21, 2)]
    np.testing.assert_array_equal(corners, expected)


def test_margins_that_grow_with_the_distance_are_in_its_order(tmp_path):
    put(tmp_path, np.exp(np.hypot(ROWS, COLUMNS)))
    assert margin_map.correlation_with_distance(tmp_path).value == pytest.approx(1)
    put(tmp_path, 1 / (1 + np.hypot(ROWS, COLUMNS)))
    assert margin_map.correlation_with_distance(tmp_path).value == pytest.approx(-1)


def test_growth_along_axes_is_that_of_the_axis_that_grows_less(tmp_path):
    put(tmp_path, 3 + 2 * ROWS + COLUMNS)  # 3 at the origin, 7 at the end of the columns, 15 at that of the rows
    assert margin_map.growth_along_axes(tmp_path).value == pytest.approx(7 / 3)


def test_the_order_of_the_first_epoch_is_compared_with_that_of_the_last(tmp_path):
    put_epochs(tmp_path, [1, 2, 3], [9, 9, 1], [3, 5, 9])
    assert margin_map.correlation_of_first_with_last(tmp_path).value == pytest.approx(1)
    put_epochs(tmp_path, [1, 2, 3], [9, 9, 1], [9, 5, 3])
    assert margin_map.correlation_of_first_with_last(tmp_path).value == pytest.approx(-1)


def test_early_growth_is_a_share_of_the_logarithm_in_the_upper_third(tmp_path):
    # Of six windows the last two count: both grow sixteenfold in all, eightfold by the third of five epochs.
    epochs = [[1, 1, 1, 1, low * factor, high * factor] for factor in (1, 4, 8, 2, 16) for low, high in [(3, 5)]]
    put_epochs(tmp_path, *epochs)
    assert claims.early_growth(tmp_path).value == pytest.approx(3 / 4)
