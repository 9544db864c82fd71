"""Images in folders, one folder per class, decoded when they are asked for."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np

from hmt_jax._extras import require
from hmt_jax._paths import PathLike, expand, reason, shown
from hmt_jax.data._decoding import check_crop, decode, resize_and_crop

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # those of torchvision


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
    """A random-access source of labelled images: `len(source)`, and `source[i]` for an image and its label.

    Images are (crop, crop, 3), uint8 in [0, 255]. They are read when they are asked for, by any number of
    threads at once. A file that can't be read raises a ValueError that names it.

    Attributes:
      path: the folder of the classes.
      class_names: names of the classes' folders, sorted; labels are indices into them.
      files: paths of the N images below `path`, class by class and sorted by name.
      labels: (N,) int32 in [0, num_classes).
      resize: length of an image's shorter side before the crop, in pixels.
      crop: side of the square cut out of its middle, in pixels.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as path:
    ...     for name in ("cat", "dog"):
    ...         os.mkdir(os.path.join(path, name))
    ...         Image.new("L", (40, 30)).save(os.path.join(path, name, "black.png"))
    ...     source = image_folder(path, resize=16, crop=16)
    >>> source.class_names, source.labels.tolist(), len(source)
    (('cat', 'dog'), [0, 1], 2)
    """

    path: str
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    files: tuple[str, ...] = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    resize: int
    crop: int

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The (height, width, channels) of each image."""
        return self.crop, self.crop, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file = os.path.join(self.path, self.files[index])
        with readable(file):
            image = decode(file, "RGB")
        return np.asarray(resize_and_crop(image, self.resize, self.crop)), int(self.labels[index])


def image_folder(path: PathLike, *, resize: int = 256, crop: int = 224) -> ImageFolder:
    """The images PATH/CLASS/IMAGE as a source for `loader`.

    Pixels are those of torchvision's ImageFolder with Resize(resize) and CenterCrop(crop): images are resized by
    antialiased bilinear interpolation; grey, palette and CMYK images are converted to RGB; transparency is dropped, and
    the orientation in EXIF ignored. Unlike torchvision, this function looks for images in the classes' folders only,
    not deeper, skips names that begin with a dot, and refuses pixels of more than 8 bits, which torchvision clips.

    Files are opened as BMP, JPEG, PNG, PPM, TIFF or WebP, whatever their names. Those with more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` are refused, so that reading one takes less than 1 GB. If a resized image would have
    more than 2**25 pixels, only its middle is resized, and its pixels may differ from torchvision's by one level.

    Args:
      path: a folder that holds one folder of images per class.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square that is cut out of its middle, in pixels; at most `resize`, and at most 5792.

    Raises:
      ValueError: if the folder does not exist or holds no classes, a class has no images, a pipe or a folder has the
        name of an image, or the crop is larger than the resized image.
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
    root = expand("path", path)
    if not os.path.isdir(root):
        raise ValueError(f"there is no folder {shown(root)}: name one that holds one folder of images per class")
    class_names = entries_of(root, os.DirEntry.is_dir)
    if not class_names:
        raise ValueError(f"{shown(root)} holds no folders: name one that holds one folder of images per class")
    files, labels = [], []
    for label, name in enumerate(class_names):
        images = entries_of(os.path.join(root, name), is_image)
        if not images:
            _refuse_folder_without_images(root, name, class_names)
        files += [os.path.join(name, image) for image in images]
        labels += [label] * len(images)
    return ImageFolder(root, tuple(class_names), tuple(files), np.array(labels, np.int32), resize, crop)


@contextlib.contextmanager
def readable(file: str) -> Iterator[None]:
    """A context in which the errors of decoding a file become a ValueError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow passes on the errors of its decoders
        raise ValueError(f"{shown(file)} can't be read ({reason(error)}): replace it, or delete it") from error


def entries_of(folder: str, is_wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    """Sorted names of the wanted entries of a folder, without those that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_wanted(entry))
    except OSError as error:
        raise ValueError(
            f"{shown(error.filename or folder)} can't be read ({error.strerror}): make it readable, or remove it"
        ) from error


def is_image(entry: os.DirEntry) -> bool:
    """Whether an entry has the name of an image. A pipe of such a name is refused: opening it could block forever."""
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    if not entry.is_file():
        raise ValueError(
            f"{shown(entry.path)} has the name of an image, but is neither a file nor a link to one: rename it, or "
            "remove it"
        )
    return True


def _refuse_folder_without_images(root: str, name: str, class_names: list[str]) -> None:
    folder = os.path.join(root, name)
    parents = sorted({os.path.dirname(path) for path in _nearest_with_images(root)})
    if any(parents):  # no class has images: only the user knows whether the folders there are splits or classes
        first = os.path.join(root, parents[0])
        inside = entries_of(first, os.DirEntry.is_dir)
        raise ValueError(
            f"the images are {'two levels' if os.sep in parents[0] else 'one level'} deeper, in {_few(parents)} of "
            f"{shown(root)}: pass {'one of them, such as ' * (len(parents) > 1)}image_folder({first!r}), whose "
            f"{'classes' if len(inside) > 1 else 'only class'} would be {_few(inside)}; or, if {shown(parents[0])} is "
            "a class itself, move its images up: they must lie in the classes' folders themselves"
        )
    if inside := _nearest_with_images(folder):
        raise ValueError(
            f"{shown(folder)} holds images only deeper, in {_few(inside)}: move them up, because they must lie in the "
            "classes' folders themselves"
        )
    raise ValueError(
        f"{shown(folder)} holds no images ({', '.join(SUFFIXES)}): put those of the class there, or remove the folder"
    )


def _nearest_with_images(root: str) -> list[str]:
    """Relative paths of the nearest folders below one that hold images: all on one level, at most three levels down."""
    level = [""]
    for _ in range(3):
        folders = {path: entries_of(os.path.join(root, path), os.DirEntry.is_dir) for path in level}
        level = [os.path.join(path, name) for path, names in folders.items() for name in names]
        if found := [path for path in level if entries_of(os.path.join(root, path), is_image)]:
            return found
    return []


def _few(paths: list[str]) -> str:
    return ", ".join(map(shown, paths[:3])) + ", ..." * (len(paths) > 3)
