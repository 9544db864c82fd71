"""Pictures of margins. Needs matplotlib: `pip install 'hmt-jax[plots]'`.

Each function draws in the axes that it is given, or in a figure of its own, and returns the axes. Save the figure with
`axes.figure.savefig(path)`. In a figure of its own, the title is above the axes and the legend below them. Margins
are a `MarginResult`, a `MarginStore`, or an array (R, N), infinite where margins are censored and NaN where there are
none. Colours, markers, dashes and words are those of `hmt_jax.report`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hmt_jax import _looks, lanes, statistics
from hmt_jax._extras import require
from hmt_jax._looks import LOOKS
from hmt_jax.margins import MarginResult, MarginStore
from hmt_jax.solvers import Status

require("pictures", "plots", "matplotlib")
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.cm import ScalarMappable  # noqa: E402
from matplotlib.colors import LogNorm, Normalize  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.textpath import text_to_path  # noqa: E402
from matplotlib.ticker import Locator, MaxNLocator, NullFormatter  # noqa: E402

__all__ = [
    "compare",
    "cross_sections",
    "energy_history",
    "frame",
    "image_grid",
    "margin_curves",
    "margin_distribution",
    "margin_history",
    "margin_intervals",
    "margin_maps",
]

Margins = MarginResult | MarginStore | np.ndarray

_COLOR = LOOKS[0].color
_SAMPLE_COLOR = "#7fa8cc"
_MEDIAN_COLOR = "#0b3c5d"
_SWARM_HALF_WIDTH = 0.42  # of the distance between subspaces
_NUM_BINS = 40
_FULL_BIN = 6  # fewer samples than this in a bin do not spread over the whole width
_MOST_SAMPLES = 1000  # drawn for a subspace: more would fill its shape, but show nothing new
_PADDING = 0.15  # inches between a text and the edge of the figure
_LINE_HEIGHT = 0.2  # inches
_HANDLE_LENGTH = 2.8  # of the lines in a legend, in em, so that their dashes show
_MOST_LEGEND_COLUMNS = 5
_LEGEND_WIDTH = 8.5  # inches that five entries take
_PANELS_IN_A_ROW = 6
_MAPS_IN_A_ROW = 4
_MOST_TICKS = 12
_MOST_COLUMNS = 25  # the names of so many columns fit below a heat map


def margin_distribution(
    margins: Margins,
    *,
    axes: Axes | None = None,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace",
    key: jax.Array | None = None,
) -> Axes:
    """Axes with the margins of every sample in every subspace: median line, 5 to 95% band, and samples as a swarm.

    Samples with a censored margin are drawn as a count of triangles on the upper edge; percentiles that fall among
    them are left open. If a subspace has more than a thousand samples, a thousand of them are drawn, evenly over their
    ranks, and the legend says so.

    Args:
      margins: margins with axes (R, N), in the order in which subspaces are to stand from left to right.
      axes: axes to draw in; those of a new figure if not given.
      title: title above the picture.
      ticks: a label for each of the R subspaces; their numbers if not given.
      xlabel: label of the axis of subspaces.
      key: random key of the bootstrap of the median, as in `statistics.summarize`.

    Raises:
      ValueError: if the number of ticks is not R.

    >>> axes = margin_distribution(np.array([[1.0, 2.0, 4.0], [3.0, 5.0, np.inf]]), title="two windows")
    >>> axes.figure.get_suptitle()
    'two windows'
    """
    result = _result_of(margins)
    summary = statistics.summarize(result, key=key)
    positions = np.arange(len(summary.median))
    _check_length("ticks", ticks, len(positions), "subspaces")
    low, median, high = np.where(np.isfinite(summary.percentiles), summary.percentiles, np.nan).T

    axes, figure = _canvas(axes, max(_LEGEND_WIDTH, 1.5 + 0.4 * len(positions)), 4.5)
    num_samples = result.margin.shape[1]
    num_drawn = min(num_samples, _MOST_SAMPLES)
    x, y = _swarm(statistics.censored_margins(result))
    # Points lie behind everything else, and few points are larger: 16 square points for 20 samples, 3 for a thousand.
    size = float(np.clip(70 / np.sqrt(max(num_drawn, 1)), 3, 16))
    drawn = "samples" if num_drawn == num_samples else f"{num_drawn:,} of {num_samples:,} samples"
    axes.scatter(x, y, s=size, color=_SAMPLE_COLOR, alpha=0.6, linewidths=0, label=drawn, rasterized=True, zorder=1)
    axes.fill_between(positions, low, high, color=_COLOR, alpha=0.15, linewidth=0, label=_looks.BAND, zorder=1.5)
    interval = np.where(np.isfinite(summary.median_interval), summary.median_interval, np.nan)
    axes.plot(
        positions,
        median,
        color=_MEDIAN_COLOR,
        linewidth=1.8,
        marker="o",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label=_looks.MEDIAN,
        zorder=3,
    )
    axes.vlines(positions, *interval.T, color="black", linewidth=1.5, label="its 95% interval", zorder=4)
    if y.size:  # without a single margin there is nothing to scale by
        axes.set_yscale("log")
        _label_plainly(axes.yaxis)
    axes.set_xticks(positions, ticks if ticks is not None else [str(position) for position in positions])
    axes.set(ylabel=_looks.MARGIN, xlim=(-0.6, len(positions) - 0.4))
    axes.set_xlabel(_wrapped(xlabel, _width_below(axes, figure, 1)))
    _draw_censored(axes, positions, summary)
    axes.grid(axis="y", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    handles[0] = Line2D([], [], color=_SAMPLE_COLOR, marker="o", linestyle="", markersize=4)  # a point may be too small
    _finish(axes, figure, title, handles, labels)
    return axes


def compare(
    results: Mapping[str, Margins],
    *,
    axes: Axes | None = None,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace",
    key: jax.Array | None = None,
) -> Axes:
    """Axes with median margins of several results over each other: a line for each, in a band, its 95% interval.

    The band is where the median may lie, and not the spread of the samples, which `margin_distribution` shows. A band
    that reaches censored margins extends to the upper edge; censored medians are triangles there. For subspaces without
    an order, or a single one, use `margin_intervals`; for ratios as numbers, `statistics.compare`.

    Args:
      results: margins (R, N) by the name of the network, solver or other thing compared, all in the same R subspaces,
        in the order in which these are to stand from left to right. N may differ.
      axes: axes to draw in; those of a new figure if not given.
      title: title above the picture.
      ticks: a label for each of the R subspaces; their numbers if not given.
      xlabel: label of the axis of subspaces.
      key: random key of the bootstrap of the median, as in `statistics.summarize`.

    Raises:
      ValueError: if there are no results, more than there are colours, or they differ in their numbers of subspaces,
        and if the number of ticks is not R.
      TypeError: if `results` is no mapping from names to MarginResults.

    >>> margins = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, np.inf]])
    >>> axes = compare({"standard": margins, "robust": 2 * margins}, ticks=["low", "high"])
    >>> [tick.get_text() for tick in axes.get_xticklabels()]
    ['low', 'high']
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be a dict of MarginResults by name, got {type(results).__name__}")
    if not results:
        raise ValueError("results is empty: pass at least one, by its name")
    summaries = {name: statistics.summarize(_result_of(result), key=key) for name, result in results.items()}
    numbers = {name: len(summary.median) for name, summary in summaries.items()}
    if len(set(numbers.values())) > 1:
        found = ", ".join(f"{number} for {name}" for name, number in numbers.items())
        raise ValueError(f"results must be margins in the same subspaces, got {found}")
    positions = np.arange(next(iter(numbers.values())))
    _check_length("ticks", ticks, len(positions), "subspaces")
    curves = {
        name: np.stack([summary.median_interval[:, 0], summary.median, summary.median_interval[:, 1]], axis=-1)
        for name, summary in summaries.items()
    }
    axes, figure = _canvas(axes, max(7.0, 1 + 0.25 * len(positions)), 4.5)
    styles = dict(zip(curves, _styles(curves), strict=True))
    handles = _draw_curves(axes, positions, curves, styles, min(0.25, 1 / len(curves)))
    if ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(positions, ticks)
        widest = max(_width_of(tick) for tick in ticks)
        if widest + _PADDING > _width_below(axes, figure, 1) / len(ticks):
            axes.tick_params(axis="x", rotation=90)
            if figure is not None:
                figure.set_figheight(figure.get_figheight() + widest)
    axes.set(xlim=(-0.6, len(positions) - 0.4), ylabel=f"median {_looks.MARGIN}, 95% interval")
    axes.set_xlabel(_wrapped(xlabel, _width_below(axes, figure, 1)))
    _finish(axes, figure, title, list(handles.values()), list(handles))
    return axes


