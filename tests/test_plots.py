"""The pictures of margins: what is drawn, read back from the figure."""

import dataclasses
import io
import itertools
import re

import jax
import matplotlib.collections
import matplotlib.colors
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_statistics import make_result

from experiments import report
from experiments.experiment import Run
from hmt_jax import MarginStore, Status, plots


def figure_of(drawn):
    """The figure around some axes."""
    return np.ravel(drawn)[0].figure


MARGINS = np.random.default_rng(0).lognormal(sigma=2, size=(4, 300))


@pytest.fixture(scope="module")
def axes():
    return plots.margin_distribution(make_result(MARGINS), ticks=list("abcd"), title="a title")


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
    assert axes.figure.get_suptitle() == "a title"


def test_samples_without_margin_are_counted_on_the_edge():
    status = np.zeros(MARGINS.shape, int)
    status[1, :7] = Status.OUT_OF_STEPS
    status[1, 7:9] = Status.NON_FINITE
    status[3] = Status.ZERO_GRADIENT
    axes = plots.margin_distribution(make_result(MARGINS, status), title="a title over the counts")
    figure = axes.figure
    figure.savefig(io.BytesIO())
    (title,) = figure.texts
    assert title.get_window_extent().y0 > max(text.get_window_extent().y1 for text in axes.texts)
    assert {text.get_text(): text.get_position()[0] for text in axes.texts} == {"9": 1, "300": 3}
    assert len(collection(axes, "samples").get_offsets()) == 2 * 300 + 291


def test_nothing_but_failures_can_be_drawn():
    axes = plots.margin_distribution(make_result(MARGINS, np.full(MARGINS.shape, Status.OUT_OF_STEPS)))
    axes.figure.savefig(io.BytesIO())
    assert len(axes.texts) == 4


@pytest.mark.parametrize("margins", [np.zeros((2, 3)), np.zeros((2, 0))], ids=["zeros", "no images"])
def test_margins_that_no_logarithm_is_of_can_be_drawn(margins):
    result = make_result(margins)
    for axes in (plots.margin_distribution(result), plots.compare({"a": result})):
        axes.figure.savefig(io.BytesIO())


def test_history_has_a_row_for_each_epoch_and_a_column_for_each_subspace():
    medians = np.array([[1.0, 2.0, 3.0], [2.0, np.inf, 4.0]])
    axes, bar = plots.margin_history([5, 10], medians, title="a title", ticks=["a", "b", "c"]).figure.axes
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 2, 3], [2, -1, 4]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5", "10"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert "pixels in [0, 1]" in bar.get_ylabel()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.margin_history([5], np.array([[1.0, 2.0]])),
        lambda: plots.margin_maps(np.array([[[1.0, 2.0]]]), [0], [0, 3], titles=["one"])[0],
    ],
)
def test_a_single_row_has_an_extent(draw):
    (mesh,) = draw().collections
    assert (mesh.get_paths()[0].get_extents().size == 1).all()


def test_maps_have_a_panel_each_with_low_frequencies_in_the_upper_left_corner():
    medians = np.array([[[1.0, 2.0, 3.0], [4.0, np.inf, 6.0]], [[2.0, 3.0, 40.0], [5.0, 6.0, 7.0]]])
    figure = figure_of(plots.margin_maps(medians, [0, 5], [0, 2, 4], titles=["before", "after"], title="a title"))
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
    figure = figure_of(plots.margin_maps(np.full((5, 21, 21), 2.0), range(21), range(21), titles=list("abcde")))
    figure.savefig(io.BytesIO())
    *panels, _ = figure.axes
    assert [axes.axison for axes in panels] == [True] * 5 + [False] * 3
    assert [label.get_text() for label in panels[4].get_xticklabels()] == [str(i) for i in range(0, 21, 2)]


def test_maps_without_a_single_margin_can_be_drawn():
    figure = figure_of(plots.margin_maps(np.full((1, 2, 2), np.inf), [0, 1], [0, 1], titles=["nothing"]))
    figure.savefig(io.BytesIO())
    assert np.ma.getmaskarray(figure.axes[0].collections[0].get_array()).all()


