"""The picture of margins: what is drawn, read back from the figure."""

import io

import numpy as np
import pytest
from test_statistics import make_result

from hmt_jax import Status, plots

MARGINS = np.random.default_rng(0).lognormal(sigma=2, size=(4, 300))


@pytest.fixture(scope="module")
def axes():
    return plots.margin_distribution(make_result(MARGINS), ticks=list("abcd"), title="a title").axes[0]


def collection(axes, label):
    return next(c for c in axes.collections if c.get_label() == label)


def test_median_line(axes):
    line = next(line for line in axes.lines if line.get_label() == "median")
    np.testing.assert_array_equal(line.get_xdata(), np.arange(4))
    np.testing.assert_allclose(line.get_ydata(), np.median(MARGINS, axis=1))


def test_band_reaches_from_5_to_95_percent(axes):
    vertices = collection(axes, "5% to 95%").get_paths()[0].vertices
    for position in range(4):
        heights = vertices[vertices[:, 0] == position, 1]
        expected = np.percentile(MARGINS[position], [5, 95])
        np.testing.assert_allclose([heights.min(), heights.max()], expected)


def test_swarm_holds_every_sample_beside_its_subspace(axes):
    offsets = collection(axes, "samples").get_offsets()
    for position, margins in enumerate(MARGINS):
        is_here = np.round(offsets[:, 0]) == position
        np.testing.assert_allclose(np.sort(offsets[is_here, 1]), np.sort(margins))
    assert np.abs(offsets[:, 0] - np.round(offsets[:, 0])).max() < 0.5


def test_margins_are_on_a_logarithmic_axis_with_the_given_names(axes):
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == list("abcd")
    assert axes.get_title() == "a title"


def test_samples_without_margin_are_counted_on_the_edge():
    status = np.zeros(MARGINS.shape, int)
    status[1, :7] = Status.OUT_OF_STEPS
    status[1, 7:9] = Status.NON_FINITE
    status[3] = Status.ZERO_GRADIENT
    figure = plots.margin_distribution(make_result(MARGINS, status))
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    assert {text.get_text(): text.get_position()[0] for text in axes.texts} == {"9": 1, "300": 3}
    assert len(collection(axes, "samples").get_offsets()) == 2 * 300 + 291


def test_nothing_but_failures_can_be_drawn():
    figure = plots.margin_distribution(make_result(MARGINS, np.full(MARGINS.shape, Status.OUT_OF_STEPS)))
    figure.savefig(io.BytesIO())
    assert len(figure.axes[0].texts) == 4


def test_history_has_a_row_for_each_epoch_and_a_column_for_each_subspace():
    medians = np.array([[1.0, 2.0, 3.0], [2.0, np.inf, 4.0]])
    figure = plots.margin_history([5, 10], medians, title="a title", ticks=["a", "b", "c"])
    axes, bar = figure.axes
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 2, 3], [2, -1, 4]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5", "10"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert "pixels in [0, 1]" in bar.get_ylabel()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.margin_history([5], np.array([[1.0, 2.0]])).axes[0],
        lambda: plots.margin_maps(np.array([[[1.0, 2.0]]]), [0], [0, 3], titles=["one"]).axes[0],
    ],
)
def test_a_single_row_has_an_extent(draw):
    (mesh,) = draw().collections
    assert (mesh.get_paths()[0].get_extents().size == 1).all()


def test_maps_have_a_panel_each_with_low_frequencies_in_the_upper_left_corner():
    medians = np.array([[[1.0, 2.0, 3.0], [4.0, np.inf, 6.0]], [[2.0, 3.0, 40.0], [5.0, 6.0, 7.0]]])
    figure = plots.margin_maps(medians, [0, 5], [0, 2, 4], titles=["before", "after"], title="a title")
    figure.savefig(io.BytesIO())
    before, after, bar = figure.axes
    np.testing.assert_array_equal(before.collections[0].get_array().filled(-1), [[1, 2, 3], [4, -1, 6]])
    np.testing.assert_array_equal(after.collections[0].get_array().filled(-1), medians[1])
    # Rows count from the top, and every panel has the colours of all.
    assert before.get_ylim()[0] > before.get_ylim()[1]
    assert [axes.collections[0].norm.vmax for axes in (before, after)] == [40, 40]
    assert [axes.get_title() for axes in (before, after)] == ["before", "after"]
    assert [label.get_text() for label in before.get_xticklabels()] == ["0", "2", "4"]
    assert [label.get_text() for label in before.get_yticklabels()] == ["0", "5"]
    assert "pixels in [0, 1]" in bar.get_ylabel()


def test_maps_hide_panels_that_are_left_over_and_most_ticks():
    figure = plots.margin_maps(np.full((5, 21, 21), 2.0), range(21), range(21), titles=list("abcde"))
    figure.savefig(io.BytesIO())
    *panels, _ = figure.axes
    assert [axes.axison for axes in panels] == [True] * 5 + [False] * 3
    assert [label.get_text() for label in panels[4].get_xticklabels()] == [str(i) for i in range(0, 21, 2)]


def test_maps_without_a_single_margin_can_be_drawn():
    figure = plots.margin_maps(np.full((1, 2, 2), np.inf), [0, 1], [0, 1], titles=["nothing"])
    figure.savefig(io.BytesIO())
