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
    figure = plots.margin_distribution(make_result(MARGINS, status), title="a title over the counts")
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    assert axes.title.get_window_extent().y0 > max(text.get_window_extent().y1 for text in axes.texts)
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
    assert np.ma.getmaskarray(figure.axes[0].collections[0].get_array()).all()


@pytest.mark.parametrize("num_subspaces", [1, 6, 13, 21])
def test_the_legend_lies_within_the_figure(num_subspaces):
    status = np.zeros((num_subspaces, 5), int)
    status[0, 0] = Status.OUT_OF_STEPS
    figure = plots.margin_distribution(make_result(np.ones((num_subspaces, 5)), status))
    figure.savefig(io.BytesIO())
    extent = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 5
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1


def draw_curves(number):
    percentiles = {str(i): np.tile([[1.0, 2.0, 3.0]], (2, 1)) for i in range(number)}
    return plots.margin_curves([0, 1], {"a panel": percentiles})


def draw_intervals(number):
    return plots.margin_intervals(["a", "b"], {str(i): np.tile([[1.0, 2.0, 3.0]], (2, 1)) for i in range(number)})


@pytest.mark.parametrize("draw", [draw_curves, draw_intervals])
def test_every_curve_is_drawn_in_a_colour_of_its_own(draw):
    figure = draw(10)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(i) for i in range(10)]
    handles = figure.legends[0].legend_handles
    colors = [getattr(handle, "get_edgecolor", getattr(handle, "get_color", None))() for handle in handles]
    assert len(set(map(str, colors))) == 10
    with pytest.raises(ValueError, match="11 curves can't be told apart, 10 can"):
        draw(11)


def test_a_curve_has_one_colour_in_all_panels_and_stands_in_the_legend_once():
    curve = np.tile([[1.0, 2.0, 3.0]], (2, 1))
    figure = plots.margin_curves([0, 1], {"a": {"x": curve, "z": curve}, "b": {"y": curve, "x": curve}})
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["x", "z", "y"]
    x, z, y = (handle.get_color() for handle in legend.legend_handles)
    assert len({x, y, z}) == 3
    assert [[line.get_color() for line in axes.lines] for axes in figure.axes] == [[x, z], [y, x]]
    with pytest.raises(ValueError, match="panels is empty: give at least one"):
        plots.margin_curves([0, 1], {})


def test_many_networks_stay_beside_their_subspace():
    axes = draw_intervals(10).axes[0]
    places = np.concatenate([c.get_offsets()[:, 0] for c in axes.collections if c.get_label() in "0123456789"])
    assert len(places) == 20
    assert np.abs(places - np.round(places)).max() < 0.5


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0])
def test_medians_that_a_logarithm_has_none_of_are_left_blank(value):
    medians = np.array([[1.0, value], [2.0, 4.0]])
    for figure in (
        plots.margin_history([1, 2], medians, ticks=np.array(["a", "b"])),
        plots.margin_maps(medians[None], [0, 1], [0, 1], titles=["one"]),
        plots.margin_history([1, 2], np.full((2, 2), value)),
    ):
        figure.savefig(io.BytesIO())
    mesh = plots.margin_history([1, 2], medians).axes[0].collections[0]
    np.testing.assert_array_equal(np.ma.getmaskarray(mesh.get_array()).ravel(), [False, True, False, False])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.margin_history([1, 2, 3], np.ones((2, 4))), "epochs must have one entry for each of the 2 rows"),
        (
            lambda: plots.margin_history([1], np.ones((1, 4)), ticks=["a"]),
            "ticks must have one entry for each of the 4",
        ),
        (lambda: plots.margin_history([1], np.ones(4)), r"medians must have shape \(E, R\)"),
        (
            lambda: plots.margin_maps(np.ones((2, 2)), [0, 1], [0, 1], titles=["a"]),
            r"medians must have shape \(P, I, J",
        ),
        (
            lambda: plots.margin_maps(np.ones((2, 3, 1)), range(3), [0], titles=["a"]),
            "titles must .* the 2 panels, got 1",
        ),
        (
            lambda: plots.margin_maps(np.ones((1, 3, 1)), range(2), [0], titles=["a"]),
            "rows must .* the 3 rows of a panel",
        ),
        (lambda: plots.cross_sections(np.ones((2, 3, 3)), range(3), range(3), titles=["a"]), "titles must .* 2 panels"),
        (
            lambda: plots.cross_sections(
                np.ones((1, 3, 3)), range(3), range(3), titles=["a"], points=np.ones((2, 4, 2)), labels=np.zeros(4)
            ),
            "points must .* the 1 panels, got 2",
        ),
        (
            lambda: plots.cross_sections(
                np.ones((1, 3, 3)), range(3), range(3), titles=["a"], points=np.ones((1, 4, 2))
            ),
            "points and labels belong together: give both, or none",
        ),
        (lambda: plots.margin_distribution(make_result(MARGINS), ticks=["a"]), "ticks must .* the 4 subspaces, got 1"),
    ],
)
def test_lengths_that_do_not_match_are_told(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