@pytest.mark.parametrize("num_subspaces", [1, 6, 13, 21])
def test_the_legend_lies_within_the_figure(num_subspaces):
    status = np.zeros((num_subspaces, 5), int)
    status[0, 0] = Status.OUT_OF_STEPS
    figure = plots.margin_distribution(make_result(np.ones((num_subspaces, 5)), status)).figure
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


def draw_compared(number):
    return plots.compare({str(i): make_result(np.full((2, 3), 1.5**i)) for i in range(number)})


@pytest.mark.parametrize("draw", [draw_curves, draw_intervals, draw_compared])
def test_every_curve_is_drawn_in_a_colour_of_its_own(draw):
    figure = figure_of(draw(10))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(i) for i in range(10)]
    handles = figure.legends[0].legend_handles
    colors = [getattr(handle, "get_edgecolor", getattr(handle, "get_color", None))() for handle in handles]
    assert len(set(map(str, colors))) == 10
    with pytest.raises(ValueError, match="11 curves can't be told apart, at most 10 can"):
        draw(11)


def test_a_curve_has_one_colour_in_all_panels_and_stands_in_the_legend_once():
    curve = np.tile([[1.0, 2.0, 3.0]], (2, 1))
    figure = figure_of(plots.margin_curves([0, 1], {"a": {"x": curve, "z": curve}, "b": {"y": curve, "x": curve}}))
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["x", "z", "y"]
    x, z, y = (handle.get_color() for handle in legend.legend_handles)
    assert len({x, y, z}) == 3
    assert [[line.get_color() for line in axes.lines] for axes in figure.axes] == [[x, z], [y, x]]
    with pytest.raises(ValueError, match="panels is empty: pass at least one"):
        plots.margin_curves([0, 1], {})


# Several results


def test_medians_of_several_results_lie_over_each_other_in_their_intervals():
    """The networks may have been measured on different numbers of images, but in the same subspaces."""
    results = {"standard": make_result(MARGINS), "robust": make_result(2 * MARGINS[:, :150])}
    key = jax.random.key(3)
    figure = figure_of(plots.compare(results, title="two networks", ticks=list("abcd"), key=key))
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(results)
    bands = [each for each in axes.collections if isinstance(each, matplotlib.collections.PolyCollection)]
    for line, band, result in zip(axes.lines, bands, results.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(4))
        np.testing.assert_allclose(line.get_ydata(), np.median(result.margin, axis=1))
        # The band is as wide as the percentile bootstrap of the median, draw by draw.
        num_images = result.margin.shape[1]
        draws = np.asarray(jax.random.randint(key, (1000, num_images), 0, num_images))
        ends = np.percentile([np.median(result.margin[:, draw], axis=1) for draw in draws], [2.5, 97.5], axis=0)
        vertices = band.get_paths()[0].vertices
        for position in range(4):
            heights = vertices[vertices[:, 0] == position, 1]
            np.testing.assert_allclose([heights.min(), heights.max()], ends[:, position])
        assert matplotlib.colors.same_color(band.get_facecolor()[0][:3], line.get_color())
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == list("abcd")
    assert figure.get_suptitle() == "two networks"


def test_compared_medians_that_are_censored_are_triangles_on_the_edge():
    status = np.zeros(MARGINS.shape, int)
    status[2] = Status.OUT_OF_STEPS
    status[3] = Status.NON_FINITE
    figure = figure_of(plots.compare({"whole": make_result(MARGINS), "failed": make_result(MARGINS, status)}))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    top = axes.get_ylim()[1]
    triangles = [each.get_offsets().tolist() for each in axes.collections if len(each.get_offsets())]
    assert triangles[-1] == [[2, top]]
    np.testing.assert_array_equal(np.isnan(axes.lines[1].get_ydata()), [False, False, True, True])


@pytest.mark.parametrize("length", [1, 3, 8, 30])
def test_names_of_compared_subspaces_do_not_overlap(length):
    figure = figure_of(plots.compare({"a": make_result(np.ones((30, 2)))}, ticks=["m" * length] * 30))
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 30
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(labels))


