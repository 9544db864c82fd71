"""Summaries of margins, against NumPy and the theory of order statistics."""

import dataclasses
import re
from statistics import median

import jax
import numpy as np
import pytest
from scipy import stats

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


# Tables


def rows_of(table):
    """The cells of a printed table, line by line, without its title; columns are two spaces apart."""
    return [re.split(r"\s{2,}", line) for line in str(table).splitlines()[1:]]


def test_a_summary_is_printed_as_a_table():
    margins = np.array([[0.5, 1.0, 2.0, 4.0], [1.0, 1234.5, 2e6, 3.0]])
    status = [[0, 0, 0, 0], [0, 0, Status.OUT_OF_STEPS, Status.NON_FINITE]]
    summary = statistics.summarize(make_result(margins, status), ranks=(0, 50, 100), names=["low", "high"])
    summary = dataclasses.replace(summary, median_interval=np.array([[0.51234, 3.9999], [100, np.inf]]))
    title, *_ = str(summary).splitlines()
    assert title == "Margins of 4 images (L2, pixels in [0, 1])"
    assert rows_of(summary) == [
        ["subspace", "median", "95% interval", "0%", "100%", "converged", "out_of_steps", "non_finite"],
        ["low", "1.50", "0.512 to 4.00", "0.500", "4.00", "4", "0", "0"],
        ["high", "1234", "100 to inf", "1.00", "inf", "2", "1", "1"],
    ]
    assert repr(summary) == str(summary)
    assert str(summary).isascii()
    assert len({len(line) for line in str(summary).splitlines()[1:]}) == 1  # columns end at the same place


def test_counts_that_are_nowhere_are_left_out_of_a_table(margins):
    head, *rows = rows_of(statistics.summarize(make_result(margins), confidence=0.9))
    assert head == ["subspace", "median", "90% interval", "5%", "95%", "converged"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[-1] for row in rows] == ["51"] * 3


@pytest.mark.parametrize(("num_subspaces", "num_lines"), [(40, 40), (41, 41), (1000, 41)])
def test_long_tables_lack_their_middle(num_subspaces, num_lines):
    summary = statistics.summarize(make_result(np.ones((num_subspaces, 1))), num_resamples=1)
    _, *rows = rows_of(summary)
    assert len(rows) == num_lines
    shown = [row[0] for row in rows]
    if num_subspaces == 40:
        assert shown == [str(r) for r in range(40)]
    else:
        assert shown == [*map(str, range(20)), "...", *map(str, range(num_subspaces - 20, num_subspaces))]


def test_a_summary_of_no_images_can_be_printed():
    assert rows_of(statistics.summarize(make_result(np.ones((1, 0)))))[1] == [
        "0",
        "nan",
        "nan to nan",
        *["nan"] * 2,
        "0",
    ]


@pytest.mark.parametrize(
    ("names", "found"), [(["low"], "1"), ("low", "'low'"), (["low", "middle", "high", "highest"], "4")]
)
def test_names_are_one_for_each_subspace(margins, names, found):
    result = make_result(margins)
    message = f"^names must be a list with one name for each of the 3 subspaces, got {found}$"
    with pytest.raises(ValueError, match=message):
        statistics.summarize(result, names=names)
    with pytest.raises(ValueError, match=message):
        statistics.compare(result, result, names=names)


# Two results of the same samples


def random_pair(num_images=101, seed=0):
    """Two results in three subspaces, of which many pairs of margins are censored or missing, and some are equal."""
    rng = np.random.default_rng(seed)
    first, second = rng.lognormal(size=(2, 3, num_images))
    second[:, ::7] = first[:, ::7]
    chances = [0.7, 0.1, 0.05, 0.1, 0.05]
    statuses = rng.choice(5, size=(2, 3, num_images), p=chances)
    a, b = (make_result(margin, status) for margin, status in zip((first, second), statuses, strict=True))
    return a, dataclasses.replace(b, label=b.label + (rng.random(b.label.shape) < 0.3))


