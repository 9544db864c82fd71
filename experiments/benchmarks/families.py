"""The memory of each family of subspaces for images of 224 x 224 x 3 pixels, the time of `embed`, and its rounding.

python -m experiments.benchmarks.families
"""

import functools

import jax
import numpy as np

from experiments import tables
from experiments.benchmarks.timing import timed
from hmt_jax import subspaces

_SHAPE = (224, 224, 3)


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


def main() -> None:
    """Prints the table."""
    rows = [" | ".join([name, *row(members)]) for name, members in families().items()]
    print(tables.markdown(["family | subspaces | MB | ms of embed | rounding", *rows]))


if __name__ == "__main__":
    main()
