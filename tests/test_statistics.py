"""Summaries of margins, against NumPy and the theory of order statistics."""

import dataclasses

import jax
import numpy as np
import pytest

from hmt_jax import MarginResult, Status, lanes, solvers, statistics


def make_result(margin, status=None) -> MarginResult:
    """A result with the given margins (R, N), all converged unless a status says otherwise."""
    margin = np.asarray(margin, np.float64)
    status = np.full(margin.shape, Status.CONVERGED) if status is None else np.asarray(status)
    labels = np.zeros(margin.shape, np.int32)
    return MarginResult(
        margin=margin,
        label=labels,
        adversarial_label=labels + 1,
        num_steps=labels,
        status=status,
        gap=np.zeros_like(margin),
        alignment=np.ones_like(margin),
        coordinates=None,
        solver=repr(solvers.DeepFool()),
        precision="highest",
        work=lanes.Work(1, 1, 1),
    )


@pytest.fixture(scope="module")
def margins():
    return np.random.default_rng(0).lognormal(size=(3, 51))


def test_converged_margins_have_numpys_percentiles(margins):
    ranks = (0, 2.5, 50, 77, 100)
    summary = statistics.summarize(make_result(margins), ranks=ranks)
    np.testing.assert_allclose(summary.median, np.median(margins, axis=1), rtol=1e-12)
    np.testing.assert_allclose(summary.percentiles, np.percentile(margins, ranks, axis=1).T, rtol=1e-12)
    assert summary.ranks == ranks


def test_even_numbers_of_samples_interpolate():
    assert statistics.summarize(make_result([[4.0, 1.0, 2.0, 3.0]])).median == 2.5


@pytest.mark.parametrize("status", [Status.OUT_OF_STEPS, Status.ZERO_GRADIENT, Status.UNCONFIRMED])
def test_censored_margins_count_as_larger_than_all_others(status):
    # The distance reached by a failed search is small here, and must not pull the median down.
    result = make_result([[1.0, 2.0, 3.0, 0.1, 0.1]], [[Status.CONVERGED] * 3 + [status] * 2])
    summary = statistics.summarize(result, ranks=(0, 50, 75, 100))
    assert summary.median == 3.0
    np.testing.assert_array_equal(summary.percentiles, [[1.0, 3.0, np.inf, np.inf]])
    assert summary.counts[status.name.lower()] == 2
    assert summary.counts["converged"] == 3


@pytest.mark.parametrize("rank", range(101))
def test_a_rank_that_falls_on_a_value_is_that_value(rank):
    """Whatever comes behind it: of 101 values the one at that place."""
    values = np.where(np.arange(101) <= rank, np.arange(101.0), np.inf)
    assert statistics.percentile(values, rank) == rank


def test_median_is_infinite_where_half_are_censored():
    censored = [[Status.CONVERGED] * 2 + [Status.OUT_OF_STEPS] * 2]
    assert statistics.summarize(make_result([[1.0, 2.0, 3.0, 4.0]], censored)).median == np.inf


def test_samples_without_logits_are_left_out_and_counted():
    result = make_result([[1.0, np.nan, 3.0], [np.nan] * 3], [[0, 2, 0], [2, 2, 2]])
    summary = statistics.summarize(result)
    np.testing.assert_array_equal(summary.median, [2.0, np.nan])
    np.testing.assert_array_equal(summary.counts["non_finite"], [1, 3])
    np.testing.assert_array_equal(sum(summary.counts.values()), [3, 3])


def test_bootstrap_interval_covers_the_true_median_as_often_as_it_says():
    # 400 samples of 101 exponential variables with median log 2; three standard errors of a 90% rate are 4.5%.
    samples = np.random.default_rng(1).exponential(size=(400, 101))
    summary = statistics.summarize(make_result(samples), confidence=0.9, num_resamples=300)
    low, high = summary.median_interval.T
    assert abs(np.mean((low <= np.log(2)) & (np.log(2) <= high)) - 0.9) < 0.045


def test_bootstrap_is_decided_by_its_key(margins):
    def interval(key):
        return statistics.summarize(make_result(margins), num_resamples=50, key=key).median_interval

    np.testing.assert_array_equal(interval(jax.random.key(3)), interval(jax.random.key(3)))
    assert (interval(jax.random.key(3)) != interval(jax.random.key(4))).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": (50, 101)}, r"ranks must be percentages between 0 and 100, got \(50, 101\)"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"num_resamples": 0}, "num_resamples must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(margins, arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics.summarize(make_result(margins), **arguments)


@pytest.mark.parametrize("rank", [-10, 101, np.nan])
def test_a_rank_is_a_percentage(rank):
    with pytest.raises(ValueError, match=f"rank must be a percentage between 0 and 100, got {rank}"):
        statistics.percentile([1.0, 2.0, 3.0], rank)


@pytest.mark.parametrize("rank", [0, 5, 50, 77.7, 100])
def test_percentiles_are_along_the_last_axis(rank):
    """Those of every row alone, of which each has as many NaNs as its number says, the last one nothing else."""
    values = np.random.default_rng(0).lognormal(size=(2, 8, 7))
    for num_missing, rows in enumerate(values.swapaxes(0, 1)):
        rows[:, :num_missing] = np.nan
    found = statistics.percentile(values, rank)
    expected = [[np.percentile(values[i, j, j:], rank) if j < 7 else np.nan for j in range(8)] for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_the_percentile_of_nothing_is_nan(shape):
    found = statistics.percentile(np.zeros(shape), 50)
    assert found.shape == shape[:-1]
    assert np.isnan(found).all()


def test_percentiles_may_be_left_out(margins):
    assert statistics.summarize(make_result(margins), ranks=()).percentiles.shape == (3, 0)


def test_ranks_may_come_one_by_one(margins):
    found = statistics.summarize(make_result(margins), ranks=(rank for rank in (10, 90)))
    assert found.ranks == (10, 90)
    assert found.percentiles.shape[1] == 2


def test_raise_unless_converged_names_the_pairs():
    result = make_result(np.ones((2, 3)), [[0, 0, 1], [3, 0, 2]])
    with pytest.raises(
        ValueError, match=r"3 of 6 .* \(0, 2\) OUT_OF_STEPS, \(1, 0\) ZERO_GRADIENT, \(1, 2\) NON_FINITE"
    ):
        result.raise_unless_converged()
    dataclasses.replace(result, status=np.zeros((2, 3), int)).raise_unless_converged()


@pytest.mark.parametrize("wrong", [lambda result: result.margin, lambda result: [result, result]])
def test_only_a_result_is_summarised(margins, wrong):
    message = r"pass the MarginResult of hmt_jax\.measure_margins, got .*hmt_jax\.statistics\.censored"
    with pytest.raises(TypeError, match=message):
        statistics.summarize(wrong(make_result(margins)))
