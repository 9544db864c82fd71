"""Pictures of margins. Needs matplotlib: `pip install 'hmt-jax[experiments]'`."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from hmt_jax import statistics
from hmt_jax._extras import require
from hmt_jax.margins import MarginResult

require("pictures", "experiments", "matplotlib")
from matplotlib.colors import LogNorm  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402

_COLOR = "#20639b"
_CENSORED_COLOR = "#c0392b"
_SWARM_HALF_WIDTH = 0.42  # of the distance between subspaces
_NUM_BINS = 40
_CURVE_COLORS = (
    *("#20639b", "#d1495b", "#3c8d2f", "#8e5ea2", "#e08214"),
    *("#17becf", "#7f7f7f", "#8c564b", "#bcbd22", "#000000"),
)
_LEGEND_WIDTH = 7.5  # inches that five entries take
_PANELS_IN_A_ROW = 6
_MAPS_IN_A_ROW = 4
_MOST_TICKS = 12


def margin_distribution(
    result: MarginResult,
    *,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace, from low to high frequency",
    key: jax.Array | None = None,
) -> Figure:
    """The margins of every sample in every subspace: median line, 5 to 95% band, and the samples as a swarm.

    Samples with a censored margin are drawn as a count of triangles on the upper edge; percentiles that fall among
    them are left open.

    Args:
      result: margins with axes (R, N), in the order in which subspaces are to stand from left to right.
      title: above the picture.
      ticks: a label for each of the R subspaces; their numbers if not given.
      xlabel: what the subspaces are.
      key: random key of the bootstrap of the median, as in `statistics.summarize`.

    Returns:
      A figure, to be saved with `figure.savefig(path)`.
    """
    summary = statistics.summarize(result, key=key)
    positions = np.arange(len(summary.median))
    _check_length("ticks", ticks, len(positions), "subspaces")
    low, median, high = np.where(np.isfinite(summary.percentiles), summary.percentiles, np.nan).T

    figure = Figure(figsize=(max(_LEGEND_WIDTH, 1.5 + 0.4 * len(positions)), 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    x, y = _swarm(statistics.censored_margins(result))
    axes.scatter(x, y, s=2, color=_COLOR, alpha=0.35, linewidths=0, label="samples", rasterized=True)
    axes.fill_between(positions, low, high, color=_COLOR, alpha=0.18, linewidth=0, label="5% to 95%")
    interval = np.where(np.isfinite(summary.median_interval), summary.median_interval, np.nan)
    axes.plot(positions, median, color=_COLOR, linewidth=1.5, marker="o", markersize=4, label="median")
    axes.vlines(positions, *interval.T, color="black", linewidth=1.5, label="its 95% interval")
    if y.size:  # without a single margin there is nothing to scale by
        axes.set_yscale("log")
    axes.set_xticks(positions, ticks if ticks is not None else [str(position) for position in positions])
    axes.set(xlabel=xlabel, ylabel="margin (L2, pixels in [0, 1])", title=title, xlim=(-0.6, len(positions) - 0.4))
    _draw_censored(axes, positions, summary)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, markerscale=2)
    return figure


def margin_history(
    epochs: Sequence[int],
    medians: Sequence[Sequence[float]] | np.ndarray,
    *,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "subspace, from low to high frequency",
) -> Figure:
    """Median margins while a network trained, as a heat map: one row an epoch, one column a subspace.

    Args:
      epochs: the E epochs after which margins were measured, rising.
      medians: (E, R) medians; those that are 0 or not finite are left blank.
      title: of the picture.
      ticks: R names of the subspaces; their numbers if not given.
      xlabel: of the axis of subspaces.
    """
    values = _positive(medians)
    if values.ndim != 2:
        raise ValueError(f"medians must have shape (E, R), an epoch in a row, got {values.shape}")
    _check_length("epochs", epochs, values.shape[0], "rows of medians")
    _check_length("ticks", ticks, values.shape[1], "subspaces")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(*map(_edges, values.shape[::-1]), values, norm=_scale(values), cmap="viridis")
    axes.set_xticks(range(values.shape[1]), ticks if ticks is not None else map(str, range(values.shape[1])))
    axes.set_yticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.set(xlabel=xlabel, ylabel="epochs of training", title=title)
    _label_margins(figure.colorbar(mesh, ax=axes))
    return figure


def margin_maps(
    medians: np.ndarray,
    rows: Sequence[int] | np.ndarray,
    columns: Sequence[int] | np.ndarray,
    *,
    titles: Sequence[str],
    title: str = "",
    xlabel: str = "first horizontal frequency",
    ylabel: str = "first vertical frequency",
) -> Figure:
    """Median margins in a grid of subspaces, such as DCT windows, as heat maps of one colour scale: a panel each.

    Args:
      medians: (P, I, J) medians for P panels; those that are 0 or not finite are left blank.
      rows: what the I subspaces from top to bottom are, such as their windows' first row of frequencies.
      columns: what the J subspaces from left to right are.
      titles: of the P panels.
      title: above the picture.
      xlabel: what `columns` are.
      ylabel: what `rows` are.

    >>> figure = margin_maps(np.array([[[3.0, 9.0], [8.0, 27.0]]]), [0, 10], [0, 10], titles=["epoch 5"])
    >>> figure.axes[0].get_title()
    'epoch 5'
    """
    values = _positive(medians)
    if values.ndim != 3:
        raise ValueError(f"medians must have shape (P, I, J), a map of a panel in each row, got {values.shape}")
    for argument, given, number, things in (
        ("titles", titles, values.shape[0], "panels"),
        ("rows", rows, values.shape[1], "rows of a panel"),
        ("columns", columns, values.shape[2], "columns of a panel"),
    ):
        _check_length(argument, given, number, things)
    columns_of_panels = min(len(values), _MAPS_IN_A_ROW)
    rows_of_panels = -(-len(values) // columns_of_panels)
    width = 4.5 if len(values) == 1 else 2.6
    figure = Figure(
        figsize=(1.6 + width * columns_of_panels, 0.8 + width * rows_of_panels), dpi=150, layout="constrained"
    )
    panels = figure.subplots(rows_of_panels, columns_of_panels, sharex=True, sharey=True, squeeze=False)
    scale = _scale(values)
    for axes, name, each in itertools.zip_longest(panels.flat, titles, values):
        if each is None:
            axes.set_axis_off()
            continue
        mesh = axes.pcolormesh(*map(_edges, each.shape[::-1]), each, norm=scale, cmap="viridis")
        axes.set(title=name, aspect="equal")
    panels[0, 0].set_xticks(*_few_ticks(columns))
    panels[0, 0].set_yticks(*_few_ticks(rows))
    panels[0, 0].invert_yaxis()  # low frequencies in the upper left corner, as in an array of coefficients
    figure.supxlabel(xlabel)
    figure.supylabel(ylabel)
    figure.suptitle(title)
    _label_margins(figure.colorbar(mesh, ax=panels, shrink=0.8))
    return figure


def margin_curves(
    positions: Sequence[float] | np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    title: str = "",
    ticks: Sequence[str] | None = None,
    xlabel: str = "",
) -> Figure:
    """How margins change along with something else: a line of medians in a band for every subspace.

    A band that reaches among censored margins goes on to the upper edge; medians among them are triangles there.

    Args:
      positions: the E places along the horizontal axis, rising.
      panels: for each panel, by its title, the percentiles (E, 3) of the margins in each subspace, by its name: the
        lower end of the band, the median, and the upper end.
      title: above the picture.
      ticks: a label for each of the E positions.
      xlabel: what the positions are.
    """
    if not panels:
        raise ValueError("panels is empty: give at least one, with its curves")
    names = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    colors = dict(zip(names, _colors(names), strict=True))
    handles: dict[str, Line2D] = {}
    figure = Figure(figsize=(1 + 4 * len(panels), 4), dpi=150, layout="constrained")
    for column, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), column + 1)
        bottom, top = _limits(curves)
        for label, percentiles in curves.items():
            color = colors[label]
            low, median, high = np.asarray(percentiles, float).T
            axes.fill_between(positions, np.minimum(low, top), np.minimum(high, top), color=color, alpha=0.15, lw=0)
            line = np.where(np.isfinite(median), median, np.nan)
            (handles[label],) = axes.plot(positions, line, color=color, marker="o", markersize=4)
            above = np.asarray(positions)[np.isinf(median)]
            axes.scatter(above, np.full(len(above), top), marker="^", s=30, color=color, clip_on=False, zorder=3)
        axes.set(yscale="log", ylim=(bottom, top), xlabel=xlabel, title=name)
        if ticks is not None:
            axes.set_xticks(positions, ticks)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("margin (L2): median, 5% to 95%")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    return figure


def margin_intervals(subspaces: Sequence[str], percentiles: Mapping[str, np.ndarray], *, title: str = "") -> Figure:
    """Margins in subspaces that have no order, of one or more networks: the median on a bar for each.

    A bar that reaches among censored margins goes on to the upper edge; medians among them are triangles there.

    Args:
      subspaces: names of the R subspaces.
      percentiles: for each network, by its name, the percentiles (R, 3) of its margins: the lower end of the bar, the
        median, and the upper end.
      title: above the picture.
    """
    bottom, top = _limits(percentiles)
    figure = Figure(figsize=(max(6.0, 1.5 + 0.6 * len(subspaces)), 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shifts = min(0.24, 0.8 / len(percentiles)) * (np.arange(len(percentiles)) - (len(percentiles) - 1) / 2)
    for shift, color, (label, bars) in zip(shifts, _colors(percentiles), percentiles.items(), strict=True):
        low, median, high = np.asarray(bars, float).T
        places = np.arange(len(subspaces)) + shift
        axes.vlines(places, np.minimum(low, top), np.minimum(high, top), color=color, linewidth=5, alpha=0.3)
        axes.scatter(places, np.where(np.isfinite(median), median, np.nan), s=24, color=color, label=label, zorder=3)
        above = places[np.isinf(median)]
        axes.scatter(above, np.full(len(above), top), marker="^", s=30, color=color, clip_on=False, zorder=3)
    axes.set_xticks(range(len(subspaces)), subspaces, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(yscale="log", ylim=(bottom, top), ylabel="margin (L2): median, 5% to 95%", title=title)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def cross_sections(
    gaps: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    titles: Sequence[str],
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    title: str = "",
    xlabel: str = "along u1",
    ylabel: str = "along u2",
) -> Figure:
    """What classifiers of two classes say on a plane: a panel each, with the boundary as a line.

    Args:
      gaps: (P, H, W) logits of class 1 less those of class 0, for P panels.
      x: (W,) coordinates along the horizontal direction of the plane.
      y: (H,) coordinates along the vertical one.
      titles: of the P panels.
      points: (P, N, 2) coordinates of samples projected onto the plane.
      labels: (N,) their labels, 0 or 1.
      title: above the picture.
      xlabel: the horizontal direction.
      ylabel: the vertical one.
    """
    _check_length("titles", titles, len(gaps), "panels")
    _check_length("points", points, len(gaps), "panels")
    if (points is None) != (labels is None):
        raise ValueError("points and labels belong together: give both, or none")
    columns = min(len(gaps), _PANELS_IN_A_ROW)
    rows = -(-len(gaps) // columns)
    figure = Figure(figsize=(1.2 + 2.1 * columns, 0.8 + 2.9 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(panels.flat):
        if index >= len(gaps):
            axes.set_axis_off()
            continue
        probability = 1 / (1 + np.exp(-np.clip(gaps[index], -30, 30)))
        mesh = axes.pcolormesh(x, y, probability, cmap="RdBu", vmin=0, vmax=1, alpha=0.75, rasterized=True)
        if gaps[index].min() < 0 < gaps[index].max():
            axes.contour(x, y, gaps[index], levels=[0], colors="black", linewidths=1.2)
        if points is not None:
            for label, color in ((0, "#b2182b"), (1, "#2166ac")):
                x1, x2 = points[index][labels == label].T
                axes.scatter(x1, x2, s=18, color=color, edgecolors="white", linewidths=0.8, zorder=3)
        axes.set(title=titles[index], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    figure.supxlabel(xlabel)
    figure.supylabel(ylabel)
    figure.colorbar(mesh, ax=panels, label="probability of class 1", shrink=0.8)
    figure.suptitle(title)
    return figure


def _colors(names) -> tuple[str, ...]:
    """A colour for each of some curves."""
    if len(names) > len(_CURVE_COLORS):
        raise ValueError(
            f"{len(names)} curves can't be told apart, {len(_CURVE_COLORS)} can: draw some in a figure of their own"
        )
    return _CURVE_COLORS[: len(names)]


def _check_length(argument, values, number, things) -> None:
    if values is not None and len(values) != number:
        raise ValueError(f"{argument} must have one entry for each of the {number} {things}, got {len(values)}")


def _positive(medians) -> np.ma.MaskedArray:
    """Medians as a logarithmic scale can show them: those that are 0 or not finite are masked."""
    values = np.asarray(medians, float)
    return np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)


def _scale(values) -> LogNorm | None:
    """A scale from the least to the greatest of some values; None if there are none."""
    return LogNorm(values.min(), values.max()) if values.count() else None


def _edges(number) -> np.ndarray:
    """Of cells around 0, 1, ..., so that a single one has an extent, too."""
    return np.arange(number + 1) - 0.5


def _label_margins(bar) -> None:
    """Names what a logarithmic colour bar shows, with numbers in full, and so few that they do not touch."""
    bar.set_label("median margin (L2, pixels in [0, 1])")
    bar.ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_formatter("{x:g}")


def _few_ticks(labels) -> tuple[np.ndarray, list[str]]:
    """Places and names of ticks along an axis of a heat map, at most about a dozen."""
    places = np.arange(0, len(labels), -(-len(labels) // _MOST_TICKS))
    return places, [str(labels[place]) for place in places]


def _limits(percentiles) -> tuple[float, float]:
    """Ends of a logarithmic axis for some arrays of margins, with room for censored ones above."""
    values = np.concatenate([np.ravel(array) for array in percentiles.values()])
    finite = values[np.isfinite(values) & (values > 0)]
    return (finite.min() / 1.5, finite.max() * 3) if finite.size else (0.1, 1.0)


def _swarm(margins) -> tuple[np.ndarray, np.ndarray]:
    """Positions of finite margins (R, N): spread sideways as far as samples lie close together."""
    xs, ys = [], []
    for position, row in enumerate(margins):
        finite = np.sort(row[np.isfinite(row) & (row > 0)])
        if not finite.size:
            continue
        counts, edges = np.histogram(np.log(finite), bins=_NUM_BINS)
        bins = np.clip(np.searchsorted(edges, np.log(finite), side="right") - 1, 0, _NUM_BINS - 1)
        # Multiples of the golden ratio fill an interval evenly, with no two neighbours close.
        spread = 2 * (np.arange(finite.size) * 0.6180339887 % 1) - 1
        xs.append(position + _SWARM_HALF_WIDTH * spread * counts[bins] / counts.max())
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
        color=_CENSORED_COLOR,
        label="without a margin",
        **marks,
    )
    for position, count in zip(positions[is_marked], (censored + missing)[is_marked], strict=True):
        axes.text(position, 1.03, str(count), ha="center", fontsize=7, color=_CENSORED_COLOR, **marks)
    axes.set_title(axes.get_title(), pad=18)  # above the counts
