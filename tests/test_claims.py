"""Claims and their numbers, on margins made by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import registry, store, tables
from experiments.catalogue import _claims as claims
from experiments.catalogue import beyond_the_paper
from experiments.claims import Claim
from hmt_jax import Status
from hmt_jax.estimates import Estimate


def describe(path, **settings):
    """The configuration of a finished run with such settings."""
    content = {"format": store.FORMAT, "experiment": "digits", "settings": settings, "checksums": {}}
    store.write_json(path / "config.json", content)
    store.finish(path, {"is_quick": False, "claims": []})


def constant(path, values, *, size=8, num_samples=30):
    """The folder of a run whose margins are the same for all samples: one value a window at (0, 0), (2, 2), ..."""
    path.mkdir()
    margins = np.repeat(np.asarray(values, float)[:, None], num_samples, axis=1)
    corner = np.repeat(2 * np.arange(len(values))[:, None], 2, axis=1)
    status = np.where(np.isfinite(margins), Status.CONVERGED, Status.OUT_OF_STEPS)
    arrays = {"margin": margins, "status": status, "corner": corner, "image_shape": (18, 18, 1)}
    store.write_arrays(path / "margins.npz", arrays)
    cuts = {
        "low": "low_pass:6",
        "middle": "cutoff_low:10",
        "high": "high_pass:6",
        "window": "window:4:4:8",
        "none": "none",
    }
    describe(path, window_size=size, **cuts)
    return path


@pytest.fixture
def compared(tmp_path):
    """The folder of a run with windows at 0, 2, ..., 10, compared with another."""
    path = constant(tmp_path / "run", [1, 2, 3, 4, 5, 12])
    constant(tmp_path / "other", [2, 2, 2, 2, 2, 3])
    store.refer(path, path.parent / "other")
    return path


@pytest.mark.parametrize(
    ("value", "thresholds", "holds"),
    [
        (2, {"at_least": 2}, True),
        (1.9, {"at_least": 2}, False),
        (2, {"at_most": 2}, True),
        (2.1, {"at_most": 2}, False),
        (1, {"at_least": 0.5, "at_most": 2}, True),
        (np.inf, {"at_least": 2}, True),
        (np.inf, {"at_most": 2}, False),
        (np.nan, {"at_least": 2}, False),
        (np.nan, {"at_most": 2}, False),
    ],
)
def test_a_claim_holds_if_its_number_meets_the_threshold(value, thresholds, holds, tmp_path):
    claim = Claim("a claim", lambda path: Estimate(value, value, value), "a reason", **thresholds)
    verdict = json.loads(json.dumps(claim.test(tmp_path), allow_nan=False))
    assert verdict["holds"] is holds
    assert float(verdict["value"]) == pytest.approx(value, nan_ok=True)
    text = tables.aligned(tables.verdicts([verdict]))
    assert text.endswith("undecided" if np.isnan(value) else " holds" if holds else "DOES NOT HOLD")
    assert all(f"{threshold:g}" in text for threshold in thresholds.values())


def test_a_claim_needs_a_threshold():
    with pytest.raises(ValueError, match="the claim 'a claim' has no threshold: give at_least, at_most or both"):
        Claim("a claim", lambda path: Estimate(0, 0, 0), "a reason")


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (claims.highest_over_lowest, 12),
        (claims.least_ratio(claims.everywhere), 1 / 2),
        (claims.largest_ratio(claims.everywhere), 4),
        (claims.least_ratio(claims.above("low")), 4 / 2),  # windows at 6, 8 and 10
        # The last 6 of 18 frequencies: windows at 0, 2 and 4 end below them.
        (claims.largest_ratio(claims.below("high")), 3 / 2),
        (claims.largest_change(claims.below("middle")), 1 / 2),  # windows at 0 and 2: factors 1/2 and 1
        (claims.high_ratios_over_low, (2.5 + 4) / 2 / ((0.5 + 1) / 2)),  # two windows in a third
        (claims.least_inside_over_least_beyond("middle"), 1 / 3),
    ],
)
def test_numbers_of_claims(statistic, expected, compared):
    np.testing.assert_allclose(statistic(compared), [expected] * 3)  # all samples alike: an interval of no width


@pytest.mark.parametrize("field", ["none", "window"])
def test_a_field_without_a_cut_is_refused(field, compared):
    with pytest.raises(ValueError, match=rf"{field}=.* has no cut between low and high frequencies"):
        claims.least_ratio(claims.above(field))(compared)


@pytest.mark.parametrize(
    "statistic", [claims.least_ratio(claims.above("high")), claims.least_inside_over_least_beyond("low")]
)
def test_a_side_of_the_cut_without_a_window_is_refused(statistic, compared):
    """None of size 8 starts at 12 or behind, none ends within 6."""
    with pytest.raises(ValueError, match=r"no window of .*run is on that side of the cut: take smaller windows, or"):
        statistic(compared)


def test_censored_margins_are_infinite(tmp_path):
    grows, blank = constant(tmp_path / "a", [2, np.inf]), constant(tmp_path / "b", [np.inf, np.inf])
    assert claims.highest_over_lowest(grows).value == np.inf
    assert np.isnan(claims.highest_over_lowest(blank).value)


def test_correlation_is_of_ranks(compared):
    expected = stats.spearmanr([1, 2, 3, 4, 5, 12], [2, 2, 2, 2, 2, 3]).statistic
    np.testing.assert_allclose(claims.correlation_with_baseline(compared), [expected] * 3)
    expected = stats.spearmanr([1, 2, 3, 4, 5, 12], [3, 2, 2, 2, 2, 2]).statistic
    np.testing.assert_allclose(claims.correlation_with_reversed_baseline(compared), [expected] * 3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.integers(6, size=(2, 12)).astype(float)
        first[0] = np.inf
        assert claims.spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(claims.spearman(np.array([1, np.nan]), np.array([1, 2])))


def test_energy_of_the_first_and_the_last_epoch(tmp_path):
    for epoch, low in ((1, 0.2), (2, 9.9), (3, 0.3)):
        arrays = {"energy": np.array([[low] * 5, [1.0] * 5]), "total_energy": np.full(5, epoch)}
        store.write_arrays(tmp_path / "monitored" / f"{epoch:03}.npz", arrays)
    np.testing.assert_allclose(beyond_the_paper.growth_of_low_energy(tmp_path), [(0.3 / 3) / 0.2] * 3)


def test_a_run_compared_with_none_is_refused(tmp_path):
    path = constant(tmp_path / "run", [1, 2])
    with pytest.raises(ValueError, match="is compared with no other run: set baseline to the name of an experiment"):
        claims.correlation_with_baseline(path)


def test_a_claim_without_its_results_is_not_decided(tmp_path):
    for statistic, reason in [
        (claims.robust_accuracy, "robustness.json"),
        (lambda path: np.min([]), "zero-size array"),
        (lambda path: [][0], "list index out of range"),
    ]:
        verdict = Claim("all is well", statistic, "as it should be", at_least=0).test(tmp_path)
        assert reason in verdict["undecided"]
        assert not verdict["holds"]
        _, line = tables.verdicts([verdict])
        assert line == "all is well | nan | nan to nan | at least 0 | undecided"


def test_a_claim_on_censored_medians_is_not_decided(tmp_path):
    path = constant(tmp_path / "run", [1, np.inf])
    constant(tmp_path / "other", [2, np.inf])
    store.refer(path, path.parent / "other")
    verdict = Claim("larger", claims.least_ratio(claims.everywhere), "why", at_least=1).test(path)
    assert "medians that it compares are censored" in verdict["undecided"]
    assert not verdict["holds"]


def test_claims_over_epochs_need_as_many(tmp_path):
    """One epoch is like itself, and the first of two is no half of the way."""
    needing_two, needing_three = (
        (beyond_the_paper.growth_of_low_energy, beyond_the_paper.correlation_of_first_with_last),
        (beyond_the_paper.early_growth,),
    )
    for epoch, statistics in ((1, needing_two), (2, needing_three)):
        arrays = {"energy": np.ones((2, 5)), "total_energy": np.full(5, 2), "margin": np.ones((2, 5))}
        store.write_arrays(tmp_path / "monitored" / f"{epoch:03}.npz", arrays)
        for statistic in statistics:
            with pytest.raises(ValueError, match=f"{epoch} epochs of training were measured, and it takes {epoch + 1}"):
                statistic(tmp_path)


def test_accuracies_are_shares_of_their_samples(tmp_path):
    def robustness(*shares):
        return {"evaluations": [{"robust_accuracy": share, "num_images": 400} for share in shares]}

    for name, value in {
        "summary": {"test_accuracy": 0.9, "num_test": 10_000, "num_images": 7},
        "robustness": robustness(0.8, 0.5),
        "baseline_robustness": robustness(0.4, 0.1),
    }.items():
        store.write_json(tmp_path / f"{name}.json", value)
    for statistic, share, num_samples in (
        (claims.test_accuracy, 0.9, 10_000),
        (claims.robust_accuracy, 0.5, 400),  # under the strongest attack, the last
        (claims.baseline_robust_accuracy, 0.1, 400),
    ):
        found = statistic(tmp_path)
        half = 1.96 * np.sqrt(share * (1 - share) / num_samples)
        assert found.value == share
        # The ends of the bootstrap are shares of whole numbers, and less than normal.
        np.testing.assert_allclose([found.low, found.high], [share - half, share + half], atol=0.25 * half)


# Over a grid of windows, and over the epochs

ROWS, COLUMNS = (axis.reshape(-1) for axis in np.meshgrid([0, 2, 4, 6], [0, 2, 4], indexing="ij"))


def margins_of(medians):
    """Margins (R, 9) with the given medians."""
    return np.asarray(medians, float)[:, None] * np.linspace(0.5, 1.5, 9)


def put(path, medians):
    """The folder of a run with the given medians, of windows in row-major order."""
    margin = margins_of(medians)
    corners = np.stack([ROWS, COLUMNS], axis=1)
    store.write_arrays(path / "margins.npz", {"margin": margin, "status": np.zeros_like(margin), "corner": corners})


def put_epochs(path, *medians):
    for epoch, found in enumerate(medians, 1):
        store.write_arrays(path / "monitored" / f"{epoch:03}.npz", {"margin": margins_of(found)})


def test_windows_are_a_grid_from_the_lowest_to_the_highest_in_both_directions():
    corners = [window.corner for window in registry.get("margin_map").config.measured((28, 28, 1))]
    expected = [[row, column] for row in range(0, 21, 2) for column in range(0, 21, 2)]
    np.testing.assert_array_equal(corners, expected)


def test_margins_that_grow_with_the_distance_are_in_its_order(tmp_path):
    put(tmp_path, np.exp(np.hypot(ROWS, COLUMNS)))
    assert beyond_the_paper.correlation_with_distance(tmp_path).value == pytest.approx(1)
    put(tmp_path, 1 / (1 + np.hypot(ROWS, COLUMNS)))
    assert beyond_the_paper.correlation_with_distance(tmp_path).value == pytest.approx(-1)


def test_growth_along_axes_is_that_of_the_axis_that_grows_less(tmp_path):
    put(tmp_path, 3 + 2 * ROWS + COLUMNS)  # 3 at the origin, 7 at the end of the columns, 15 at that of the rows
    assert beyond_the_paper.growth_along_axes(tmp_path).value == pytest.approx(7 / 3)


def test_the_order_of_the_first_epoch_is_compared_with_that_of_the_last(tmp_path):
    put_epochs(tmp_path, [1, 2, 3], [9, 9, 1], [3, 5, 9])
    assert beyond_the_paper.correlation_of_first_with_last(tmp_path).value == pytest.approx(1)
    put_epochs(tmp_path, [1, 2, 3], [9, 9, 1], [9, 5, 3])
    assert beyond_the_paper.correlation_of_first_with_last(tmp_path).value == pytest.approx(-1)


def test_early_growth_is_a_share_of_the_logarithm_in_the_upper_third(tmp_path):
    # Of six windows the last two count: both grow sixteenfold in all, eightfold by the third of five epochs.
    epochs = [[1, 1, 1, 1, low * factor, high * factor] for factor in (1, 4, 8, 2, 16) for low, high in [(3, 5)]]
    put_epochs(tmp_path, *epochs)
    assert beyond_the_paper.early_growth(tmp_path).value == pytest.approx(3 / 4)
