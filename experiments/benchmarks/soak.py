"""A million pairs of a small network through a store: does memory grow, and does the rate fall?

MALLOC_ARENA_MAX=1 python -m experiments.benchmarks.soak

Without MALLOC_ARENA_MAX, the C library of Linux keeps a heap for each thread, and memory grows by a few percent more
until all of them have been filled once.
"""

import argparse
import ctypes
import gc
import pathlib
import tempfile
import time

import jax
import numpy as np

import hmt_jax
from hmt_jax import models, solvers, subspaces

_SHAPE, _NUM_WINDOWS = (8, 8, 1), 4


class Random:
    """Random images by number, which need no memory."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, number: int) -> np.ndarray:
        return np.random.default_rng(number).random(_SHAPE, dtype=np.float32)


def soak(num_chunks: int, chunk_size: int, path: pathlib.Path) -> dict[str, float]:
    """Measures `num_chunks` chunks into a new store.

    Returns:
      By name: the pairs and the seconds; the megabytes in use once the first chunk is in the store, and the most from
      then on, seen at the ends of tenths; and the pairs a second in the tenth that begins there, and in the last one.
    """
    classifier = models.create("mlp", jax.random.key(0), image_shape=_SHAPE, num_classes=10, num_hidden=(32, 32))
    windows = subspaces.dct_diagonal(_SHAPE, size=2, step=2)
    # A chunk is written while the next one is measured, so the first is in the store when the second has been measured.
    tenth, begun = num_chunks // 10, 2
    seconds: dict[int, float] = {}  # by the number of measured chunks
    megabytes: dict[int, float] = {}

    def look(num_done: int, _: int) -> None:
        measured, rest = divmod(num_done, chunk_size * _NUM_WINDOWS)
        if rest or measured in seconds:
            return
        seconds[measured] = time.perf_counter()
        if measured == begun or (measured > begun and measured % tenth == 0):
            megabytes[measured] = _megabytes()

    images = Random(num_chunks * chunk_size)
    store = hmt_jax.measure_to_store(
        classifier, images, windows, solvers.tight("quick"), path, chunk_size=chunk_size, progress=look
    )
    assert not store.missing()

    def rate(first: int, last: int) -> float:
        return (last - first) * chunk_size * _NUM_WINDOWS / (seconds[last] - seconds[first])

    return {
        "pairs": num_chunks * chunk_size * _NUM_WINDOWS,
        "seconds": seconds[num_chunks] - seconds[0],
        "MB when the first chunk is in the store": megabytes[begun],
        "MB at most afterwards": max(megabytes.values()),
        "pairs a second in the first tenth": rate(begun, begun + tenth),
        "pairs a second in the last tenth": rate(num_chunks - tenth, num_chunks),
    }


def _megabytes() -> float:
    """The memory that this process uses, by Linux, once the C library has given back what it keeps for later.

    Without that, it grows and shrinks by a few percent from chunk to chunk.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = pathlib.Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Prints the figures, how much memory has grown, and how much the rate has changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-chunks", type=int, default=100, help="at least 20")
    parser.add_argument("--chunk-size", type=int, default=2_500, help="images, each in 4 subspaces")
    arguments = parser.parse_args()
    if arguments.num_chunks < 20:
        parser.error("--num-chunks must be at least 20, for the first and the last tenth")
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.num_chunks, arguments.chunk_size, pathlib.Path(folder) / "margins.zarr")
    for name, value in found.items():
        print(f"{name}: {value:,.0f}")
    _, _, first, most, early, late = found.values()
    print(f"memory grows by {100 * (most / first - 1):.1f}%, and the rate changes by {100 * (late / early - 1):+.1f}%")


if __name__ == "__main__":
    main()