def test_numbers_of_compared_subspaces_are_whole():
    figure = figure_of(plots.compare({"a": make_result(np.ones((3, 2)))}))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert [place for place in axes.get_xticks() if low <= place <= high] == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "found"), [(lambda result: [result], "list"), (lambda result: result, "MarginResult")]
)
def test_compared_results_have_names(wrong, found):
    with pytest.raises(TypeError, match=f"^results must be a dict of MarginResults by name, got {found}$"):
        plots.compare(wrong(make_result(MARGINS)))


def test_many_networks_stay_beside_their_subspace():
    axes = draw_intervals(10)
    places = np.concatenate([c.get_offsets()[:, 0] for c in axes.collections if c.get_label() in "0123456789"])
    assert len(places) == 20
    assert np.abs(places - np.round(places)).max() < 0.5


LONG = "cifar10_densenet121_flipped_robust: test accuracy 87.34%, 5000 test images, after adversarial training with PGD"
CURVE = np.tile([[1.0, 2.0, 3.0]], (3, 1))
RUNS = {f"cifar10_densenet121_flipped_robust with adversarial training, seed {i}": CURVE * 1.2**i for i in range(8)}
ENERGIES = np.ones((60, 3)) / 3
DRAWN = {
    "distribution": lambda title: plots.margin_distribution(make_result(MARGINS), title=title, xlabel=title),
    "history": lambda title: plots.margin_history(range(60), np.ones((60, 30)), title=title, xlabel=title),
    "maps": lambda title: plots.margin_maps(np.ones((3, 2, 2)), [0, 1], [0, 1], titles=[title] * 3, title=title),
    "curves": lambda title: plots.margin_curves(range(3), {title: RUNS}, title=title, xlabel=title),
    "compared": lambda title: plots.compare(
        {name: make_result(curve) for name, curve in RUNS.items()}, title=title, xlabel=title, ticks=[LONG[:16]] * 3
    ),
    "intervals": lambda title: plots.margin_intervals(list("abc"), RUNS, title=title),
    "sections": lambda title: plots.cross_sections(
        np.eye(3)[None].repeat(2, 0), np.arange(3), np.arange(3), titles=[title, "b"], title=title
    ),
    "energies": lambda title: plots.energy_history(range(1, 61), ENERGIES, title=title, xlabel=title),
    "grid": lambda title: plots.image_grid({"a": np.zeros((2, 4, 4, 1))}, title=title),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title"), [*((name, LONG) for name in DRAWN), ("curves", "_".join(LONG.split()))])
def test_long_texts_are_not_cut_off(name, title):
    figure = figure_of(DRAWN[name](title))
    figure.set_dpi(50)  # all lengths are in inches
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison]
    texts = [*figure.texts, *figure.legends]
    labels = [text for axes in panels for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts += [text for text in labels if text.get_text()]
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.x1 <= figure.bbox.x1
        assert extent.y0 >= 0
        assert extent.y1 <= figure.bbox.y1
    assert "".join(figure.get_suptitle().split()) == "".join(title.split())
    for legend in figure.legends:
        found = [" ".join(text.get_text().split()) for text in legend.get_texts()]
        assert found == list(RUNS) or found[0] == "samples"
    # The space for the texts is added to the figure, and not taken from the axes.
    assert min(axes.get_window_extent().height for axes in panels) > figure.dpi


@pytest.mark.parametrize("draw", [draw_curves, draw_intervals, draw_compared])
def test_curves_differ_without_their_colours(draw):
    handles = figure_of(draw(10)).legends[0].legend_handles
    shapes = [
        handle.get_marker() if hasattr(handle, "get_marker") else handle.get_paths()[0].vertices.tobytes()
        for handle in handles
    ]
    assert len(set(shapes)) == 10
    assert "^" not in shapes  # which stands for censored medians


def test_neighbouring_curves_have_other_line_styles():
    handles = figure_of(draw_curves(10)).legends[0].legend_handles
    dashes = [handle._dash_pattern for handle in handles]
    assert all(one != other for one, other in itertools.pairwise(dashes))


MANY = np.random.default_rng(0).lognormal(size=(2, 5000))


@pytest.fixture(scope="module")
def of_many():
    return plots.margin_distribution(make_result(MANY))


@pytest.mark.parametrize(("num_samples", "least_area"), [(20, 12), (300, 3), (5000, 3)])
def test_samples_are_seen_and_hide_no_median(num_samples, least_area, axes, of_many):
    if num_samples == 20:
        axes = plots.margin_distribution(make_result(MARGINS[:2, :20]))
    elif num_samples == 5000:
        axes = of_many
    (samples,) = [each for each in axes.collections if each.get_label().endswith("samples")]
    (median,) = [line for line in axes.lines if line.get_label() == "median"]
    assert samples.get_zorder() < collection(axes, "5% to 95%").get_zorder() < median.get_zorder()
    assert samples.get_alpha() < 1
    assert samples.get_facecolor()[0].tolist() != [*matplotlib.colors.to_rgb(median.get_color()), samples.get_alpha()]
    (area,) = samples.get_sizes()  # square points, of which the axes have some 40,000 for each of two subspaces
    assert area >= least_area
    assert area * min(num_samples, 1000) < 10_000


def test_most_of_many_samples_are_left_out_evenly_and_the_legend_says_so(of_many):
    axes = of_many
    offsets = collection(axes, "1,000 of 5,000 samples").get_offsets()
    assert of_many.figure.legends[0].get_texts()[0].get_text() == "1,000 of 5,000 samples"
    for position, row in enumerate(MANY):
        drawn = offsets[np.round(offsets[:, 0]) == position, 1]
        assert len(drawn) == 1000
        assert set(drawn) <= set(row)
        assert (drawn.min(), drawn.max()) == (row.min(), row.max())
        ranks = np.searchsorted(np.sort(row), np.sort(drawn))
        assert np.diff(ranks).max() <= 6  # every fifth, as the ends stay
    # All margins count in the percentiles.
    line = next(line for line in axes.lines if line.get_label() == "median")
    np.testing.assert_allclose(line.get_ydata(), np.median(MANY, axis=1))


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        *[("curves", ends) for ends in ((5.1, 6.4), (4, 17), (0.02, 3), (1e-4, 1e5), (1e-12, 1e12), (2, 2))],
        *[(kind, (6, 60)) for kind in ("intervals", "compared", "distribution", "history", "maps")],
    ],
)
def test_ticks_are_plain_numbers(kind, ends):
    low, high = ends
    values = np.geomspace(low, high, 6).reshape(2, 3)
    figure = {
        "curves": lambda: plots.margin_curves(range(2), {"": {"a": values}}),
        "intervals": lambda: plots.margin_intervals(["a", "b"], {"a": values}),
        "compared": lambda: plots.compare({"a": make_result(values)}),
        "distribution": lambda: plots.margin_distribution(make_result(values)),
        "history": lambda: plots.margin_history([1, 2], values),
        "maps": lambda: plots.margin_maps(values[None], range(2), range(3), titles=["a"]),
    }[kind]()
    figure = figure_of(figure)
    figure.draw_without_rendering()
    axis = figure.axes[-1].yaxis  # that of the margins, or that of their colours
    bottom, top = axis.get_view_interval()
    ticks = {
        place: label.get_text().replace("\N{MINUS SIGN}", "-")
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if bottom <= place <= top
    }
    assert 3 <= len(ticks) <= 12
    for place, text in ticks.items():
        assert float(text) == pytest.approx(place, rel=1e-5)  # no multiple of a power of ten, as 6 x 10^0
    assert not any(label.get_text() for label in axis.get_minorticklabels())


