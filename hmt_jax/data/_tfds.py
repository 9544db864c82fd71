"""Data sets that TensorFlow Datasets keeps, read without TensorFlow and without a network."""

import os
from typing import Any

import numpy as np

from hmt_jax._extras import require
from hmt_jax.data._dataset import Dataset

# Samples of each split: what is there is compared with it, for TFDS itself takes any number.
SIZES = {"cifar10": {"train": 50_000, "test": 10_000}, "mnist": {"train": 60_000, "test": 10_000}}

FILE_FORMAT = "array_record"  # the one that needs no TensorFlow; TFDS 4.9.10 loses records of parquet

_CHUNK = 1000  # records read at a time: one by one takes 1.5 times as long

PathLike = str | os.PathLike[str]


def find(name: str, data_dir: PathLike | None) -> Any:
    """TFDS's builder of a data set, prepared or not."""
    require(name, "data", "tensorflow_datasets", "array_record", "importlib_resources", "PIL")
    import tensorflow_datasets as tfds

    # TFDS itself reads the variable once, when it is imported.
    return tfds.builder(name, data_dir=data_dir or os.environ.get("TFDS_DATA_DIR"))


def read(builder: Any) -> Dataset:
    """All samples of a builder's files.

    Raises:
      ValueError: if they are in another format than array_record, too few, or damaged.
    """
    check(builder)
    try:
        train_images, train_labels = _read_split(builder, "train")
        test_images, test_labels = _read_split(builder, "test")
    except RuntimeError as error:  # what array_record raises
        raise ValueError(f"{builder.data_dir} is damaged ({error}): {remake(builder)}") from error
    num_classes = builder.info.features["label"].num_classes
    return Dataset(builder.name, train_images, train_labels, test_images, test_labels, num_classes)


def check(builder: Any) -> None:
    """What a builder's folder says of itself: the errors of `read`, but for damaged files."""
    formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
    if FILE_FORMAT not in formats:
        raise ValueError(
            f"{builder.data_dir} is in {', '.join(formats)} format, expected {FILE_FORMAT}, which needs no "
            f"TensorFlow: prepare {builder.name} in another data_dir, or {remake(builder)}"
        )
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if sizes != SIZES[builder.name]:
        raise ValueError(f"{builder.data_dir} has {sizes} samples, expected {SIZES[builder.name]}: {remake(builder)}")


def remedy(name: str, data_dir: PathLike | None = None) -> str:
    """How to prepare a data set in the folder that was given, or in the one that is taken otherwise."""
    argument, option = ("", "") if data_dir is None else (f", {os.fspath(data_dir)!r}", f" --data-dir {data_dir}")
    return f"run hmt_jax.data.prepare({name!r}{argument}), or `python -m experiments prepare {name}{option}`"


def remake(builder: Any) -> str:
    return f"delete that folder and {remedy(builder.name, builder.data_dir_root)}"


def _read_split(builder, split):
    source = builder.as_data_source(split, file_format=FILE_FORMAT)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for first in range(0, len(source), _CHUNK):
        chunk = slice(first, min(first + _CHUNK, len(source)))
        records = source.__getitems__(range(chunk.start, chunk.stop))
        images[chunk] = [record["image"] for record in records]
        labels[chunk] = [record["label"] for record in records]
    return images, labels
