"""Margins at cheaper settings: fewer candidates of DeepFool, and products of less precision."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

import hmt_jax
from experiments import store
from experiments.benchmarks.workloads import PLANS, Workload
from hmt_jax import solvers, statistics

_NUM_CANDIDATES = (2, 3, 5, 10)
# On a CPU all of them are float32.
_PRECISIONS = ("default", "high", "highest")


def tradeoffs(path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Measures LeNet's margins on MNIST with each setting, prints them beside the standard ones, and writes JSON.

    The standard settings are 10 candidates and the highest precision. Precisions are compared on accelerators only.
    """
    store.make(path.parent)
    workload = PLANS["lenet_mnist"].build(1000, data_dir)
    settings: list[dict[str, Any]] = [{"num_candidates": number} for number in _NUM_CANDIDATES]
    if jax.default_backend() != "cpu":
        settings += [{"precision": precision} for precision in _PRECISIONS]
    standard, _ = _margins(workload)
    rows = []
    print("| setting | time a pair | medians over the standard ones | margins changed by over 1% | without a margin |")
    print("|---|---|---|---|---|")
    for setting in settings:
        margins, seconds = _margins(workload, **setting)
        rows.append({**setting, "seconds_per_pair": seconds / margins.size, **_compare(margins, standard)})
        print(_line(setting, rows[-1]), flush=True)
    store.write_json(path, {"environment": store.environment(), "tradeoffs": rows})
    print(f"\nresults: {path}")


def _margins(workload: Workload, *, precision: str = "highest", **of_solver: int) -> tuple[np.ndarray, float]:
    """Margins (R, N), infinite where there is none, and the seconds that they took, after a run that compiles."""
    arguments = workload.classifier, workload.images, workload.subspaces, solvers.DeepFool(**of_solver)
    hmt_jax.measure_margins(*arguments, precision=precision)
    started = time.perf_counter()
    result = hmt_jax.measure_margins(*arguments, precision=precision)
    return statistics.censored_margins(result), time.perf_counter() - started


def _compare(margins: np.ndarray, standard: np.ndarray) -> dict[str, Any]:
    """Margins (R, N) beside the standard ones: ratios of the medians of each subspace, and how many differ."""
    are_finite = np.isfinite(margins) & np.isfinite(standard)
    ratios = margins[are_finite] / standard[are_finite]
    return {
        "median_ratios": (np.median(margins, axis=1) / np.median(standard, axis=1)).tolist(),
        "share_changed": float(np.mean(np.abs(ratios - 1) > 0.01)),
        "num_without_margin": int(np.sum(~np.isfinite(margins))),
    }


def _line(setting, row) -> str:
    ((name, value),) = setting.items()
    low, high = min(row["median_ratios"]), max(row["median_ratios"])
    return (
        f"| {name} {value} | {row['seconds_per_pair'] * 1e3:.3g} ms | {low:.3f} to {high:.3f} | "
        f"{row['share_changed']:.1%} | {row['num_without_margin']} |"
    )