def test_every_picture_of_a_run_has_a_title(monkeypatch, tmp_path):
    drawn = {}
    corners = np.arange(4)[:, None].repeat(2, 1)
    monkeypatch.setattr("experiments.report.read_margins", lambda *_: (make_result(MARGINS), corners))
    monkeypatch.setattr("experiments.store.read_json", lambda _: {"test_accuracy": 0.5})
    monkeypatch.setattr(
        "experiments.store.write_picture", lambda path, drawing: drawn.update({path.name: figure_of(drawing)})
    )
    report.draw(Run("mnist_lenet_robust", tmp_path, baseline=tmp_path), 2)
    assert {name: figure.get_suptitle() for name, figure in drawn.items()} == {
        "margins.png": "mnist_lenet_robust: test accuracy 50.00%, 300 test images",
    }


def test_later_epochs_are_lighter_and_a_bar_says_which():
    axes, bar = plots.energy_history(range(1, 61), ENERGIES).figure.axes
    luminance = [np.dot(line.get_color()[:3], [0.2126, 0.7152, 0.0722]) for line in axes.lines]
    assert len(luminance) == 60
    assert (np.diff(luminance) > 0).all()
    assert bar.get_ylabel() == "epochs of training"
    plots.energy_history([7], ENERGIES[:1]).figure.draw_without_rendering()


