"""Pictures of margins. Needs matplotlib: `pip install 'hmt-jax[experiments]'`."""

from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from hmt_jax import statistics
from hmt_jax.margins import MarginResult

_COLOR = "#20639b"
_CENSORED_COLOR = "#c0392b"
_SWARM_HALF_WIDTH = 0.42  # of the distance between subspaces
_NUM_BINS = 40


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
    low, median, high = np.where(np.isfinite(summary.percentiles), summary.percentiles, np.nan).T

    figure = Figure(figsize=(max(6.0, 1.5 + 0.4 * len(positions)), 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    x, y = _swarm(statistics.censored_margins(result))
    axes.scatter(x, y, s=2, color=_COLOR, alpha=0.35, linewidths=0, label="samples", rasterized=True)
    axes.fill_between(positions, low, high, color=_COLOR, alpha=0.18, linewidth=0, label="5% to 95%")
    interval = np.where(np.isfinite(summary.median_interval), summary.median_interval, np.nan)
    axes.plot(positions, median, color=_COLOR, linewidth=1.5, marker="o", markersize=4, label="median")
    axes.vlines(positions, *interval.T, color="black", linewidth=1.5, label="its 95% interval")
    _draw_censored(axes, positions, summary)
    if y.size:  # without a single margin there is nothing to scale by
        axes.set_yscale("log")
    axes.set_xticks(positions, ticks if ticks is not None else [str(position) for position in positions])
    axes.set(xlabel=xlabel, ylabel="margin (L2, pixels in [0, 1])", title=title, xlim=(-0.6, len(positions) - 0.4))
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
      medians: (E, R) medians; those that are not finite are left blank.
      title: of the picture.
      ticks: R names of the subspaces; their numbers if not given.
      xlabel: of the axis of subspaces.
    """
    values = np.ma.masked_invalid(np.asarray(medians, float))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(np.arange(values.shape[1]), np.arange(len(epochs)), values, norm="log", cmap="viridis")
    axes.set_xticks(range(values.shape[1]), ticks or [str(r) for r in range(values.shape[1])])
    axes.set_yticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.set(xlabel=xlabel, ylabel="epochs of training", title=title)
    scale = figure.colorbar(mesh, ax=axes, label="median margin (L2, pixels in [0, 1])").ax.yaxis
    scale.set_major_formatter("{x:g}")
    scale.set_minor_formatter("{x:g}")
    return figure


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
    censored = summary.counts["out_of_steps"] + summary.counts["zero_gradient"]
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
