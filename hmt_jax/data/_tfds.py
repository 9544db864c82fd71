"""Prepared data sets of TensorFlow Datasets (TFDS), read without TensorFlow, offline."""

import contextlib
import difflib
import io
import os
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from hmt_jax._extras import require
from hmt_jax._paths import PathLike, expand, reason, shown
from hmt_jax.data._dataset import Dataset
from hmt_jax.data._decoding import decode

# Samples of each split. Data sets are checked against these numbers, because TFDS itself accepts any number.
SIZES = {"cifar10": {"train": 50_000, "test": 10_000}, "mnist": {"train": 60_000, "test": 10_000}}

FILE_FORMAT = "array_record"  # the only usable one that needs no TensorFlow: TFDS 4.9.10 loses records of parquet

_CHUNK = 1000  # records read at a time: one by one takes 1.5 times as long
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names for 8-bit images, by the number of channels


def find(name: str, data_dir: PathLike | None) -> Any:
    """TFDS's builder of a data set, prepared or not.

    Raises:
      ValueError: if the name is unknown, data_dir is not a folder, or the data set's description is damaged.
      ModuleNotFoundError: if a package is missing.
    """
    if not isinstance(name, str):
        raise ValueError(f"name must be a string, such as 'mnist', got {name!r}")
    require(name, "data", "tensorflow_datasets", "array_record", "importlib_resources", "PIL")
    import tensorflow_datasets as tfds

    root = _root(data_dir)
    try:
        parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise _unknown(name) from error
    try:
        return tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error
    except ImportError as error:
        raise ModuleNotFoundError(
            f"TensorFlow Datasets needs another package for {name} ({reason(error)}): install it"
        ) from error
    except Exception as error:
        doubt = f"check config and version in {name!r}; " if options else ""
        raise _unreadable(os.path.join(root, parsed.name), error, name, data_dir, doubt) from error


def find_prepared(name: str, data_dir: PathLike | None) -> Any:
    """TFDS's builder of a data set that is prepared in array_record format.

    Raises:
      ValueError: as `find`, and if the data set is not prepared, or is in another format.
      ModuleNotFoundError: as `find`.
    """
    builder = find(name, data_dir)
    if not builder.is_prepared():
        raise ValueError(
            f"{name} is not prepared in {shown(builder.data_dir_root)}: {remedy(name, data_dir)}, or name the folder "
            "that holds it, with data_dir (--data-dir) or the environment variable TFDS_DATA_DIR"
        )
    formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
    if FILE_FORMAT not in formats:
        raise ValueError(
            f"{shown(builder.data_dir)} is in {', '.join(formats)} format, expected {FILE_FORMAT}, which needs no "
            f"TensorFlow: prepare {name} in another data_dir, or delete that folder and {remedy(name, data_dir)}"
        )
    return builder


@contextlib.contextmanager
def readable(builder: Any, name: str, data_dir: PathLike | None) -> Iterator[None]:
    """Turns any error raised while samples are read into a ValueError that names their folder and the remedy.

    TFDS passes on the errors of array_record, protobuf and the image decoders, which have no class in common.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(builder.data_dir, error, name, data_dir) from error


def read(builder: Any) -> Dataset:
    """All samples of a builder's files.

    Raises:
      ValueError: if their number is wrong, or they are damaged.
    """
    check_sizes(builder)
    with readable(builder, builder.name, builder.data_dir_root):
        train_images, train_labels = _read_split(builder, "train")
        test_images, test_labels = _read_split(builder, "test")
    num_classes = builder.info.features["label"].num_classes
    return Dataset(builder.name, train_images, train_labels, test_images, test_labels, num_classes)


def check_sizes(builder: Any) -> None:
    """Raises ValueError unless the splits hold as many samples as they should."""
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if sizes != SIZES[builder.name]:
        raise ValueError(
            f"{shown(builder.data_dir)} has {sizes} samples, expected {SIZES[builder.name]}: {remake(builder)}"
        )


def records(builder: Any, split: str) -> Any:
    """TFDS's source of the samples of a split, with images left encoded."""
    from tensorflow_datasets import decode as decoders

    return builder.as_data_source(split, file_format=FILE_FORMAT, decoders={"image": decoders.SkipDecoding()})


