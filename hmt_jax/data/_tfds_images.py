"""Images of a prepared TensorFlow Datasets (TFDS) data set, decoded when they are asked for."""

import dataclasses
from typing import Any

import numpy as np

from hmt_jax._paths import PathLike, reason
from hmt_jax.data import _tfds
from hmt_jax.data._decoding import check_crop, resize_and_crop


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsImages:
    """A random-access source of labelled images: `len(source)`, and `source[i]` for an image and its label.

    Images are (crop, crop, channels), uint8 in [0, 255]. They are read when they are asked for, by any number of
    threads at once. A sample that can't be read raises a ValueError that names the folder and the remedy.

    Attributes:
      name: TFDS's name of the data set.
      data_dir: the folder of prepared data sets; None for the default of `tfds_images`.
      builder: TFDS's builder of the data set.
      records: TFDS's source of records: an encoded `image` and its `label`.
      resize: length of an image's shorter side before the crop, in pixels.
      crop: side of the square cut out of its middle, in pixels.
    """

    name: str
    data_dir: PathLike | None
    builder: Any = dataclasses.field(repr=False)
    records: Any = dataclasses.field(repr=False)
    resize: int
    crop: int

    @property
    def num_classes(self) -> int:
        """The number of classes; labels are whole numbers in [0, num_classes)."""
        return self.builder.info.features["label"].num_classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):  # array_record's own error would not end an iteration
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        with _tfds.readable(self.builder, self.name, self.data_dir):
            record = self.records[index]
            image = _tfds.decode_image(self.builder, record["image"])
        pixels = np.asarray(resize_and_crop(image, self.resize, self.crop))
        return pixels.reshape(self.crop, self.crop, -1), int(record["label"])


def tfds_images(
    name: str, split: str, *, data_dir: PathLike | None = None, resize: int = 256, crop: int = 224
) -> TfdsImages:
    """The images of a split as a source for `loader`, from any TFDS data set that has images and labels.

    The data set must be prepared already, in array_record format; nothing is downloaded. Images are opened, resized and
    cropped as `image_folder` does, with as many channels as the data set declares.

    Args:
      name: TFDS's name of the data set, for example `imagenet2012`.
      split: TFDS's name of the split, or a part of it: `train`, `validation`, `test[:1000]`.
      data_dir: the folder of prepared data sets; if not given, the one that the environment variable TFDS_DATA_DIR
        names, or else TFDS's own.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square that is cut out of its middle, in pixels; at most `resize`, and at most 5792.

    Raises:
      ValueError: if the name or the split is unknown; if the data set is damaged, not prepared, or without 8-bit images
        or labels; or if the crop is larger than the resized image.
      ModuleNotFoundError: if a package that reads it is missing.
    """
    check_crop(resize, crop)
    if not isinstance(split, str):
        raise ValueError(f"split must be a string, such as 'train' or 'test[:1000]', got {split!r}")
    builder = _tfds.find_prepared(name, data_dir)
    _tfds.check_features(builder, name)
    try:
        _ = builder.info.splits[split]
    except Exception as error:  # TFDS raises ValueError, AssertionError or KeyError
        raise ValueError(
            f"{name} has no split {split!r} ({reason(error)}): use {' or '.join(builder.info.splits)}, or a part such "
            "as 'train[:1000]'"
        ) from error
    with _tfds.readable(builder, name, data_dir):
        records = _tfds.records(builder, split)
    return TfdsImages(name, data_dir, builder, records, resize, crop)
