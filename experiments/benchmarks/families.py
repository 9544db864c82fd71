"""The memory of each family of subspaces for images of 224 x 224 x 3 pixels, the time of `embed`, and its rounding.

Then what it takes to make those that are spans of data, from a file of images that is read chunk by chunk.

python -m experiments.benchmarks.families
"""

import functools
import pathlib
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments import tables
from experiments.benchmarks.timing import timed
from hmt_jax import subspaces

_SHAPE = (224, 224, 3)
_NUM_IN_FILE = 2048


def families() -> dict[str, list[subspaces.Subspace]]:
    """Members of each family, by the call that makes them; data are random images."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((64, *_SHAPE), np.float32), np.arange(64) % 8
    return {
        'wavelet_bands("db2", levels=5)': list(subspaces.wavelet_bands(_SHAPE, "db2", levels=5)),
        "fourier_rings([0, 8, 32, 160])": list(subspaces.fourier_rings(_SHAPE, [0, 8, 32, 160])),
        "patches(size=16)": list(subspaces.patches(_SHAPE, size=16)),
        "pixels, half of all": [subspaces.pixels(rng.random(_SHAPE) < 0.5)],
        "channels": list(subspaces.channels(_SHAPE)),
        "luma_chroma": list(subspaces.luma_chroma(_SHAPE)),
        "principal_components([(0, 32)]), 64 images": list(subspaces.principal_components(images, [(0, 32)])),
        "class_means, 64 images of 8 classes": subspaces.class_means(images, labels),
        "dct_diagonal(size=16, step=16)": list(subspaces.dct_diagonal(_SHAPE, size=16, step=16)),
    }


def row(members: list[subspaces.Subspace]) -> list[str]:
    """The number of members, their megabytes together, and milliseconds and rounding of the slowest and the worst."""
    megabytes = sum(np.asarray(leaf, np.float32).nbytes for leaf in jax.tree.leaves(members)) / 1e6
    seconds, roundings = [], []
    for member in members:
        z = np.random.default_rng(0).normal(size=member.dimension).astype(np.float32)
        image, _, median = timed(functools.partial(_embedded, member, z))
        seconds.append(median)
        roundings.append(np.abs(np.asarray(member.coordinates(image)) - z).max() / np.abs(z).max())
    return [f"{len(members)}", f"{megabytes:,.1f}", f"{1e3 * max(seconds):.2f}", f"{max(roundings):.1e}"]


@jax.jit
def _embedded(subspace, z):
    return subspace.embed(z)


def of_file() -> list[str]:
    """A table on spans of a file of images: CPU seconds, the most megabytes of arrays, and the error of S^T S = I."""
    labels = np.arange(_NUM_IN_FILE) % 8
    calls: dict[str, Callable[[np.ndarray], Sequence[subspaces.Subspace]]] = {
        "principal_components([(0, 32)])": lambda images: subspaces.principal_components(images, [(0, 32)]),
        "class_means, 8 classes": lambda images: subspaces.class_means(images, labels),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "images.npy"
        np.save(path, np.random.default_rng(0).integers(0, 256, (_NUM_IN_FILE, *_SHAPE), np.uint8))
        images = np.load(path, mmap_mode="r")
        for name, call in calls.items():
            tracemalloc.start()
            started = time.process_time()
            spans = [member for member in call(images) if isinstance(member, subspaces.Span)]
            seconds, megabytes = time.process_time() - started, tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            bases = [np.asarray(span.basis, np.float32) for span in spans]
            rounding = max(np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() for basis in bases)
            rows.append(f"{name} | {seconds:.0f} | {megabytes:,.0f} | {rounding:.1e}")
    return rows


def main() -> None:
    """Prints both tables."""
    rows = [" | ".join([name, *row(members)]) for name, members in families().items()]
    print(tables.markdown(["family | subspaces | MB | ms of embed | rounding", *rows]))
    megabytes = np.prod(_SHAPE) * _NUM_IN_FILE / 1e6
    print(f"\nfrom a file of {_NUM_IN_FILE:,} images, {megabytes:,.0f} MB as 8-bit numbers:\n")
    print(tables.markdown(["family | CPU s | MB | rounding", *of_file()]))


if __name__ == "__main__":
    main()
