"""Margins at cheaper settings: fewer candidates of DeepFool, and products of less precision."""

import pathlib
from typing import Any

import jax
import numpy as np

from experiments import store
from experiments.benchmarks import workloads
from experiments.benchmarks.timing import line
from hmt_jax import solvers, statistics


def tradeoffs(path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Measures LeNet's margins on MNIST with each setting, prints them beside the standard ones, and writes JSON.

    The standard settings are 10 candidates and the highest precision.
    """
    store.make(path.parent)
    workload = workloads.PLANS["lenet_mnist"].build(1000, data_dir)
    settings: list[dict[str, Any]] = [{"num_candidates": number} for number in (2, 3, 5, 10)]
    if jax.default_backend() != "cpu":  # on a CPU all products are of float32
        settings += [{"precision": precision} for precision in ("default", "high", "highest")]
    standard, _ = _measure(workload)
    rows = []
    for setting in settings:
        margins, seconds = _measure(workload, **setting)
        are_finite = np.isfinite(margins) & np.isfinite(standard)
        changes = np.abs(margins[are_finite] / standard[are_finite] - 1)
        row = {
            **setting,
            "seconds_per_pair": seconds / margins.size,
            "median_ratios": (np.median(margins, axis=1) / np.median(standard, axis=1)).tolist(),
            "share_changed": float(np.mean(changes > 0.01)),
            "num_without_margin": int(np.sum(~np.isfinite(margins))),
        }
        rows.append(row)
        print(line(row), flush=True)
    store.write_json(path, {"environment": store.environment(), "tradeoffs": rows})
    print(f"\nresults: {path}")


def _measure(workload, num_candidates=10, precision="highest") -> tuple[np.ndarray, float]:
    """Margins (R, N), infinite where there is none, and the seconds that they took."""
    workload = workload._replace(solver=solvers.DeepFool(num_candidates=num_candidates))
    result, _, seconds = workload.measure(num_repeats=1, precision=precision)
    return statistics.censored_margins(result), seconds
