"""A million pairs of a small network through a store: does memory grow, and does the rate fall?

python -m experiments.benchmarks.soak
"""

import argparse
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


def soak(num_pairs: int, chunk_size: int, path: pathlib.Path) -> dict[str, float]:
    """Measures so many pairs into a new store.

    Returns:
      Megabytes of the process after the first chunk and at most afterwards, and pairs a second in the first tenth after
      that chunk and in the last tenth.
    """
    classifier = models.create("mlp", jax.random.key(0), image_shape=_SHAPE, num_classes=10, num_hidden=(32, 32))
    windows = subspaces.dct_diagonal(_SHAPE, size=2, step=2)
    seen: list[tuple[float, int, float]] = []  # seconds, pairs, megabytes

    def look(num_done: int, _: int) -> None:
        seen.append((time.perf_counter(), num_done, _megabytes()))

    images = Random(num_pairs // _NUM_WINDOWS)
    store = hmt_jax.measure_to_store(
        classifier, images, windows, solvers.tight("quick"), path, chunk_size=chunk_size, progress=look
    )
    assert not store.missing()
    seconds, pairs, megabytes = map(np.array, zip(*seen, strict=True))
    begun = int(np.searchsorted(pairs, chunk_size * _NUM_WINDOWS))
    tenth = (pairs[-1] - pairs[begun]) / 10
    early, late = np.searchsorted(pairs, pairs[begun] + tenth), np.searchsorted(pairs, pairs[-1] - tenth)

    def rate(first, last):
        return float((pairs[last] - pairs[first]) / (seconds[last] - seconds[first]))

    return {
        "pairs": int(pairs[-1]),
        "seconds": float(seconds[-1] - seconds[0]),
        "MB after the first chunk": float(megabytes[begun]),
        "MB at most afterwards": float(megabytes[begun:].max()),
        "pairs a second in the first tenth": rate(begun, early),
        "pairs a second in the last tenth": rate(late, len(pairs) - 1),
    }


def _megabytes() -> float:
    """The memory of this process that is in use, by Linux."""
    status = pathlib.Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1000


def main() -> None:
    """Prints the figures, how much memory has grown, and how much the rate has fallen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-pairs", type=int, default=1_000_000)
    parser.add_argument("--chunk-size", type=int, default=2_500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.num_pairs, arguments.chunk_size, pathlib.Path(folder) / "margins.zarr")
    for name, value in found.items():
        print(f"{name}: {value:,.0f}")
    _, _, first, most, early, late = found.values()
    print(
        f"memory grows by {100 * (most / first - 1):.1f}%; the last tenth is {100 * (late / early - 1):+.1f}% as fast"
    )


if __name__ == "__main__":
    main()
