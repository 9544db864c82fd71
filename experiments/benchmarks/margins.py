"""The speed of measuring margins here, beside that of matrix products, and of the authors' own loop."""

import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hmt_jax
from experiments import store
from experiments.benchmarks.reference import Reference, check_reference
from experiments.benchmarks.workloads import PLANS, Workload
from hmt_jax import solvers, subspaces
from hmt_jax.classifiers import Classifier, as_pytree

_NUM_REPEATS = 3
_MATRIX_SIZE = {"cpu": 2048}  # elsewhere 8192
_SCALING_PAIRS = (2_000, 20_000, 100_000)
_SCALING_DEVICES = (1, 2, 4, 8)
# A user's job, LTS4/hold-me-tight#1: 50,000 ImageNet images in 217 subspaces.
_USER_JOB_PAIRS = 50_000 * 217


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
    if unknown := [name for name in names if name not in PLANS]:
        raise ValueError(f"unknown workload {unknown[0]!r}; the known ones are {', '.join(PLANS)}")
    if reference is not None:
        check_reference(reference)
    is_cpu = jax.default_backend() == "cpu"
    names = names or [name for name, plan in PLANS.items() if plan.num_images_cpu or not is_cpu]
    rate = matrix_rate()
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s on {jax.local_devices()[0].device_kind}", flush=True)
    rows: list[dict[str, Any]] = []
    store.make(path.parent)
    for name in names:
        plan = PLANS[name]
        num_images = (plan.num_images_cpu or 2) if is_cpu else plan.num_images
        workload = plan.build(num_images, data_dir)
        for _, alike in itertools.groupby(workload.subspaces, key=lambda subspace: subspace.dimension):
            group = list(alike)
            row = {"workload": name, **_measure(workload, group, rate)}
            if reference is not None and workload.network != "resnet50":
                row |= _compare(workload, group, reference, plan.num_reference, row["seconds_per_pair"])
            rows.append(row)
            print(_line(row), flush=True)
            store.write_json(path, {"environment": store.environment(), "matrix_flops_per_s": rate, "rows": rows})
    print(f"\nresults: {path}")


def scaling(path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Time and memory of LeNet's margins over numbers of pairs and of simulated devices, each in its own process."""
    store.make(path.parent)
    rows = [_in_process(num_pairs, 1, data_dir) for num_pairs in _SCALING_PAIRS]
    rows += [_in_process(_SCALING_PAIRS[0], num_devices, data_dir) for num_devices in _SCALING_DEVICES]
    print("pairs    devices  seconds  utilization  peak memory")
    for row in rows:
        print(
            f"{row['num_pairs']:<8} {row['num_devices']:<8} {row['seconds']:<8.2f} {row['utilization']:<12.1%} "
            f"{row['peak_memory'] / 2**20:.0f} MiB"
        )
    store.write_json(path, {"environment": store.environment(), "scaling": rows})
    print(f"\nresults: {path}")


def _measure(workload: Workload, group: list[subspaces.Subspace], matrix_rate: float) -> dict[str, Any]:
    """One workload in subspaces of one dimension: medians over the repeats, after a first run that compiles."""
    solver = solvers.DeepFool(max_steps=workload.max_steps)

    def run():
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hmt_jax.PixelRangeWarning)  # synthetic samples are no images
            result = hmt_jax.measure_margins(workload.classifier, workload.images, group, solver)
        return result, time.perf_counter() - started

    flops_of_a_pass = forward_flops(workload.classifier, workload.images[:1])
    _, first = run()
    results, seconds = zip(*(run() for _ in range(_NUM_REPEATS)), strict=True)
    result, middle = results[0], statistics.median(seconds)
    num_classes = jax.eval_shape(workload.classifier, workload.images[:1]).shape[1]
    num_others = min(solver.num_candidates, num_classes) - 1
    num_steps = int(result.num_steps.sum())
    # The gradients of first steps are those at the sample, computed once for all its subspaces.
    num_gradients = len(workload.images) + num_steps - result.margin.size
    # A backward pass with respect to the image alone costs what a forward pass does.
    # Gap and alignment at the end take one pass each way.
    num_forward = num_steps + num_gradients + result.margin.size
    num_backward = num_others * num_gradients + result.margin.size
    flops = (num_forward + num_backward) * flops_of_a_pass
    return {
        "dimension": group[0].dimension,
        "num_pairs": result.margin.size,
        "seconds": middle,
        "seconds_per_pair": middle / result.margin.size,
        "steps_per_pair": num_steps / result.margin.size,
        "forward_per_pair": num_forward / result.margin.size,
        "backward_per_pair": num_backward / result.margin.size,
        "flops_per_s": flops / middle,
        "share_of_matrix_rate": flops / middle / matrix_rate,
        "num_lanes": result.work.num_lanes,
        "utilization": result.work.utilization,
        "compile_seconds": first - middle,
        "peak_memory": _peak_memory(),
        "max_steps": workload.max_steps,
        "num_unconverged": int((~result.is_converged).sum()),
    }