def looped(a, b, r, images):
    """Ratios, medians and counts of one subspace over images, pair by pair, as the documentation says them."""
    ratios, known_a, known_b = [], [], []
    counts = dict.fromkeys(("compared", "censored_in_a", "censored_in_b", "other_label"), 0)
    counts |= {"censored_in_both": 0, "non_finite": 0, "larger": 0, "smaller": 0, "equal": 0}
    for n in images:
        statuses = a.status[r, n], b.status[r, n]
        if Status.NON_FINITE in statuses:
            counts["non_finite"] += 1
            continue
        in_a, in_b = (result.margin[r, n] if result.status[r, n] == 0 else np.inf for result in (a, b))
        known_a.append(in_a)
        known_b.append(in_b)
        if in_a == in_b == np.inf:
            counts["censored_in_both"] += 1
            continue
        counts["compared"] += 1
        counts["censored_in_a"] += in_a == np.inf
        counts["censored_in_b"] += in_b == np.inf
        counts["other_label"] += a.label[r, n] != b.label[r, n]
        counts["larger" if in_b > in_a else "smaller" if in_b < in_a else "equal"] += 1
        ratios.append(0.0 if in_a == np.inf else np.inf if in_b == np.inf else in_b / in_a)
    return median(ratios), median(known_b) / median(known_a), counts


def test_a_comparison_is_that_of_a_loop_over_pairs():
    a, b = random_pair()
    found = statistics.compare(a, b, num_resamples=1)
    for r in range(3):
        ratio, of_medians, counts = looped(a, b, r, range(101))
        np.testing.assert_allclose(found.median_ratio[r], ratio, rtol=1e-12)
        np.testing.assert_allclose(found.ratio_of_medians[r], of_medians, rtol=1e-12)
        for name in ("larger", "smaller", "equal"):
            assert getattr(found, name)[r] == counts.pop(name) / counts["compared"]
        assert {name: numbers[r] for name, numbers in found.counts.items()} == counts
        assert min(counts.values()) > 0  # every kind of pair was there


def test_the_intervals_are_percentiles_over_draws_of_pairs():
    a, b = random_pair()
    key = jax.random.key(5)
    found = statistics.compare(a, b, num_resamples=60, confidence=0.8, key=key)
    draws = np.asarray(jax.random.randint(key, (60, 101), 0, 101))
    for r in range(3):
        ratios, of_medians, _ = zip(*(looped(a, b, r, draw) for draw in draws), strict=True)
        np.testing.assert_allclose(found.median_ratio_interval[r], np.percentile(ratios, [10, 90]), rtol=1e-12)
        np.testing.assert_allclose(found.ratio_of_medians_interval[r], np.percentile(of_medians, [10, 90]), rtol=1e-12)
    assert found.confidence == 0.8