def margin_history(
    epochs: Sequence[int],
    medians: Sequence[Sequence[float]] | np.ndarray,
    *,
    axes: Axes | None = None,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace",
) -> Axes:
    """Axes with a heat map of median margins while a network trained: one row per epoch, one column per subspace.

    Args:
      epochs: the E epochs after which margins were measured, rising.
      medians: (E, R) medians; those that are 0 or not finite are left blank.
      axes: axes to draw in, which the colour bar takes some of; those of a new figure if not given.
      title: title above the picture.
      ticks: R names of the subspaces; their numbers if not given.
      xlabel: label of the axis of subspaces.

    Raises:
      ValueError: if the arguments do not have these lengths.

    >>> axes = margin_history([1, 2], [[3.0, 9.0], [2.0, 8.0]], title="digits")
    >>> axes.figure.get_suptitle()
    'digits'
    """
    values = _positive(medians)
    if values.ndim != 2:
        raise ValueError(f"medians must have shape (E, R), one row per epoch, got {values.shape}")
    _check_length("epochs", epochs, values.shape[0], "rows of medians")
    _check_length("ticks", ticks, values.shape[1], "subspaces")
    axes, figure = _canvas(axes, 7, 4.5)
    mesh = axes.pcolormesh(*map(_edges, values.shape[::-1]), values, norm=_scale(values), cmap="viridis")
    axes.set_xticks(*_few_ticks(ticks if ticks is not None else range(values.shape[1]), _MOST_COLUMNS))
    axes.set_yticks(*_few_ticks(epochs))
    axes.set(xlabel=_wrapped(xlabel, _width_below(axes, figure, 2)), ylabel="epochs of training")
    _label_margins(axes.figure.colorbar(mesh, ax=axes))
    _finish(axes, figure, title)
    return axes


