"""The pictures of a run, in its folder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import baseline, folder, summary
from hmt_jax import plots, statistics


def draw(name: str, config, path: pathlib.Path) -> None:
    """Draws the margins of a summarized run, beside those of the run it is compared with."""
    result, corners = summary.read_margins(config, path)
    named = labels(config, corners)
    origin = baseline.of(path)
    if origin is not None:
        other, _ = summary.read_margins(config.baseline_config, origin)
        both = {name: result, config.baseline.replace("_", " "): other}
        curves = {label: percentiles(statistics.censored_margins(margins)) for label, margins in both.items()}
        title = f"{name} beside {config.baseline.replace('_', ' ')}"
        panels = plots.margin_curves(range(len(corners)), {"": curves}, title=title, **named)
        folder.write_picture(path / "compared.png", panels)
    accuracy = folder.read_json(path / "summary.json")["test_accuracy"]
    title = f"{name}: test accuracy {accuracy:.2%}, {result.margin.shape[1]} test images"
    folder.write_picture(path / "margins.png", plots.margin_distribution(result, title=title, **named))


def draw_training(name: str, config, path: pathlib.Path) -> None:
    """Draws how margins along the diagonal, and adversarial perturbations, came about in training."""
    epochs = summary.monitored(path)
    named = labels(config, summary.read_margins(config, path)[1])
    num_images = next(iter(epochs.values()))["margin"].shape[1]
    title = f"{name}: median margins of {num_images} test images in training"
    medians = np.stack([percentiles(found["margin"])[:, 1] for found in epochs.values()])
    folder.write_picture(path / "history.png", plots.margin_history(list(epochs), medians, title=title, **named))
    if config.attack != "none":
        folder.write_picture(path / "spectrum.png", spectrum(epochs, title=name, **named))


def labels(config, corners) -> dict[str, Any]:
    """The names of the windows, and of their axis."""
    return {
        "ticks": [str(row) for row, _ in corners.tolist()],
        "xlabel": f"first frequency of the {config.window_size} x {config.window_size} DCT window, from low to high",
    }


def percentiles(margins: np.ndarray) -> np.ndarray:
    """The 5th, the 50th and the 95th percentile (R, 3) of censored margins (R, N)."""
    return np.stack([statistics.percentile(margins, rank) for rank in (5, 50, 95)], axis=-1)


def spectrum(
    epochs: Mapping[int, Mapping[str, np.ndarray]], *, title: str, ticks: Sequence[str], xlabel: str
) -> Figure:
    """A figure of the energy of adversarial perturbations over subspaces, with a line for each epoch of training.

    Args:
      epochs: what `experiments.evaluation.monitor` found after each epoch, by its number.
      title: of the picture.
      ticks: R names of the subspaces.
      xlabel: of the axis of subspaces.
    """
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colors = ScalarMappable(Normalize(min(epochs), max(epochs)), "viridis")
    for color, found in zip(colors.to_rgba(np.array(list(epochs))), epochs.values(), strict=True):
        share = found["energy"].sum(1) / max(found["total_energy"].sum(), np.finfo(np.float32).tiny)
        axes.plot(share, color=color, marker="o", markersize=3)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlabel=xlabel, ylabel="share of the perturbations' energy")
    axes.grid(axis="y", alpha=0.3)
    figure.colorbar(colors, ax=axes, label="epochs of training", ticks=MaxNLocator(8, integer=True))
    plots.frame(figure, title)
    return figure


def image_grid(
    columns: Mapping[str, np.ndarray], captions: Sequence[Sequence[str]] | None = None, *, title: str = ""
) -> Figure:
    """Images side by side: a row for each of N images, and a column for each thing done to them.

    Args:
      columns: for each column, by its heading, the images (N, height, width, channels) in [0, 1].
      captions: below the images, for each column one for each of its images.
      title: above the picture.
    """
    num_rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.3 * len(columns), 0.5 + 1.5 * num_rows), dpi=150, layout="constrained")
    panels = figure.subplots(num_rows, len(columns), squeeze=False)
    for place, (heading, images) in enumerate(columns.items()):
        for axes, image in zip(panels[:, place], images, strict=True):
            axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        for axes, caption in zip(panels[:, place], captions[place] if captions else (), strict=False):
            axes.set_xlabel(caption, fontsize=7)
        panels[0, place].set_title(heading, fontsize=8)
    plots.frame(figure, title)
    return figure
