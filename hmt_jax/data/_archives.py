"""The files in which authors publish their data, parsed with NumPy.

They are read whole: TFDS has compared their checksums with those of the authors before, so no other file comes here.
"""

import gzip
import tarfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hmt_jax._paths import PathLike


class Original(NamedTuple):
    """Images and labels of each split, in the published order, and the names of the classes, if there are any."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: list[str] | None


def mnist(files: Mapping[str, PathLike]) -> Original:
    """MNIST from its gzipped IDX files, keyed by file name: images (N, 28, 28)."""
    splits = {
        split: (_read_idx(files[f"{prefix}-images-idx3-ubyte.gz"]), _read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"]))
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    return Original(splits, None)


def cifar10(files: Mapping[str, PathLike]) -> Original:
    """CIFAR-10 from its archive of binary files, keyed by file name: images (N, 32, 32, 3)."""
    with tarfile.open(files["cifar-10-binary.tar.gz"]) as archive:
        contents = {member.name: file.read() for member in archive if (file := archive.extractfile(member))}
    folder = "cifar-10-batches-bin"
    train = b"".join(contents[f"{folder}/data_batch_{i}.bin"] for i in range(1, 6))
    test = contents[f"{folder}/test_batch.bin"]
    class_names = contents[f"{folder}/batches.meta.txt"].decode().split()
    return Original({"train": _parse_cifar(train), "test": _parse_cifar(test)}, class_names)


def _read_idx(file):
    """The array at the end of an IDX file, after two zero bytes, its type (8 for uint8), and its shape.

    The shape is the number of axes, followed by their lengths as big-endian int32.
    """
    with gzip.open(file) as stream:
        content = stream.read()
    num_axes = content[3]
    shape = np.frombuffer(content, ">i4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _parse_cifar(content):
    """Images and labels from records of a label and the red, green and blue planes."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