def energy_history(
    epochs: Sequence[int],
    shares: Sequence[Sequence[float]] | np.ndarray,
    *,
    axes: Axes | None = None,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace",
) -> Axes:
    """Axes with the energy of adversarial perturbations over subspaces while a network trained: a line for each epoch.

    Later epochs are lighter, as the colour bar shows.

    Args:
      epochs: the E epochs after which perturbations were measured, rising.
      shares: (E, R) shares of the perturbations' energy in each subspace.
      axes: axes to draw in, which the colour bar takes some of; those of a new figure if not given.
      title: title above the picture.
      ticks: R names of the subspaces; their numbers if not given.
      xlabel: label of the axis of subspaces.

    Raises:
      ValueError: if the arguments do not have these lengths.

    >>> axes = energy_history([1, 2], [[0.5, 0.1], [0.7, 0.2]], ticks=["low", "high"])
    >>> [line.get_ydata().tolist() for line in axes.lines]
    [[0.5, 0.1], [0.7, 0.2]]
    """
    values = np.asarray(shares, float)
    if values.ndim != 2:
        raise ValueError(f"shares must have shape (E, R), one row per epoch, got {values.shape}")
    _check_length("epochs", epochs, values.shape[0], "rows of shares")
    _check_length("ticks", ticks, values.shape[1], "subspaces")
    axes, figure = _canvas(axes, 7, 4.5)
    colors = ScalarMappable(Normalize(min(epochs), max(epochs)), "viridis")
    for color, row in zip(colors.to_rgba(np.array(epochs)), values, strict=True):
        axes.plot(row, color=color, marker="o", markersize=3)
    axes.set_xticks(*_few_ticks(ticks if ticks is not None else range(values.shape[1]), _MOST_COLUMNS))
    axes.set(xlabel=_wrapped(xlabel, _width_below(axes, figure, 2)), ylabel="share of the perturbations' energy")
    axes.grid(axis="y", alpha=0.3)
    axes.figure.colorbar(colors, ax=axes, label="epochs of training", ticks=MaxNLocator(8, integer=True))
    _finish(axes, figure, title)
    return axes


