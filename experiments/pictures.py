"""The pictures of a run, in its folder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import hmt_jax
from experiments import folder
from hmt_jax import plots, statistics


def draw(
    name: str,
    config,
    path: pathlib.Path,
    result: hmt_jax.MarginResult,
    baseline_result: hmt_jax.MarginResult | None,
    corners: np.ndarray,
) -> None:
    """Draws the margins of a run, beside those of the run it is compared with, and how they came about in training."""
    history = folder.read_json(path / "history.json")
    labels: dict[str, Any] = {
        "ticks": [str(row) for row, _ in corners.tolist()],
        "xlabel": f"first frequency of the {config.window_size} x {config.window_size} DCT window, from low to high",
    }
    if config.measure_every:
        _draw_training(name, config, path, history, labels)
    if baseline_result is not None:
        curves = {name: _percentiles(result), config.baseline.replace("_", " "): _percentiles(baseline_result)}
        figure = plots.margin_curves(range(len(corners)), {"": curves}, **labels)
        _save(figure, path / "compared.png")
    title = f"{name}: test accuracy {history[-1]['test_accuracy']:.2%}, {result.margin.shape[1]} test images"
    _save(plots.margin_distribution(result, title=title, **labels), path / "margins.png")


def _draw_training(name, config, path, history, labels):
    measured = [entry for entry in history if "median_margins" in entry]
    medians = [[np.nan if median is None else median for median in entry["median_margins"]] for entry in measured]
    title = f"{name}: median margins of {config.num_monitored} test images in training"
    figure = plots.margin_history([entry["epoch"] + 1 for entry in measured], medians, title=title, **labels)
    _save(figure, path / "history.png")
    if config.attack != "none":
        epochs = {int(file.stem): folder.read_arrays(file) for file in sorted((path / "monitored").iterdir())}
        _save(spectrum(epochs, title=name, **labels), path / "spectrum.png")


def _percentiles(result) -> np.ndarray:
    """The 5th, the 50th and the 95th percentile (R, 3) of margins."""
    margins = statistics.censored_margins(result)
    return np.array([[statistics.percentile(row, rank) for rank in (5, 50, 95)] for row in margins])


def _save(figure, path) -> None:
    with folder.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def spectrum(
    epochs: Mapping[int, Mapping[str, np.ndarray]], *, title: str, ticks: Sequence[str], xlabel: str
) -> Figure:
    """Where adversarial perturbations have their energy while a network trains: one line an epoch.

    Args:
      epochs: what `experiments.evaluation.monitor` found after each epoch, by its number.
      title: of the picture.
      ticks: R names of the subspaces.
      xlabel: of the axis of subspaces.
    """
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colors = np.linspace(0.15, 1, len(epochs))
    for (epoch, found), color in zip(epochs.items(), colors, strict=True):
        share = found["energy"].sum(1) / max(found["total_energy"].sum(), np.finfo(np.float32).tiny)
        axes.plot(share, color=(0.125, 0.388, 0.608, color), marker="o", markersize=3, label=str(epoch))
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlabel=xlabel, ylabel="share of the perturbations' energy", title=title)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, title="epochs of\ntraining")
    return figure
