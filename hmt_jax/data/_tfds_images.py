"""Images of a prepared TensorFlow Datasets (TFDS) data set, decoded when they are asked for."""

import dataclasses
from typing import Any

import numpy as np

from hmt_jax.data import _tfds
from hmt_jax.data._image_folder import check_crop, resize_and_crop


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsImages:
    """A random-access source of labelled images: `len(source)`, and `source[i]` for an image and its label.

    Images are (crop, crop, channels), uint8 in [0, 255]. They are read when they are asked for; any number of threads
    may do so at once.

    Attributes:
      records: TFDS's data source, of records with `image` and `label`.
      num_classes: labels are whole numbers from 0 to less than this.
      resize: length of an image's shorter side before the crop, in pixels.
      crop: side of the square cut out of its middle, in pixels.
    """

    records: Any
    num_classes: int
    resize: int
    crop: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        if not 0 <= index < len(self):  # array_record raises what does not end an iteration
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        record = self.records[index]
        pixels = np.asarray(record["image"])
        # Pillow knows grey images without a channel axis only.
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        cropped = np.asarray(resize_and_crop(image, self.resize, self.crop))
        return cropped.reshape(self.crop, self.crop, pixels.shape[-1]), int(record["label"])


def tfds_images(
    name: str, split: str, *, data_dir: _tfds.PathLike | None = None, resize: int = 256, crop: int = 224
) -> TfdsImages:
    """The images of a split as a source for `loader`, of any data set of TFDS that has images and labels.

    The data set must be prepared already, in array_record format; nothing is downloaded. Images are resized and cropped
    as `image_folder` does.

    Args:
      name: as TFDS has it: `imagenet2012`, say.
      split: as TFDS has it: `train`, `validation`, `test[:1000]`.
      data_dir: the folder of prepared data sets; that of the environment variable TFDS_DATA_DIR, or else TFDS's own, if
        not given.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square that is cut out of its middle, in pixels; at most `resize`.

    Raises:
      ValueError: for a data set that is not prepared, or has no images or no labels, or sizes that do not fit each
        other.
      ModuleNotFoundError: if a package to read it with is missing.
    """
    check_crop(resize, crop)
    builder = _tfds.find(name, data_dir)
    if not builder.is_prepared():
        raise ValueError(
            f"{name} is not prepared in {builder.data_dir_root}: prepare it there with TensorFlow Datasets and "
            f"file_format={_tfds.FILE_FORMAT!r}, or name the folder that holds it with data_dir or the environment "
            "variable TFDS_DATA_DIR"
        )
    if missing := {"image", "label"} - set(builder.info.features):
        raise ValueError(f"{name} has no {' and no '.join(sorted(missing))}: take a data set of labelled images")
    records = builder.as_data_source(split, file_format=_tfds.FILE_FORMAT)
    return TfdsImages(records, builder.info.features["label"].num_classes, resize, crop)