def margin_maps(
    medians: np.ndarray,
    rows: Sequence[int] | np.ndarray,
    columns: Sequence[int] | np.ndarray,
    *,
    titles: Sequence[str],
    axes: Sequence[Axes] | None = None,
    title: str = "",
    xlabel: str = "first horizontal frequency",
    ylabel: str = "first vertical frequency",
) -> list[Axes]:
    """Axes with heat maps, on one colour scale, of median margins in a grid of subspaces, such as DCT windows.

    Args:
      medians: (P, I, J) medians for P panels; those that are 0 or not finite are left blank.
      rows: labels of the I subspaces from top to bottom, such as the first row of frequencies of each window.
      columns: labels of the J subspaces from left to right.
      titles: titles of the P panels.
      axes: P axes of one figure to draw in; those of a new figure if not given.
      title: title above the picture.
      xlabel: what `columns` are.
      ylabel: what `rows` are.

    Raises:
      ValueError: if the arguments do not have these lengths.

    >>> (axes,) = margin_maps(np.array([[[3.0, 9.0], [8.0, 27.0]]]), [0, 10], [0, 10], titles=["epoch 5"])
    >>> axes.get_title()
    'epoch 5'
    """
    values = _positive(medians)
    if values.ndim != 3:
        raise ValueError(f"medians must have shape (P, I, J), one map per panel, got {values.shape}")
    for argument, given, number, things in (
        ("titles", titles, values.shape[0], "panels"),
        ("rows", rows, values.shape[1], "rows of a panel"),
        ("columns", columns, values.shape[2], "columns of a panel"),
        ("axes", axes, values.shape[0], "panels"),
    ):
        _check_length(argument, given, number, things)
    num_columns = min(len(values), _MAPS_IN_A_ROW)
    num_rows = -(-len(values) // num_columns)
    width = 4.5 if len(values) == 1 else 2.6
    size = (1.6 + width * num_columns, 0.8 + width * num_rows)
    panels, figure = _panels(axes, len(values), num_columns, size, share=True)
    scale = _scale(values)
    for each, name, values_of in zip(panels, titles, values, strict=True):
        mesh = each.pcolormesh(*map(_edges, values_of.shape[::-1]), values_of, norm=scale, cmap="viridis")
        each.set(title=_wrapped(name, width, "large"), aspect="equal")
    for each in panels if figure is None else panels[:1]:  # those of a figure made here share their axes
        each.set_xticks(*_few_ticks(columns))
        each.set_yticks(*_few_ticks(rows))
        each.invert_yaxis()  # low frequencies in the upper left corner, as in an array of coefficients
    _label_panels(panels, figure, xlabel, ylabel)
    _label_margins(panels[0].figure.colorbar(mesh, ax=panels, shrink=0.8))
    _finish_panels(panels, figure, title)
    return panels


def margin_curves(
    positions: Sequence[float] | np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    axes: Sequence[Axes] | None = None,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "",
) -> list[Axes]:
    """Axes, one for each panel, with margins against another quantity: a line of medians in a band for every subspace.

    A band that reaches censored margins extends to the upper edge; censored medians are triangles there.

    Args:
      positions: the E places along the horizontal axis, rising.
      panels: for each panel, by its title, the percentiles (E, 3) of the margins in each subspace, by its name: the
        lower end of the band, the median, and the upper end.
      axes: axes of one figure to draw in, one for each panel; those of a new figure if not given.
      title: title above the picture.
      ticks: a label for each of the E positions.
      xlabel: what the positions are.

    Raises:
      ValueError: if there are no panels, or more subspaces than there are colours.

    >>> (axes,) = margin_curves([0, 1], {"digits": {"low": np.array([[1, 2, 3], [2, 3, 4]])}})
    >>> axes.get_title()
    'digits'
    """
    if not panels:
        raise ValueError("panels is empty: pass at least one, with its curves")
    _check_length("axes", axes, len(panels), "panels")
    names = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    styles = dict(zip(names, _styles(names), strict=True))
    handles: dict[str, Line2D] = {}
    width = max(4.0, 1 + 0.25 * (0 if ticks is None else len(ticks)))
    drawn, figure = _panels(axes, len(panels), len(panels), (1 + width * len(panels), 4))
    for each, (name, curves) in zip(drawn, panels.items(), strict=True):
        alpha = min(0.15, 0.5 / max(len(curves), 1))  # bands of many curves lie over each other
        handles |= _draw_curves(each, positions, curves, styles, alpha)
        each.set_xlabel(_wrapped(xlabel, width - 0.3))
        each.set_title(_wrapped(name, width - 0.3, "large"))
        if ticks is not None:
            each.set_xticks(positions, ticks)
    drawn[0].set_ylabel("margin (L2): median, 5% to 95%")
    _finish_panels(drawn, figure, title, list(handles.values()), list(handles))
    return drawn


def margin_intervals(
    subspaces: Sequence[str], percentiles: Mapping[str, np.ndarray], *, axes: Axes | None = None, title: str = ""
) -> Axes:
    """Axes with the margins of one or more networks in subspaces without order: a bar with the median for each.

    A bar that reaches censored margins extends to the upper edge; censored medians are triangles there.

    Args:
      subspaces: names of the R subspaces.
      percentiles: for each network, by its name, the percentiles (R, 3) of its margins: the lower end of the bar, the
        median, and the upper end.
      axes: axes to draw in; those of a new figure if not given.
      title: title above the picture.

    Raises:
      ValueError: if there are more networks than colours.

    >>> axes = margin_intervals(["low", "high"], {"lenet": np.array([[1, 2, 3], [2, 3, 4]])})
    >>> [tick.get_text() for tick in axes.get_xticklabels()]
    ['low', 'high']
    """
    bottom, top = _limits(percentiles)
    axes, figure = _canvas(axes, max(6.0, 1.5 + 0.6 * len(subspaces)), 4.5)
    shifts = min(0.24, 0.8 / len(percentiles)) * (np.arange(len(percentiles)) - (len(percentiles) - 1) / 2)
    for shift, style, (label, bars) in zip(shifts, _styles(percentiles), percentiles.items(), strict=True):
        low, median, high = np.asarray(bars, float).T
        color, marker = style["color"], style["marker"]
        places = np.arange(len(subspaces)) + shift
        axes.vlines(places, np.minimum(low, top), np.minimum(high, top), color=color, linewidth=5, alpha=0.3)
        medians = np.where(np.isfinite(median), median, np.nan)
        axes.scatter(places, medians, s=24, color=color, marker=marker, label=label, zorder=3)
        above = places[np.isinf(median)]
        axes.scatter(above, np.full(len(above), top), marker="^", s=30, color=color, clip_on=False, zorder=3)
    axes.set_xticks(range(len(subspaces)), subspaces, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(yscale="log", ylim=(bottom, top), ylabel="margin (L2): median, 5% to 95%")
    _label_plainly(axes.yaxis)
    axes.grid(axis="y", alpha=0.3)
    _finish(axes, figure, title, *axes.get_legend_handles_labels())
    return axes


def cross_sections(
    gaps: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    titles: Sequence[str],
    axes: Sequence[Axes] | None = None,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    title: str = "",
    xlabel: str = "along u1",
    ylabel: str = "along u2",
) -> list[Axes]:
    """Axes with the predictions of two-class classifiers on a plane, one each, with the boundary as a line.

    Args:
      gaps: (P, H, W) logits of class 1 minus those of class 0, for P panels.
      x: (W,) coordinates along the horizontal direction of the plane.
      y: (H,) coordinates along the vertical one.
      titles: titles of the P panels.
      axes: P axes of one figure to draw in; those of a new figure if not given.
      points: (P, N, 2) coordinates of samples projected onto the plane.
      labels: (N,) their labels, 0 or 1.
      title: title above the picture.
      xlabel: the horizontal direction.
      ylabel: the vertical one.

    Raises:
      ValueError: if the arguments do not have these lengths, or only one of points and labels is given.

    >>> x = y = np.linspace(-1, 1, 3)
    >>> (axes,) = cross_sections(np.add.outer(y, x)[None], x, y, titles=["linear"])
    >>> axes.get_title()
    'linear'
    """
    _check_length("titles", titles, len(gaps), "panels")
    _check_length("points", points, len(gaps), "panels")
    _check_length("axes", axes, len(gaps), "panels")
    if (points is None) != (labels is None):
        raise ValueError("points and labels belong together: pass both, or neither")
    num_columns = min(len(gaps), _PANELS_IN_A_ROW)
    size = (1.2 + 2.1 * num_columns, 0.8 + 2.9 * -(-len(gaps) // num_columns))
    panels, figure = _panels(axes, len(gaps), num_columns, size, share=True)
    for index, each in enumerate(panels):
        probability = 1 / (1 + np.exp(-np.clip(gaps[index], -30, 30)))
        mesh = each.pcolormesh(x, y, probability, cmap="RdBu", vmin=0, vmax=1, alpha=0.75, rasterized=True)
        if gaps[index].min() < 0 < gaps[index].max():
            each.contour(x, y, gaps[index], levels=[0], colors="black", linewidths=1.2)
        if points is not None:
            for label, color in ((0, "#b2182b"), (1, "#2166ac")):
                x1, x2 = points[index][labels == label].T
                each.scatter(x1, x2, s=18, color=color, edgecolors="white", linewidths=0.8, zorder=3)
        each.set(title=_wrapped(titles[index], 2.1, "large"), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    _label_panels(panels, figure, xlabel, ylabel)
    panels[0].figure.colorbar(mesh, ax=panels, label="probability of class 1", shrink=0.8)
    _finish_panels(panels, figure, title)
    return panels


def image_grid(
    columns: Mapping[str, np.ndarray],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    axes: Sequence[Axes] | None = None,
    title: str = "",
) -> list[Axes]:
    """Axes with images in a grid, row by row: a column for each kind, with its heading above and captions below.

    Args:
      columns: for each column, by its heading, N images (N, height, width, channels) in [0, 1], from top to bottom.
        Other pixels are clipped.
      captions: for each column, the texts below its images; those of a column may be fewer than N, or none.
      axes: axes of one figure to draw in, one for each image, row by row; those of a new figure if not given.
      title: title above the picture.

    Raises:
      ValueError: if there are no columns, or the arguments do not have these lengths.

    >>> images = np.zeros((2, 8, 8, 1))
    >>> axes = image_grid({"image": images, "flipped": images}, captions=[["3", "5"], []])
    >>> [each.get_xlabel() for each in axes]
    ['3', '', '5', '']
    """
    if not columns:
        raise ValueError("columns is empty: pass at least one, with its images")
    _check_length("captions", captions, len(columns), "columns")
    num_rows = len(next(iter(columns.values())))
    for heading, images in columns.items():
        _check_length(f"the column {heading!r}", images, num_rows, "rows")
    _check_length("axes", axes, num_rows * len(columns), "images")
    size = (1.3 * len(columns), 0.5 + 1.5 * num_rows)
    panels, figure = _panels(axes, num_rows * len(columns), len(columns), size)
    for place, (heading, images) in enumerate(columns.items()):
        below = panels[place :: len(columns)]
        for each, image in zip(below, images, strict=True):
            each.imshow(np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1), interpolation="nearest")
            each.set(xticks=[], yticks=[])
        for each, caption in zip(below, captions[place] if captions is not None else (), strict=False):
            each.set_xlabel(caption, fontsize=7)
        below[0].set_title(heading, fontsize=8)
    _finish_panels(panels, figure, title)
    return panels


def frame(figure: Figure, title: str, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """Adds a title above all axes of a figure and a legend below them, neither of them cut off.

    Args:
      figure: a figure with a constrained layout. Its height grows by the lines that the texts need.
      title: text of the title, which is broken into lines no wider than the figure.
      handles: the artists that the legend explains, as `Figure.legend` takes them; without any there is no legend.
      labels: a text for each of the artists.

    >>> figure = Figure(layout="constrained")
    >>> line = figure.subplots().plot([1, 2, 3])
    >>> frame(figure, "a line", line, ["one, two, three"])
    >>> figure.get_suptitle()
    'a line'
    """
    width = figure.get_figwidth() - 2 * _PADDING
    lines = _wrapped(title, width, "large")
    num_lines = lines.count("\n")
    figure.suptitle(lines)
    if labels:
        em = FontProperties(size="medium").get_size_in_points() / 72
        beside, between = (_HANDLE_LENGTH + 0.8) * em, 2 * em  # what Matplotlib leaves around the texts
        texts = [_wrapped(label, width - beside - em) for label in labels]
        widths = [beside + between + max(map(_width_of, text.split("\n"))) for text in texts]
        num_columns = max(
            number
            for number in range(1, _MOST_LEGEND_COLUMNS + 1)
            if number == 1 or sum(max(part, default=0) for part in _parts(widths, number)) <= width + between - em
        )
        figure.legend(
            handles,
            texts,
            loc="outside lower center",
            ncols=num_columns,
            frameon=False,
            handlelength=_HANDLE_LENGTH,
        )
        heights = [text.count("\n") + 1.0 for text in texts]
        num_lines += round(max(sum(part) for part in _parts(heights, num_columns))) - 1
    figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * num_lines)


def _result_of(margins: Margins) -> MarginResult:
    """The margins as a result; an array becomes one that knows no labels."""
    if isinstance(margins, MarginStore):
        return margins.read()
    if not isinstance(margins, np.ndarray | jax.Array):
        return margins  # if it is no result either, the statistics say so
    values = np.asarray(margins, float)
    if values.ndim != 2:
        raise ValueError(f"margins must have shape (R, N), subspaces by images, got {values.shape}")
    status = np.where(np.isnan(values), Status.NON_FINITE, np.where(np.isinf(values), Status.OUT_OF_STEPS, 0))
    none, unknown = np.full(values.shape, -1, np.int32), np.full(values.shape, np.nan)
    return MarginResult(
        margin=values,
        label=none,
        adversarial_label=none,
        num_steps=none,
        status=status.astype(np.int32),
        gap=unknown,
        alignment=unknown,
        solver="",
        precision="",
        work=lanes.Work(0, 0, 0),
    )


def _canvas(axes: Axes | None, width: float, height: float) -> tuple[Axes, Figure | None]:
    """The axes to draw in, and the figure around them, of a size in inches, if it is made here."""
    if axes is not None:
        return axes, None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure.add_subplot(), figure


def _panels(
    axes: Sequence[Axes] | None, number: int, num_columns: int, size: tuple[float, float], *, share: bool = False
) -> tuple[list[Axes], Figure | None]:
    """The same for several axes, row by row."""
    if axes is not None:
        return list(axes), None
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(-(-number // num_columns), num_columns, sharex=share, sharey=share, squeeze=False).ravel()
    for each in grid[number:]:
        each.set_axis_off()
    return list(grid[:number]), figure


def _finish(axes: Axes, figure: Figure | None, title: str, handles=(), labels=()) -> None:
    """Adds the title and the legend: around the axes in a figure of our own, else within them."""
    if figure is not None:
        frame(figure, title, handles, labels)
        return
    if title:
        axes.set_title(title)
    if labels:  # on a pale ground, for there may be no place without a curve
        axes.legend(handles, labels, framealpha=0.8, edgecolor="none", handlelength=_HANDLE_LENGTH)


def _finish_panels(panels: Sequence[Axes], figure: Figure | None, title: str, handles=(), labels=()) -> None:
    """The same for several axes. In those that were given, the first has the legend, and their figure gets no title."""
    _finish(panels[0], figure, title if figure is not None else "", handles, labels)


def _label_panels(panels: Sequence[Axes], figure: Figure | None, xlabel: str, ylabel: str) -> None:
    """Labels the axes that panels share, or those of each one."""
    if figure is not None:
        figure.supxlabel(xlabel)
        figure.supylabel(ylabel)
        return
    for axes in panels:
        axes.set(xlabel=xlabel, ylabel=ylabel)


def _width_below(axes: Axes, figure: Figure | None, beside: float) -> float:
    """The inches that a text below the axes may take: in a figure of our own, all but what is beside them."""
    if figure is not None:
        return figure.get_figwidth() - beside
    return max(axes.get_window_extent().width / axes.figure.dpi, 1.0)


def _styles(names) -> list[dict[str, Any]]:
    """A colour, a marker and a line style for each curve, so that no two curves differ by colour alone."""
    _looks.check_number(len(names))
    return [
        {"color": look.color, "marker": look.marker, "linestyle": (0, look.dashes) if look.dashes else "-"}
        for look, _ in zip(LOOKS, names, strict=False)
    ]


def _draw_curves(axes, positions, curves, styles, alpha) -> dict[str, Line2D]:
    """The lines, by their names, that it draws in bands of an opacity, on a logarithmic axis of margins."""
    bottom, top = _limits(curves)
    lines = {}
    for label, percentiles in curves.items():
        style = styles[label]
        color = style["color"]
        low, median, high = np.asarray(percentiles, float).T
        axes.fill_between(positions, np.minimum(low, top), np.minimum(high, top), color=color, alpha=alpha, lw=0)
        line = np.where(np.isfinite(median), median, np.nan)
        (lines[label],) = axes.plot(positions, line, markersize=5, **style)
        above = np.asarray(positions)[np.isinf(median)]
        axes.scatter(above, np.full(len(above), top), marker="^", s=30, color=color, clip_on=False, zorder=3)
    axes.set_ylim(bottom, top)  # before the scale: Matplotlib warns if it finds no positive number to scale by
    axes.set_yscale("log")
    _label_plainly(axes.yaxis)
    axes.grid(axis="y", alpha=0.3)
    return lines


def _parts(numbers, num_columns) -> list[list[float]]:
    """The entries of each column of a legend, as Matplotlib fills them."""
    return [part.tolist() for part in np.array_split(numbers, num_columns)]


def _wrapped(text: str, width: float, size: str = "medium") -> str:
    """The text, broken into lines of similar length, at most `width` inches wide. Only wider words are broken."""
    lines = []
    for line in text.split("\n"):
        # Starts just above the number that fits on average, because every try measures all lines.
        num_characters = max(1, min(len(line), int(1.5 * len(line) * width / max(_width_of(line, size), width))))
        while num_characters > 1 and any(_width_of(part, size) > width for part in textwrap.wrap(line, num_characters)):
            num_characters -= 1
        num_lines = len(textwrap.wrap(line, num_characters))
        while num_characters > 1 and len(textwrap.wrap(line, num_characters - 1)) == num_lines:
            num_characters -= 1
        lines += textwrap.wrap(line, num_characters) or [""]
    return "\n".join(lines)


def _width_of(text: str, size: str = "medium") -> float:
    """The width of a line of text, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72


class _LogTicks(Locator):
    """A locator of ticks on a logarithmic axis: at least four, at most about ten, at numbers of few digits."""

    def __call__(self):
        low, high = self.axis.get_view_interval() if self.axis is not None else (1, 10)
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The positions of the ticks between two ends of the axis."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high:
            return np.array([high])
        return _looks.log_ticks(low, high)


def _label_plainly(axis) -> None:
    """Labels a logarithmic axis with numbers in full, such as 20 and not 2 x 10^1."""
    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter("{x:.6g}")
    axis.set_minor_formatter(NullFormatter())


def _check_length(argument, values, number, things) -> None:
    if values is not None and len(values) != number:
        raise ValueError(f"{argument} must have one entry for each of the {number} {things}, got {len(values)}")


def _positive(medians) -> np.ma.MaskedArray:
    """Medians for a logarithmic scale: those that are 0 or not finite are masked."""
    values = np.asarray(medians, float)
    return np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)


def _scale(values) -> LogNorm | None:
    """A scale from the least to the greatest of some values; None if there are none."""
    return LogNorm(values.min(), values.max()) if values.count() else None


def _edges(number) -> np.ndarray:
    """Edges of cells around 0, 1, ..., so that even a single cell has an extent."""
    return np.arange(number + 1) - 0.5


def _label_margins(bar) -> None:
    """Labels a logarithmic colour bar of margins."""
    bar.set_label("median margin (L2, pixels in [0, 1])")
    _label_plainly(bar.ax.yaxis)


def _few_ticks(labels, most=_MOST_TICKS) -> tuple[np.ndarray, list[str]]:
    """Places and names of at most `most` ticks along an axis of a heat map."""
    places = np.arange(0, len(labels), -(-len(labels) // most))
    return places, [str(labels[place]) for place in places]


def _limits(percentiles) -> tuple[float, float]:
    """Ends of a logarithmic axis for some arrays of margins, with room above for censored ones, if there are any."""
    values = np.concatenate([np.ravel(array) for array in percentiles.values()])
    finite = values[np.isfinite(values) & (values > 0)]
    room = 3 if np.isinf(values).any() else 1.5
    return (finite.min() / 1.5, finite.max() * room) if finite.size else (0.1, 1.0)


def _swarm(margins) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the points for finite margins (R, N), spread sideways where samples lie close together.

    If there are too many, the least and the greatest are drawn, with others at even ranks between them.
    """
    xs, ys = [], []
    for position, row in enumerate(margins):
        finite = np.sort(row[np.isfinite(row) & (row > 0)])
        if not finite.size:
            continue
        if finite.size > _MOST_SAMPLES:
            finite = finite[np.linspace(0, finite.size - 1, _MOST_SAMPLES).round().astype(int)]
        counts, edges = np.histogram(np.log(finite), bins=_NUM_BINS)
        bins = np.clip(np.searchsorted(edges, np.log(finite), side="right") - 1, 0, _NUM_BINS - 1)
        # Multiples of the golden ratio fill an interval evenly, with no two neighbours close.
        spread = 2 * (np.arange(finite.size) * 0.6180339887 % 1) - 1
        xs.append(position + _SWARM_HALF_WIDTH * spread * counts[bins] / max(counts.max(), _FULL_BIN))
        ys.append(finite)
    return (np.concatenate(xs), np.concatenate(ys)) if xs else (np.zeros(0), np.zeros(0))


def _draw_censored(axes, positions, summary):
    censored = sum(summary.counts[name] for name in ("out_of_steps", "zero_gradient", "unconfirmed"))
    missing = summary.counts["non_finite"]
    is_marked = censored + missing > 0
    if not is_marked.any():
        return
    marks = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.scatter(
        positions[is_marked],
        np.ones(is_marked.sum()),
        marker="^",
        s=20,
        color=_looks.CENSORED_COLOR,
        label=_looks.CENSORED,
        **marks,
    )
    for position, count in zip(positions[is_marked], (censored + missing)[is_marked], strict=True):
        axes.text(position, 1.03, str(count), ha="center", fontsize=7, color=_looks.CENSORED_COLOR, **marks)
