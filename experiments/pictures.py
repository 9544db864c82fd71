"""Pictures of runs that `hmt_jax.plots` has none of."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


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
