"""Images in folders, one folder a class, decoded when they are asked for."""

import dataclasses
import os

import numpy as np

from hmt_jax._extras import require
from hmt_jax.data._tfds import PathLike

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # those of torchvision


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
    """A random-access source of labelled images: `len(source)`, and `source[i]` for an image and its label.

    Images are (crop, crop, 3), uint8 in [0, 255]. They are read when they are asked for; any number of threads may do
    so at once. A file that can't be read raises a ValueError with its name.

    Attributes:
      path: the folder of the classes.
      class_names: names of the classes' folders, sorted; labels are their places.
      files: (N,) the images under `path`, those of a class together, sorted by name.
      labels: (N,) int32 in [0, num_classes).
      resize: length of an image's shorter side before the crop, in pixels.
      crop: side of the square cut out of its middle, in pixels.
    """

    path: str
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    files: tuple[str, ...] = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    resize: int
    crop: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.crop, self.crop, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = _read_rgb(os.path.join(self.path, self.files[index]))
        return np.asarray(resize_and_crop(image, self.resize, self.crop)), int(self.labels[index])


def image_folder(path: PathLike, *, resize: int = 256, crop: int = 224) -> ImageFolder:
    """The images PATH/CLASS/IMAGE as a source for `loader`.

    Pixels are those of torchvision's ImageFolder with Resize(resize) and CenterCrop(crop): resized by antialiased
    bilinear interpolation; RGB of grey, palette and CMYK images, too; without transparency, and without regard to the
    orientation in EXIF. Unlike torchvision, it does not look for images deeper than in the classes' folders, passes
    over names that begin with a dot, and refuses pixels of more than 8 bits, which torchvision clips.

    Args:
      path: a folder that holds one folder of images a class.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square that is cut out of its middle, in pixels; at most `resize`.

    Raises:
      ValueError: for a folder that does not exist or holds no classes, a class without images, or sizes that do not
        fit each other.
      ModuleNotFoundError: if Pillow is missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as path:
    ...     os.mkdir(os.path.join(path, "cat"))
    ...     Image.new("L", (400, 300), color=255).save(os.path.join(path, "cat", "white.png"))
    ...     source = image_folder(path)
    ...     image, label = source[0]
    >>> len(source), source.class_names, image.shape, image.dtype, label
    (1, ('cat',), (224, 224, 3), dtype('uint8'), 0)
    """
    require("an image folder", "data", "PIL")
    check_crop(resize, crop)
    root = os.fspath(path)
    if not os.path.isdir(root):
        raise ValueError(f"there is no folder {root}: name one that holds one folder of images a class")
    class_names = _list(root, lambda entry: entry.is_dir())
    if not class_names:
        raise ValueError(f"{root} holds no folders: name one that holds one folder of images a class")
    files, labels = [], []
    for label, name in enumerate(class_names):
        images = _list(os.path.join(root, name), lambda entry: entry.name.lower().endswith(_SUFFIXES))
        if not images:
            raise ValueError(
                f"{os.path.join(root, name)} holds no images ({', '.join(_SUFFIXES)}): put those of the class there, "
                "or take the folder away"
            )
        files += [os.path.join(name, image) for image in images]
        labels += [label] * len(images)
    return ImageFolder(root, tuple(class_names), tuple(files), np.array(labels, np.int32), resize, crop)


def _list(folder, is_wanted):
    """Names in a folder that are wanted and do not begin with a dot, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_wanted(entry))


def _read_rgb(file):
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its mode {image.mode} has more than 8 bits")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # in one step, Pillow warns
            return image.convert("RGB")
    # Pillow lets pass whatever its decoders raise: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise ValueError(f"{file} can't be read ({error}): replace it, or delete it") from error


def check_crop(resize: int, crop: int) -> None:
    if not 1 <= crop <= resize:
        raise ValueError(f"crop must be at least 1 and at most resize, got crop {crop} and resize {resize}: lower crop")


def resize_and_crop(image, resize, crop):
    from PIL import Image

    # As torchvision rounds: the longer side down, the margins to the nearest even number if they end in a half.
    width, height = (resize * side // min(image.size) for side in image.size)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + crop, top + crop))
