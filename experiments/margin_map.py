"""The experiment on all windows of the DCT: margins over the whole grid, not the diagonal alone, and over training."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from experiments import folder, pictures, stages, summary
from experiments.checks import Estimate, from_medians
from experiments.claims import margins, measured_epochs, spearman
from experiments.diagonal import DiagonalMargins
from hmt_jax import plots, statistics, subspaces


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginMap(DiagonalMargins):
    """As along the diagonal, but for every window of a grid: `window_step` is that of rows and of columns.

    Attributes:
      num_panels: the most epochs of training that are drawn, evenly from the first to the last of those measured.
    """

    results: ClassVar[tuple[str, ...]] = (*DiagonalMargins.results, "map.png", "maps.png")

    num_panels: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.num_panels < 1:
            raise ValueError(f"num_panels must be at least 1, got {self.num_panels}")

    def windows(self, image_shape: tuple[int, int, int]) -> list[subspaces.DCTWindow]:
        """The windows in which margins are measured, row by row."""
        return subspaces.dct_grid(image_shape, self.window_size, self.window_step)

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        stages.run(name, self, path, data_dir)
        self.summarize(name, path)
        result, corners = summary.read_margins(self, path)
        trained = f"{self.window_size} x {self.window_size} windows, {result.margin.shape[1]} test images"
        _draw(path / "map.png", {trained: statistics.censored_margins(result)}, corners, title=name)
        if self.measure_every:
            found = summary.monitored(path)
            shown = np.linspace(0, len(found) - 1, min(self.num_panels, len(found))).round().astype(int)
            maps = {f"epoch {epoch}": found[epoch]["margin"] for epoch in np.array(list(found))[shown].tolist()}
            _draw(path / "maps.png", maps, corners, title=f"{name}: in training")

    def report(self, path: pathlib.Path) -> str:
        found = folder.read_json(path / "summary.json")
        medians = {(window["row"], window["column"]): window["median"] for window in found["windows"]}
        rows, columns = (sorted(set(numbers)) for numbers in zip(*medians, strict=True))
        lines = [*summary.head(found), "median margins by the first row and column of the window's frequencies"]
        lines.append("    " + "".join(f"{column:>8}" for column in columns))
        for row in rows:
            lines.append(f"{row:>4}" + "".join(f"{summary.text(medians[row, column]):>8}" for column in columns))
        return "\n".join(lines)


def _draw(file: pathlib.Path, margins: Mapping[str, np.ndarray], corners: np.ndarray, *, title: str) -> None:
    """Draws the medians of margins (R, N) in the windows of a grid, a map for each title."""
    rows, columns = map(np.unique, corners.T)
    medians = [pictures.percentiles(each)[:, 1].reshape(len(rows), len(columns)) for each in margins.values()]
    panels = plots.margin_maps(np.stack(medians), rows, columns, titles=list(margins), title=title)
    folder.write_picture(file, panels)


def correlation_with_distance(path: pathlib.Path) -> Estimate:
    """Rank correlation, over the windows, of the medians with the distance of the window from the lowest one."""
    found, corners = margins(path)
    distances = np.hypot(*corners.T)
    return from_medians(lambda medians: spearman(medians, distances), found)


def growth_along_axes(path: pathlib.Path) -> Estimate:
    """The lesser median of the two windows at the ends of the axes, over that of the lowest window."""
    found, corners = margins(path)
    row_is_low, column_is_low = (corners == 0).T
    row_is_high, column_is_high = (corners == corners.max(0)).T
    places = [row_is_low & column_is_high, row_is_high & column_is_low, row_is_low & column_is_low]
    across, down, lowest = (int(np.flatnonzero(place)[0]) for place in places)
    return from_medians(lambda medians: min(medians[across], medians[down]) / medians[lowest], found)


def correlation_of_first_with_last(path: pathlib.Path) -> Estimate:
    """Rank correlation, over the windows, of the medians at the first measured epoch with those at the last."""
    first, *_, last = measured_epochs(path, at_least=2)
    return from_medians(spearman, first["margin"], last["margin"])