def test_the_intervals_are_those_of_scipy():
    rng = np.random.default_rng(3)
    first = rng.lognormal(size=(1, 200))
    second = 1.5 * first * rng.lognormal(sigma=0.3, size=first.shape)
    found = statistics.compare(make_result(first), make_result(second), num_resamples=4000)
    for statistic, low, high in (
        (lambda a, b, axis: np.median(b / a, axis=axis), *found.median_ratio_interval[0]),
        (
            lambda a, b, axis: np.median(b, axis=axis) / np.median(a, axis=axis),
            *found.ratio_of_medians_interval[0],
        ),
    ):
        bootstrap = stats.bootstrap(
            (first[0], second[0]), statistic, paired=True, n_resamples=4000, method="percentile", rng=rng
        )
        expected = bootstrap.confidence_interval
        # Ends of 4000 other draws differ by some hundredths of the interval.
        np.testing.assert_allclose([low, high], expected, rtol=0, atol=0.1 * (expected.high - expected.low))
    # Had both been drawn by themselves, the margins' own spread would be in the interval.
    unpaired = stats.bootstrap(
        (first[0], second[0]),
        lambda a, b, axis: np.median(b, axis=axis) / np.median(a, axis=axis),
        paired=False,
        n_resamples=1000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert np.diff(found.ratio_of_medians_interval[0]) < 0.8 * (unpaired.high - unpaired.low)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    # 300 networks, whose margins are 1.5 times as large but for noise of median 1; three standard errors are 5.2%.
    rng = np.random.default_rng(4)
    first = rng.lognormal(size=(300, 101))
    second = 1.5 * first * rng.lognormal(sigma=0.4, size=first.shape)
    found = statistics.compare(make_result(first), make_result(second), confidence=0.9, num_resamples=200)
    low, high = found.median_ratio_interval.T
    assert abs(np.mean((low <= 1.5) & (high >= 1.5)) - 0.9) < 0.052


def test_the_other_way_round_ratios_are_reciprocal_and_shares_change_places():
    a, b = random_pair(seed=1)
    forth, back = (statistics.compare(*pair, num_resamples=1) for pair in ((a, b), (b, a)))
    # Of an even number of ratios, the two in the middle are averaged, and the averages are not reciprocal.
    is_odd = forth.counts["compared"] % 2 == 1
    assert is_odd.any()
    np.testing.assert_allclose(forth.median_ratio[is_odd], 1 / back.median_ratio[is_odd], rtol=1e-12)
    np.testing.assert_array_equal(forth.larger, back.smaller)
    np.testing.assert_array_equal(forth.equal, back.equal)
    np.testing.assert_array_equal(forth.counts["censored_in_a"], back.counts["censored_in_b"])


def test_what_is_censored_in_half_of_the_samples_has_no_ratio_of_medians():
    censored = [[0, 1, 1, 1]]
    result = make_result([[1.0, 2.0, 3.0, 4.0]], censored)
    both = statistics.compare(result, dataclasses.replace(result, margin=3 * result.margin))
    assert np.isnan(both.ratio_of_medians).all()
    assert np.isnan(both.ratio_of_medians_interval).all()
    # Of the one pair that is left the ratio is known, but a draw lacks it in 0.75^4 = 32% of all cases.
    assert both.median_ratio == 3
    assert np.isnan(both.median_ratio_interval).all()
    np.testing.assert_array_equal([both.larger, both.smaller, both.counts["censored_in_both"]], [[1], [0], [3]])
    whole = make_result([[1.0, 2.0, 3.0, 4.0]])
    assert statistics.compare(result, whole).ratio_of_medians == 0
    assert statistics.compare(whole, result).ratio_of_medians == np.inf


def test_margins_of_zero_have_ratios():
    first, second = make_result([[0.0, 0.0, 0.0, 2.0]]), make_result([[0.0, 0.0, 3.0, 0.0]])
    found = statistics.compare(first, second)
    assert (found.median_ratio, found.larger, found.smaller, found.equal) == (1, 0.25, 0.25, 0.5)


def test_nothing_to_compare_is_nan():
    found = statistics.compare(make_result(np.ones((2, 3))), make_result(np.ones((2, 3)), [[1, 1, 1], [2, 2, 2]]))
    np.testing.assert_array_equal(found.larger, [1, np.nan])
    np.testing.assert_array_equal(found.median_ratio, [np.inf, np.nan])
    assert np.isnan(found.median_ratio_interval[1]).all()
    np.testing.assert_array_equal(found.counts["non_finite"], [0, 3])
    assert rows_of(found)[2] == ["1", "nan", "nan to nan", "nan", "nan to nan", *["nan"] * 3, "0", "0", "3"]


def test_a_comparison_is_printed_as_a_table():
    first = make_result([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]], [[0, 0, 0, 0], [0, 0, 0, Status.UNCONFIRMED]])
    second = make_result([[2.0, 2.0, 2.0, 2.0], [0.5, 1.0, 3.0, 4.0]])
    found = statistics.compare(first, second, names=["low", "high"], confidence=0.99)
    found = dataclasses.replace(found, ratio_of_medians_interval=np.array([[2, 2.5], [0, np.inf]]))
    assert str(found).splitlines()[0] == "Ratios b / a of paired margins"
    head = ["subspace", "median ratio", "99% interval", "ratio of medians", "99% interval"]
    low, high = (f"{end:#.3g}" for end in found.median_ratio_interval[1])
    assert rows_of(found) == [
        [*head, "larger", "smaller", "equal", "compared", "censored_in_a"],
        ["low", "2.00", "2.00 to 2.00", "2.00", "2.00 to 2.50", "100.0%", "0.0%", "0.0%", "4", "0"],
        ["high", "0.500", f"{low} to {high}", "0.800", "0.00 to inf", "0.0%", "75.0%", "25.0%", "4", "1"],
    ]
    assert repr(found) == str(found)
    assert str(found).isascii()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"b": make_result(np.ones((3, 50)))},
            r"^a and b must hold margins of the same images in the same subspaces, got results of \(3, 51\) and "
            r"\(3, 50\) \(subspaces, images\): select those that both have, as in a\[:, is_in_both\]$",
        ),
        ({"confidence": 0}, "^confidence must be between 0 and 1, got 0$"),
        ({"num_resamples": 0}, "^num_resamples must be at least 1, got 0$"),
    ],
)
def test_comparisons_that_make_no_sense(margins, arguments, message):
    result = make_result(margins)
    with pytest.raises(ValueError, match=message):
        statistics.compare(**{"a": result, "b": result} | arguments)


def test_only_results_are_compared(margins):
    with pytest.raises(TypeError, match=r"pass the MarginResult of hmt_jax\.measure_margins, got .*ndarray"):
        statistics.compare(make_result(margins), margins)
