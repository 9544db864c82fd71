"""The speed of measuring margins here, beside that of matrix products, and of the authors' own loop."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import workloads
from experiments.benchmarks.reference import check_reference, seconds_per_pair
from experiments.benchmarks.timing import forward_flops, matrix_rate, peak_memory, record
from experiments.experiment import check_known
from hmt_jax import solvers, statistics

# Numbers of pairs and of simulated devices.
_SCALING = [(2_000, 1), (20_000, 1), (100_000, 1), (2_000, 1), (2_000, 2), (2_000, 4), (2_000, 8)]
_SHOWN = ("workload", "dimension", "seconds_per_pair", "share_of_matrix_rate", "times_faster", "user_job_days")


def benchmark(
    names: Sequence[str], path: pathlib.Path, *, data_dir: str | None = None, reference: pathlib.Path | None = None
) -> None:
    """Measures workloads of `experiments.benchmarks.workloads`, prints a line for each and writes them as JSON.

    Args:
      names: of the workloads; all that this device is made for, if there are none.
      path: of the JSON file.
      data_dir: folder of prepared data sets.
      reference: a checkout of the authors' repository, to be timed on the same weights and images, but for ResNet-50,
        which their code does not have.

    Raises:
      ValueError: for an unknown workload, or what the reference or the data lack.
    """
    for name in names:
        check_known("workload", name, tuple(workloads.PLANS))
    if reference is not None:
        check_reference(reference)
    rate = matrix_rate()
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s on {jax.local_devices()[0].device_kind}", flush=True)
    record(path, "rows", _rows(names, rate, data_dir, reference), _SHOWN, matrix_flops_per_s=rate)


def _rows(names, rate, data_dir, reference) -> Iterator[dict[str, Any]]:
    is_cpu = jax.default_backend() == "cpu"
    for name in names or [name for name, plan in workloads.PLANS.items() if plan.num_images_cpu or not is_cpu]:
        plan = workloads.PLANS[name]
        workload = plan.build((plan.num_images_cpu or 2) if is_cpu else plan.num_images, data_dir)
        for _, alike in itertools.groupby(workload.subspaces, key=lambda subspace: subspace.dimension):
            part = workload._replace(subspaces=list(alike))
            row = {"workload": name, **_measure(part, rate)}
            if reference is not None and part.network != "resnet50":
                theirs = seconds_per_pair(reference, part, plan.num_reference)
                row |= {"reference_seconds_per_pair": theirs, "times_faster": theirs / row["seconds_per_pair"]}
            if name == "resnet50_imagenet":  # the job of LTS4/hold-me-tight#1: 50,000 images in 217 subspaces
                row["user_job_days"] = 50_000 * 217 * row["seconds_per_pair"] / 86400
            yield row


def _measure(workload, matrix_rate) -> dict[str, Any]:
    """The row of a workload in subspaces of one dimension."""
    result, first, seconds = workload.measure()
    image, num_pairs, num_steps = workload.images[:1], result.margin.size, int(result.num_steps.sum())
    num_candidates = min(workload.solver.num_candidates, jax.eval_shape(workload.classifier, image).shape[1])
    # The gradients of first steps are those at the sample, computed once for all its subspaces.
    num_gradients = len(workload.images) + num_steps - num_pairs
    # A backward pass with respect to the image alone costs what a forward pass does.
    # Gap and alignment at the end take one pass each way.
    num_forward = num_steps + num_gradients + num_pairs
    num_backward = (num_candidates - 1) * num_gradients + num_pairs
    flops_per_s = (num_forward + num_backward) * forward_flops(workload.classifier, image) / seconds
    return {
        "dimension": workload.subspaces[0].dimension,
        "num_pairs": num_pairs,
        "seconds": seconds,
        "seconds_per_pair": seconds / num_pairs,
        "steps_per_pair": num_steps / num_pairs,
        "forward_per_pair": num_forward / num_pairs,
        "backward_per_pair": num_backward / num_pairs,
        "flops_per_s": flops_per_s,
        "share_of_matrix_rate": flops_per_s / matrix_rate,
        "num_lanes": result.work.num_lanes,
        "utilization": result.work.utilization,
        "compile_seconds": first - seconds,
        "peak_memory": peak_memory(),
        "max_steps": workload.solver.max_steps,
        "num_unconverged": int((~result.is_converged).sum()),
    }


def scaling(path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Measures LeNet's margins over numbers of pairs and of devices, each in its own process, and writes JSON."""
    record(path, "scaling", (_in_own_process(*numbers, data_dir) for numbers in _SCALING))


def _in_own_process(num_pairs: int, num_devices: int, data_dir: str | None) -> dict[str, Any]:
    """The row that this module prints when it runs as a program."""
    command = [sys.executable, "-m", __name__, str(num_pairs), str(num_devices), data_dir or ""]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # where devices can be simulated
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        raise ValueError(f"a run of {num_pairs} pairs on {num_devices} devices failed: {finished.stderr[-500:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def _scaling_row(num_pairs: int, num_devices: int, data_dir: str | None) -> dict[str, Any]:
    workload = workloads.PLANS["lenet_mnist"].build(-(-num_pairs // 21), data_dir)
    result, _, seconds = workload.measure(num_repeats=1)
    return {
        "num_pairs": result.margin.size,
        "num_devices": num_devices,
        "seconds": seconds,
        "utilization": result.work.utilization,
        "peak_memory": peak_memory(),
    }


def tradeoffs(path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Measures LeNet's margins on MNIST with fewer candidates of DeepFool, and with products of less precision.

    Prints them beside those with the standard settings, 10 candidates and the highest precision, and writes JSON.
    """
    record(path, "tradeoffs", _tradeoffs(workloads.PLANS["lenet_mnist"].build(1000, data_dir)))


def _tradeoffs(workload) -> Iterator[dict[str, Any]]:
    settings: list[dict[str, Any]] = [{"num_candidates": number} for number in (2, 3, 5, 10)]
    if jax.default_backend() != "cpu":  # on a CPU all products are of float32
        settings += [{"precision": precision} for precision in ("default", "high", "highest")]
    standard, _ = censored(workload)
    for setting in settings:
        margins, seconds = censored(workload, **setting)
        are_finite = np.isfinite(margins) & np.isfinite(standard)
        changes = np.abs(margins[are_finite] / standard[are_finite] - 1)
        yield {
            **setting,
            "seconds_per_pair": seconds / margins.size,
            "median_ratios": (np.median(margins, axis=1) / np.median(standard, axis=1)).tolist(),
            "share_changed": float(np.mean(changes > 0.01)),
            "num_without_margin": int(np.sum(~np.isfinite(margins))),
        }


def censored(workload, num_candidates=10, precision="highest") -> tuple[np.ndarray, float]:
    """Margins (R, N), infinite where there is none, and the seconds that they took."""
    workload = workload._replace(solver=solvers.DeepFool(num_candidates=num_candidates))
    result, _, seconds = workload.measure(num_repeats=1, precision=precision)
    return statistics.censored_margins(result), seconds


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
    print(json.dumps(_scaling_row(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None)))