def test_images_stand_in_columns_and_are_clipped():
    images = np.random.default_rng(0).uniform(-0.5, 1.5, (4, 3, 5, 1))
    first, second, third, fourth = plots.image_grid({"a": images[:2], "b": images[2:]}, captions=[["x", "y"], ["z"]])
    for axes, image in zip((first, third, second, fourth), images, strict=True):
        (drawn,) = axes.images
        np.testing.assert_array_equal(drawn.get_array(), np.clip(image[..., [0, 0, 0]], 0, 1))
    assert [axes.get_title() for axes in (first, second, third, fourth)] == ["a", "b", "", ""]
    assert [axes.get_xlabel() for axes in (first, second, third, fourth)] == ["x", "z", "y", ""]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.image_grid({}), "columns is empty: pass at least one, with its images"),
        (
            lambda: plots.image_grid({"a": np.zeros((2, 3, 3, 1)), "b": np.zeros((1, 3, 3, 1))}),
            "the column 'b' must have one entry for each of the 2 rows, got 1",
        ),
        (lambda: plots.energy_history([1], [0.5]), "shares must have shape (E, R), one row per epoch, got (1,)"),
        (lambda: plots.energy_history([1], [[0.5], [0.5]]), "epochs must have one entry for each of the 2 rows of"),
    ],
)
def test_images_and_energies_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        draw()


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0])
def test_medians_that_a_logarithm_has_none_of_are_left_blank(value):
    medians = np.array([[1.0, value], [2.0, 4.0]])
    for figure in (
        plots.margin_history([1, 2], medians, ticks=np.array(["a", "b"])),
        plots.margin_maps(medians[None], [0, 1], [0, 1], titles=["one"]),
        plots.margin_history([1, 2], np.full((2, 2), value)),
    ):
        figure_of(figure).savefig(io.BytesIO())
    mesh = plots.margin_history([1, 2], medians).collections[0]
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
            "points and labels belong together: pass both, or neither",
        ),
        (lambda: plots.margin_distribution(make_result(MARGINS), ticks=["a"]), "ticks must .* the 4 subspaces, got 1"),
        (lambda: plots.compare({"a": make_result(MARGINS)}, ticks=["a"]), "ticks must .* the 4 subspaces, got 1"),
        (
            lambda: plots.compare({"a": make_result(MARGINS), "b": make_result(MARGINS[:3])}),
            "^results must be margins in the same subspaces, got 4 for a, 3 for b$",
        ),
        (lambda: plots.compare({}), "^results is empty: pass at least one, by its name$"),
    ],
)
def test_lengths_that_do_not_match_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# Axes of the caller's


def given_axes(number=1):
    figure = matplotlib.figure.Figure(figsize=(8, 4))
    return figure, list(figure.subplots(1, number, squeeze=False).ravel())


PERCENTILES = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]])