def _compare(workload, group, path, num_images, our_seconds) -> dict[str, float]:
    """The authors' loop on the first images, in at most seven of the subspaces, spread evenly."""
    loop = Reference(path, workload.network, workload.classifier)
    chosen = [group[r] for r in np.linspace(0, len(group) - 1, min(len(group), 7)).round().astype(int)]
    loop.seconds(workload.images[:1], chosen[0], workload.max_steps)
    images = workload.images[:num_images]
    runs = [
        statistics.mean(
            duration for subspace in chosen for duration in loop.seconds(images, subspace, workload.max_steps)
        )
        for _ in range(_NUM_REPEATS)
    ]
    theirs = statistics.median(runs)
    return {"reference_seconds_per_pair": theirs, "times_faster": theirs / our_seconds}


def matrix_rate(dtype: str = "float32", precision: str = "highest") -> float:
    """Floating-point operations a second in products of large square matrices."""
    size = _MATRIX_SIZE.get(jax.default_backend(), 8192)
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    multiply(matrix).block_until_ready()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(matrix).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def forward_flops(classifier: Classifier, image: jax.Array | np.ndarray) -> float:
    """Floating-point operations of one forward pass on an image (1, height, width, channels), as XLA counts them.

    Raises:
      ValueError: if JAX has no CPU.
    """
    shapes = jax.eval_shape(lambda *arguments: arguments, as_pytree(classifier), image)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ValueError(
            f"operations are counted on the CPU: let JAX_PLATFORMS name it, or unset it ({error})"
        ) from None
    # By XLA's client of the CPU, for that of a GPU counts nothing (JAX 0.11).
    with jax.default_device(cpu):
        traced = jax.jit(lambda classifier, images: classifier(images)).trace(*shapes)
        # As written for accelerators: on CPU some layers take detours that are no part of the network's work.
        cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return cost["flops"]


def _peak_memory() -> int:
    """Bytes: of the accelerator where there is one, of this process so far on CPU."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    import resource  # not on Windows, where all else runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in KiB but on macOS


def _in_process(num_pairs, num_devices, data_dir) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, str(num_pairs), str(num_devices), data_dir or ""]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # where devices can be simulated
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        raise ValueError(f"a run of {num_pairs} pairs on {num_devices} devices failed: {finished.stderr[-500:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def _scaling_row(num_pairs: int, num_devices: int, data_dir: str | None) -> dict[str, Any]:
    workload = PLANS["lenet_mnist"].build(-(-num_pairs // 21), data_dir)
    hmt_jax.measure_margins(workload.classifier, workload.images, workload.subspaces)
    started = time.perf_counter()
    result = hmt_jax.measure_margins(workload.classifier, workload.images, workload.subspaces)
    return {
        "num_pairs": result.margin.size,
        "num_devices": num_devices,
        "seconds": time.perf_counter() - started,
        "utilization": result.work.utilization,
        "peak_memory": _peak_memory(),
    }


def _line(row) -> str:
    text = (
        f"{row['workload']}, {row['dimension']} dimensions: {row['seconds_per_pair'] * 1e3:.3g} ms a pair, "
        f"{row['share_of_matrix_rate']:.0%} of the matrix rate"
    )
    if "times_faster" in row:
        text += f", {row['times_faster']:.1f} times the authors' loop"
    if row["workload"] == "resnet50_imagenet":
        days = _USER_JOB_PAIRS * row["seconds_per_pair"] / 86400
        text += f"; 50,000 images in 217 subspaces would take {days:.1f} days"
    return text


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
    print(json.dumps(_scaling_row(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None)))
