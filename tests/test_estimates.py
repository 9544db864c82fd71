"""Numbers with their intervals."""

import numpy as np
import pytest

from hmt_jax.estimates import from_medians, from_runs, from_samples, from_share


def numpy_interval(statistic, *margins, num_resamples=2000):
    """The percentile bootstrap, draw by draw, with other draws."""
    rng, num_samples = np.random.default_rng(1), margins[0].shape[1]
    values = []
    for _ in range(num_resamples):
        draw = rng.integers(num_samples, size=num_samples)
        values.append(statistic(*(np.median(curves[:, draw], axis=1) for curves in margins)))
    return np.percentile(values, (2.5, 97.5))


def test_interval_is_that_of_a_numpy_bootstrap():
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(size=(2, 3, 200)) * np.array([1, 2, 4])[None, :, None]

    def statistic(medians, others):
        return medians[-1] / others[0]

    found = from_medians(statistic, first, second)
    assert found.value == pytest.approx(np.median(first[2]) / np.median(second[0]))
    low, high = numpy_interval(statistic, first, second)
    # An end of the interval is known to a twentieth of its width with so many draws.
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_runs_are_resampled_together():
    margins = np.random.default_rng(0).lognormal(size=(4, 50))
    assert from_medians(lambda a, b: np.max(a / b), margins, margins) == (1, 1, 1)
    values = margins[0]
    assert from_samples(lambda a, b: a.mean() / b.mean(), values, values) == (1, 1, 1)


def test_a_share_has_the_interval_of_a_proportion():
    value, low, high = from_share(0.7, 1000)
    assert value == 0.7
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    np.testing.assert_allclose([low, high], [0.7 - half_width, 0.7 + half_width], atol=0.003)  # draws


def test_one_more_run_lies_in_the_interval_of_three():
    draws = np.random.default_rng(0).normal(5, 2, size=(4000, 4))
    intervals = np.array([from_runs(others) for others in draws[:, 1:]])
    share = np.mean((intervals[:, 1] <= draws[:, 0]) & (draws[:, 0] <= intervals[:, 2]))
    assert share == pytest.approx(0.95, abs=0.01)  # three standard errors of the share
    np.testing.assert_allclose(intervals[:, 0], draws[:, 1:].mean(axis=1))


def test_runs_without_a_number_have_no_interval():
    value, low, high = from_runs([1.0, np.inf, 2.0])
    assert value == np.inf
    assert np.isnan([low, high]).all()


def test_means_have_the_interval_of_means():
    values = np.random.default_rng(0).normal(size=400)
    value, low, high = from_samples(lambda sample: sample.mean(), values)
    assert value == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], [value - half_width, value + half_width], atol=0.1 * half_width)


def test_samples_must_be_the_same():
    with pytest.raises(ValueError, match=r"must be the same in all arrays that are compared, got \[3, 4\] of them"):
        from_medians(lambda a, b: 0, np.ones((2, 3)), np.ones((2, 4)))


def test_an_interval_is_none_where_many_resamples_have_no_value():
    """Half of the samples of both networks are censored, so that half of the resamples have no ratio of medians."""
    margins = np.where(np.arange(50) < 24, np.inf, [[3.0]])
    found = from_medians(lambda ours, theirs: ours[0] / theirs[0], margins, margins / 3)
    assert found.value == 3
    assert np.isnan([found.low, found.high]).all()


def test_intervals_of_more_confidence_hold_those_of_less():
    margins = np.random.default_rng(0).lognormal(size=(2, 60))
    for function, arguments in (
        (from_medians, [lambda medians: medians[1] / medians[0], margins]),
        (from_samples, [np.mean, margins[0]]),
        (from_share, [0.3, 60]),
        (from_runs, [margins[0, :5]]),
    ):
        wide, narrow = (function(*arguments, confidence=confidence) for confidence in (0.9, 0.5))
        assert wide.value == narrow.value
        assert wide.low < narrow.low < narrow.high < wide.high


def test_draws_depend_on_the_seed():
    values = np.random.default_rng(0).lognormal(size=40)
    first, again, other = (from_samples(np.mean, values, seed=seed, num_resamples=20) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [
        (from_share, (1.2, 5), {}, "share must be between 0 and 1, got 1.2"),
        (from_runs, ([1.0],), {}, "values must be those of at least two runs, got 1: one has no spread"),
        (from_runs, ([1.0, 2.0],), {"confidence": 1}, "confidence must be between 0 and 1, got 1"),
        (from_samples, (np.mean, np.ones(3)), {"num_resamples": 0}, "num_resamples must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_told(function, arguments, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(*arguments, **options)