@pytest.mark.parametrize(
    ("draw", "legend"),
    [
        (lambda axes: plots.margin_distribution(make_result(MARGINS), axes=axes, title="own"), "median"),
        (lambda axes: plots.compare({"a": make_result(MARGINS)}, ticks=["long name"] * 4, axes=axes, title="own"), "a"),
        (lambda axes: plots.margin_history([1, 2], PERCENTILES, axes=axes, title="own"), None),
        (lambda axes: plots.margin_intervals(["x", "y"], {"a": PERCENTILES}, axes=axes, title="own"), "a"),
    ],
)
def test_axes_that_are_given_are_drawn_in_and_returned(draw, legend):
    figure, (axes, other) = given_axes(2)
    size = figure.get_size_inches().tolist()
    assert draw(axes) is axes
    figure.savefig(io.BytesIO())
    assert axes.has_data()
    assert not other.has_data()
    assert axes.get_title() == "own"
    assert figure.get_suptitle() == ""
    assert figure.get_size_inches().tolist() == size
    assert not figure.legends
    names = [] if axes.get_legend() is None else [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend in names if legend else not names


def test_what_lies_behind_a_legend_within_axes_is_paler_than_its_text():
    figure, (axes,) = given_axes(1)
    plots.compare({"a": PERCENTILES, "b": PERCENTILES}, axes=axes)
    legend = axes.get_legend()
    for part in (*legend.get_texts(), *legend.legend_handles):
        part.set_visible(False)
    axes.axhspan(*axes.get_ylim(), color="black", zorder=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    x0, y0, x1, y1 = (round(value) for value in legend.get_window_extent().extents)
    behind = np.asarray(canvas.buffer_rgba())[::-1][y0 + 3 : y1 - 3, x0 + 3 : x1 - 3, :3]
    assert behind.min() > 150


@pytest.mark.parametrize(
    "draw",
    [
        lambda axes: plots.margin_maps(np.ones((2, 2, 2)), [0, 1], [0, 1], titles=["own", "b"], axes=axes),
        lambda axes: plots.margin_curves([0, 1], {"own": {"a": PERCENTILES}, "b": {"a": PERCENTILES}}, axes=axes),
        lambda axes: plots.cross_sections(
            np.eye(3)[None].repeat(2, 0) - 0.5, np.arange(3), np.arange(3), titles=["own", "b"], axes=axes
        ),
    ],
)
def test_panels_that_are_given_are_drawn_in_and_returned(draw):
    figure, axes = given_axes(2)
    assert draw(axes) == axes
    figure.savefig(io.BytesIO())
    assert [each.get_title() for each in axes] == ["own", "b"]
    assert all(each.has_data() for each in axes)
    with pytest.raises(ValueError, match="axes must have one entry for each of the 2 panels, got 1"):
        draw(axes[:1])


def test_arrays_and_stores_are_drawn_as_results_are(tmp_path):
    margins = MARGINS.astype(np.float32)
    status = np.zeros(margins.shape, int)
    status[1, :200] = Status.OUT_OF_STEPS
    status[2, :7] = Status.NON_FINITE
    result = make_result(margins, status)
    result = dataclasses.replace(
        result, **{name: getattr(result, name).astype(np.float32) for name in ("margin", "gap", "alignment")}
    )
    settings = {"solver": result.solver, "precision": result.precision}
    store = MarginStore.create(tmp_path / "m.zarr", num_subspaces=4, num_images=300, chunk_size=300, **settings)
    store.write(0, result)
    array = np.where(status == Status.OUT_OF_STEPS, np.inf, np.where(status == Status.NON_FINITE, np.nan, margins))
    for draw in (plots.margin_distribution, lambda each: plots.compare({"a": each})):
        expected, *others = [draw(each) for each in (result, store, array)]
        for axes in others:
            for line, same in zip(axes.lines, expected.lines, strict=True):
                np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())
            assert [text.get_text() for text in axes.texts] == [text.get_text() for text in expected.texts]
    with pytest.raises(ValueError, match=r"margins must have shape \(R, N\), subspaces by images, got \(300,\)"):
        plots.margin_distribution(array[0])