def decode_image(builder: Any, encoded: bytes) -> Any:
    """A Pillow image with as many channels as the data set declares."""
    return decode(io.BytesIO(encoded), _MODES[builder.info.features["image"].shape[-1]])


def check_features(builder: Any, name: str) -> None:
    """Raises ValueError unless the data set has 8-bit images with class labels."""
    from tensorflow_datasets import features

    if missing := {"image", "label"} - set(builder.info.features):
        raise ValueError(f"{name} has no {' and no '.join(sorted(missing))}: take a data set of labelled images")
    image, label = (builder.info.features[feature] for feature in ("image", "label"))
    is_image = isinstance(image, features.Image) and image.np_dtype == np.uint8 and image.shape[-1] in _MODES
    if not is_image or not isinstance(label, features.ClassLabel):
        raise ValueError(
            f"{name} has {image!r} as image and {label!r} as label: take a data set of 8-bit images with class labels"
        )


def remedy(name: str, data_dir: PathLike | None = None) -> str:
    """The command that prepares a data set in the given folder, or in the default one."""
    path = None if data_dir is None else expand("data_dir", data_dir)
    if name in SIZES:
        argument, option = ("", "") if path is None else (f", {path!r}", f" --data-dir {shown(shlex.quote(path))}")
        return f"run hmt_jax.data.prepare({name!r}{argument}), or `python -m experiments prepare {name}{option}`"
    argument, option = ("", "") if path is None else (f", data_dir={path!r}", f" --data_dir {shown(shlex.quote(path))}")
    return (
        f"run tensorflow_datasets.builder({name!r}{argument}).download_and_prepare(file_format={FILE_FORMAT!r}), or "
        f"`tfds build {shlex.quote(name)}{option} --file_format {FILE_FORMAT}`, where TensorFlow is installed"
    )


def remake(builder: Any) -> str:
    """The remedy for a data set that is damaged or incomplete, for a message."""
    return f"delete that folder and {remedy(builder.name, builder.data_dir_root)}"


def _root(data_dir: PathLike | None) -> str:
    """The folder of prepared data sets. The variable is read here, because TFDS reads it only once, on import."""
    argument, path = "data_dir", data_dir
    if not path:
        argument, path = "TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR")
    if not path:
        argument, path = "the default of data_dir", os.path.join("~", "tensorflow_datasets")
    root = expand(argument, path)
    if os.path.exists(root) and not os.path.isdir(root):
        raise ValueError(f"{argument} must be a folder, but {shown(root)} is a file: name the folder that holds it")
    if root != root.encode(errors="ignore").decode():
        raise ValueError(f"{argument} must be a path in UTF-8, which array_record needs, got {shown(root)}: rename it")
    return root


def _unknown(name: str) -> ValueError:
    import tensorflow_datasets as tfds

    nearest = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
    known = f"the nearest ones are {', '.join(nearest)}" if nearest else "none has a similar name"
    return ValueError(f"unknown data set {name!r}; {known}, and tensorflow_datasets.list_builders() lists all")


def _unreadable(folder: Any, error: Exception, name: str, data_dir: PathLike | None, doubt: str = "") -> ValueError:
    return ValueError(
        f"{name} can't be read from {shown(folder)} ({reason(error)}): {doubt}if the folder is damaged, delete it and "
        f"{remedy(name, data_dir)}"
    )


def _read_split(builder, split):
    source = records(builder, split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for first in range(0, len(source), _CHUNK):
        chunk = slice(first, min(first + _CHUNK, len(source)))
        samples = source.__getitems__(range(chunk.start, chunk.stop))
        pixels = np.stack([decode_image(builder, sample["image"]) for sample in samples])
        images[chunk] = pixels.reshape(-1, *images.shape[1:])
        labels[chunk] = [sample["label"] for sample in samples]
    return images, labels
