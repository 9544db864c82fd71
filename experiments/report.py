"""The findings of a run on windows of the DCT: its summary, its table for the terminal, and its pictures."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import hmt_jax
from experiments import store
from experiments.claims import for_json
from experiments.experiment import Run
from hmt_jax import _tables, plots, statistics, subspaces
from hmt_jax.report import Measurement, of_windows, pictures

Margins = hmt_jax.MarginResult | np.ndarray  # an array (R, N) of censored margins

_NUM_PANELS = 8  # the most epochs that a picture shows as maps
_LEAST = np.finfo(np.float32).tiny  # stands for an energy of 0


def statistics_of(summary: statistics.MarginSummary, r: int) -> dict[str, Any]:
    """The statistics of one subspace of a summary, for JSON."""
    ranks = zip(summary.ranks, summary.percentiles[r], strict=True)
    return {
        "median": for_json(summary.median[r]),
        "median_interval": [for_json(end) for end in summary.median_interval[r]],
        "percentiles": {str(rank): for_json(p) for rank, p in ranks},
        "counts": {status: int(counts[r]) for status, counts in summary.counts.items()},
    }


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """A table for the terminal, from its rows, the headings first."""
    return _tables.table([(heading, cells) for heading, *cells in zip(*rows, strict=True)])


def percentiles(margins: Margins) -> np.ndarray:
    """The 5th, the 50th and the 95th percentile (R, 3) of margins."""
    if isinstance(margins, hmt_jax.MarginResult):
        margins = statistics.censored_margins(margins)
    return np.stack([statistics.percentile(margins, rank) for rank in (5, 50, 95)], axis=-1)


def median_ratios(margins: Margins, others: Margins) -> np.ndarray:
    """The medians (R,) of margins over those of others, NaN where both are censored."""
    with np.errstate(invalid="ignore"):
        return percentiles(margins)[:, 1] / percentiles(others)[:, 1]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two curves, of which some values may be infinite; NaN if one has no order."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def around_grey(images: np.ndarray) -> np.ndarray:
    """Perturbations (..., height, width, channels) as images, with grey for 0, each as strong as it can be."""
    reach = np.abs(images).max((-3, -2, -1), keepdims=True)
    return 0.5 + images / (2 * np.where(reach > 0, reach, 1))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from low to high, from one half on; equal values share the mean of theirs. NaN for all if one is NaN."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    return ((values[None] < values[:, None]).sum(1) + (values[None] <= values[:, None]).sum(1)) / 2


def read_margins(path: pathlib.Path) -> tuple[hmt_jax.MarginResult, np.ndarray]:
    """The margins of a run, and the corners of their windows."""
    result, arrays = store.read_margins(path / "margins.npz")
    return result, arrays["corner"]


def write_measurement(
    run: Run,
    result: hmt_jax.MarginResult,
    windows: Sequence[subspaces.DCTWindow],
    images: np.ndarray,
    names: Sequence[str],
    classifier_id: str | None = None,
) -> None:
    """Writes margins with coordinates in windows for the page, and pictures of the least, a median and the largest.

    `names` are those of the images; `classifier_id` is a text that is equal for the same network.
    """
    measured = Measurement(
        name=run.name,
        result=result,
        **of_windows(np.stack([window.corner for window in windows]), windows[0].size),
        image_ids=names,
        classifier_id=classifier_id,
        pictures=pictures(result, windows, images),
        no_pictures="no search found a margin",
    )
    store.write(run.path / store.PICTURES, hmt_jax.report.to_bytes([measured]))


def summarize(run: Run, *, test_accuracy: float, num_test: int, training_seconds: float | None = None) -> None:
    """Writes the summary of a measured run."""
    result, arrays = store.read_margins(run.path / "margins.npz")
    summary, versus, ratios = statistics.summarize(result), "none", None
    if run.baseline is not None:
        versus = store.read_config(run.baseline)["experiment"]
        ratios = [*map(for_json, median_ratios(result, read_margins(run.baseline)[0]))]
    store.write_json(
        run.path / "summary.json",
        {
            "experiment": run.name,
            "test_accuracy": test_accuracy,
            "num_test": num_test,
            "robustness": _strongest(run.path / "robustness.json"),
            "baseline": versus,
            "baseline_robustness": _strongest(run.path / "baseline_robustness.json"),
            "margin_over_baseline": ratios,
            "training_seconds": training_seconds,
            "measurement_seconds": round(float(arrays["seconds"]), 2),
            "utilization": round(result.work.utilization, 4),
            "num_images": result.margin.shape[1],
            "confidence": summary.confidence,
            "windows": [
                {"row": row, "column": column, **statistics_of(summary, r)}
                for r, (row, column) in enumerate(arrays["corner"].tolist())
            ],
        },
    )


def table(path: pathlib.Path) -> str:
    """The findings of a run along the diagonal as a table for the terminal."""
    result, corners = read_margins(path)
    summary = statistics.summarize(result, names=[f"{row},{column}" for row, column in corners.tolist()])
    return f"{_head(path)}\n{summary}"


def table_of_grid(path: pathlib.Path) -> str:
    """The findings of a run over a grid of windows as a table of medians for the terminal."""
    result, corners = read_margins(path)
    rows, columns = map(np.unique, corners.T)
    medians = percentiles(result)[:, 1].reshape(len(rows), len(columns))
    table = [["", *map(str, columns)]]
    table += [[str(row), *_tables.numbers(each)] for row, each in zip(rows, medians, strict=True)]
    title = "median margins by the first row and column of the window's frequencies"
    return f"{_head(path)}\n{title}\n{aligned(table)}"


def _strongest(file) -> dict[str, Any] | None:
    """The accuracy under the strongest attack, if it was measured."""
    found = store.read_json(file) if file.exists() else None
    return found and {"norm": found["norm"], "epsilon": found["epsilon"], **found["evaluations"][-1]}


def _head(path) -> str:
    """The findings on the network as a whole, in lines for the terminal."""
    summary = store.read_json(path / "summary.json")
    lines = [f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; "]
    if summary["training_seconds"] is not None:
        lines[0] += f"training {summary['training_seconds']:.0f} s, "
    lines[0] += f"margins {summary['measurement_seconds']:.0f} s"
    if found := summary["robustness"]:
        norm = {"l2": "L2", "linf": "L-infinity"}[found["norm"]]
        lines.append(
            f"accuracy under PGD of {found['num_steps']} steps, {norm} norm at most {found['epsilon']:g}: "
            f"{found['robust_accuracy']:.2%} ({found['clean_accuracy']:.2%} of the same images without it)"
        )
    if found := summary["baseline_robustness"]:
        lines.append(f"{summary['baseline']} under the same attack: {found['robust_accuracy']:.2%}")
    if ratios := summary["margin_over_baseline"]:
        lines.append(f"medians over those of {summary['baseline']}: {' '.join(_tables.numbers(map(float, ratios)))}")
    return "\n".join(lines)


def axis(corners: np.ndarray, window_size: int) -> dict[str, Any]:
    """The names of windows along the diagonal, and of their axis, for pictures."""
    named = of_windows(corners, window_size)
    return {"ticks": named["subspaces"], "xlabel": named["axis"]}


def draw(run: Run, window_size: int) -> None:
    """Draws the margins of a summarized run along the diagonal, and what was measured while its network trained."""
    result, corners = read_margins(run.path)
    named = axis(corners, window_size)
    accuracy = store.read_json(run.path / "summary.json")["test_accuracy"]
    title = f"{run.name}: test accuracy {accuracy:.2%}, {result.margin.shape[1]} test images"
    store.write_picture(run.path / "margins.png", plots.margin_distribution(result, title=title, **named))
    if not (epochs := store.monitored(run.path)):
        return
    first, *_ = epochs.values()
    title = f"{run.name}: median margins of {first['margin'].shape[1]} test images in training"
    medians = np.stack([percentiles(found["margin"])[:, 1] for found in epochs.values()])
    store.write_picture(run.path / "history.png", plots.margin_history(list(epochs), medians, title=title, **named))
    if "energy" in first:  # of adversarial training
        shares = [found["energy"].sum(1) / max(found["total_energy"].sum(), _LEAST) for found in epochs.values()]
        drawn = plots.energy_history(list(epochs), shares, title=run.name, **named)
        store.write_picture(run.path / "spectrum.png", drawn)


def draw_grid(run: Run, window_size: int) -> None:
    """Draws the medians over a grid of windows, of the trained network and, if they were measured, in training."""
    result, corners = read_margins(run.path)
    rows, columns = map(np.unique, corners.T)

    def draw_maps(file, maps, title):
        medians = [percentiles(margins)[:, 1].reshape(len(rows), len(columns)) for margins in maps.values()]
        panels = plots.margin_maps(np.stack(medians), rows, columns, titles=list(maps), title=title)
        store.write_picture(run.path / file, panels)

    trained = f"{window_size} x {window_size} windows, {result.margin.shape[1]} test images"
    draw_maps("map.png", {trained: result}, run.name)
    if found := store.monitored(run.path):
        shown = np.linspace(0, len(found) - 1, min(_NUM_PANELS, len(found))).round().astype(int)
        maps = {f"epoch {epoch}": found[epoch]["margin"] for epoch in np.array(list(found))[shown].tolist()}
        draw_maps("maps.png", maps, f"{run.name}: in training")
