"""What a run found: its summary, and a table for the terminal."""

import pathlib
from typing import Any

import numpy as np

import hmt_jax
from experiments import baseline, folder
from hmt_jax import lanes, statistics

# The arrays of a `hmt_jax.MarginResult` that a run keeps.
FIELDS = ("margin", "label", "adversarial_label", "num_steps", "status", "gap", "alignment")


def write(
    name: str,
    config,
    path: pathlib.Path,
    *,
    test_accuracy: float,
    num_test: int,
    training_seconds: float | None = None,
) -> None:
    """Writes the summary of a measured run."""
    result, corners = read_margins(config, path)
    measurement = folder.read_json(path / "measurement.json")
    summary = statistics.summarize(result)
    windows = [
        {
            "row": row,
            "column": column,
            "median": number(summary.median[r]),
            "median_interval": [number(end) for end in summary.median_interval[r]],
            "percentiles": {
                str(rank): number(p) for rank, p in zip(summary.ranks, summary.percentiles[r], strict=True)
            },
            "counts": {status: int(counts[r]) for status, counts in summary.counts.items()},
        }
        for r, (row, column) in enumerate(corners.tolist())
    ]
    folder.write_json(
        path / "summary.json",
        {
            "experiment": name,
            "test_accuracy": test_accuracy,
            "num_test": num_test,
            "robustness": _robustness(path / "robustness.json"),
            "baseline": config.baseline,
            "baseline_robustness": _robustness(path / "baseline_robustness.json"),
            "margin_over_baseline": _margin_over_baseline(summary, path),
            "training_seconds": training_seconds,
            "measurement_seconds": round(measurement["seconds"], 2),
            "utilization": round(result.work.utilization, 4),
            "num_images": result.margin.shape[1],
            "confidence": summary.confidence,
            "windows": windows,
        },
    )


def report(path: pathlib.Path) -> str:
    """The summary in a run's folder as a table for the terminal."""
    summary = folder.read_json(path / "summary.json")
    lines = [
        *head(summary),
        f"{'window':>8} {'median':>9} {'95% interval':>19} {'5%':>9} {'95%':>9} {'no margin':>10}",
    ]
    for window in summary["windows"]:
        low, high = (text(end) for end in window["median_interval"])
        percentiles = window["percentiles"]
        num_without = sum(count for status, count in window["counts"].items() if status != "converged")
        lines.append(
            f"{window['row']:>4},{window['column']:>3} {text(window['median']):>9} {low:>9} {high:>9} "
            f"{text(percentiles['5']):>9} {text(percentiles['95']):>9} {num_without:>10}"
        )
    return "\n".join(lines)


def monitored(path: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """What `experiments.evaluation.monitor` found, by the number of epochs of training before."""
    files = {int(file.stem): file for file in (path / "monitored").glob("[0-9]*.npz")}
    return {epoch: folder.read_arrays(files[epoch]) for epoch in sorted(files)}


def head(summary: dict[str, Any]) -> list[str]:
    """What a summary says of the network as a whole, in lines for the terminal."""
    training = summary["training_seconds"]
    seconds = "" if training is None else f"training {training:.0f} s, "
    return [
        f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; "
        f"{seconds}margins {summary['measurement_seconds']:.0f} s",
        *_robustness_lines(summary),
    ]


def number(value: float) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def read_margins(config, path) -> tuple[hmt_jax.MarginResult, np.ndarray]:
    """The margins of a run, and the corners of their windows."""
    measurement = folder.read_json(path / "measurement.json")
    arrays = folder.read_arrays(path / "margins.npz")
    fields: dict[str, Any] = {field: arrays[field] for field in FIELDS}
    work = lanes.Work(**measurement["work"])
    result = hmt_jax.MarginResult(**fields, solver=repr(config.solver), precision=measurement["precision"], work=work)
    return result, arrays["corner"]


def _robustness(file) -> dict[str, Any] | None:
    """What was measured under the strongest attack, if it was."""
    if not file.exists():
        return None
    found = folder.read_json(file)
    return {"norm": found["norm"], "epsilon": found["epsilon"], **found["evaluations"][-1]}


def _margin_over_baseline(summary, path) -> list[float | None] | None:
    """The median margin of each window over that of the run it is compared with."""
    origin = baseline.of(path)
    if origin is None:
        return None
    medians = [window["median"] for window in folder.read_json(origin / "summary.json")["windows"]]
    return [number(median / other) if other else None for median, other in zip(summary.median, medians, strict=True)]


def _robustness_lines(summary) -> list[str]:
    lines = []
    other = summary["baseline"].replace("_", " ")
    if (found := summary["robustness"]) is not None:
        norm = {"l2": "L2", "linf": "L-infinity"}[found["norm"]]
        lines.append(
            f"accuracy under PGD of {found['num_steps']} steps, {norm} norm at most {found['epsilon']:g}: "
            f"{found['robust_accuracy']:.2%} ({found['clean_accuracy']:.2%} of the same images without it)"
        )
    if (found := summary["baseline_robustness"]) is not None:
        lines.append(f"after {other}: {found['robust_accuracy']:.2%}")
    if (ratios := summary["margin_over_baseline"]) is not None:
        lines.append(f"medians over those of {other}: {' '.join(map(text, ratios))}")
    return lines


def text(value: float | None) -> str:
    """A number of a summary, in a table."""
    return "-" if value is None else f"{value:.4g}"
