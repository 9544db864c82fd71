"""Seconds, operations and bytes, as all benchmarks measure, print and write them."""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import store
from hmt_jax.classifiers import Classifier, as_pytree

NUM_REPEATS = 3
_MATRIX_SIZE = {"cpu": 2048}  # elsewhere 8192


def timed(function: Callable[[], Any], num_repeats: int = NUM_REPEATS) -> tuple[Any, float, float]:
    """The function's result, the seconds of the first call, which compiles, and the median of the calls after it."""
    seconds = []
    for _ in range(num_repeats + 1):
        started = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
    return result, seconds[0], statistics.median(seconds[1:])


def matrix_rate(dtype: str = "float32", precision: str = "highest") -> float:
    """Floating-point operations a second in products of large square matrices."""
    size = _MATRIX_SIZE.get(jax.default_backend(), 8192)
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    return 2 * size**3 / timed(lambda: multiply(matrix), 10)[2]


def forward_flops(classifier: Classifier, image: jax.Array | np.ndarray) -> float:
    """Floating-point operations of one forward pass on an image (1, height, width, channels), as XLA counts them.

    Raises:
      ValueError: if JAX has no CPU.
    """
    shapes = jax.eval_shape(lambda *arguments: arguments, as_pytree(classifier), image)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ValueError("operations are counted on the CPU: let JAX_PLATFORMS name it, or unset it") from error
    # XLA's client of the CPU counts, because that of a GPU counts nothing (JAX 0.11).
    with jax.default_device(cpu):
        traced = jax.jit(lambda classifier, images: classifier(images)).trace(*shapes)
        # As written for accelerators: on CPU some layers take detours that are no part of the network's work.
        cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return cost["flops"]


def peak_memory() -> int:
    """Bytes: of the accelerator where there is one, of this process so far on CPU."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in of_device:
        return of_device["peak_bytes_in_use"]
    import resource  # not on Windows, where all else runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in KiB but on macOS


def record(
    path: pathlib.Path, name: str, rows: Iterable[Mapping[str, Any]], shown: Sequence[str] = (), **beside: Any
) -> None:
    """Writes the rows of a benchmark to a JSON file, with the environment, as soon as each is measured, and prints it.

    `shown` are the fields that are printed, all if there are none. The range of values in a list is.
    """
    store.make(path.parent)
    found = []
    for row in rows:
        found.append(row)
        print(", ".join(f"{field} {_text(row[field])}" for field in shown or row if field in row), flush=True)
        store.write_json(path, {"environment": store.environment(), **beside, name: found})
    print(f"\nresults: {path}")


def _text(value) -> str:
    if isinstance(value, list):
        return f"{min(value):.4g} to {max(value):.4g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
