"""Images that the command line names: folders, NumPy's files, and prepared data sets."""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hmt_jax import data
from hmt_jax._extras import require
from hmt_jax._npy import map_npy, read_npz
from hmt_jax._paths import expand, reason, shown
from hmt_jax.data._decoding import check_crop, decode, resize_and_crop, size_and_mode
from hmt_jax.data._image_folder import SUFFIXES, entries_of, is_image, readable
from hmt_jax.margins import MarginStore, _identity

_DATA_SET = re.compile(r"(?P<name>[\w/.-]+):(?P<split>\w+)(\[(?P<first>\d*):(?P<last>\d*)\])?")
_GREY = ("1", "L", "LA")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images to measure.

    Attributes:
      description: where they are, for the attributes of a store.
      image_shape: (height, width, channels).
      num_images: their number.
      content: an array, or a source of images and labels; only its first `num_images` are measured.
      names: the file of each image of a folder, relative to it; empty for other images.
      classes: the label of each image, or of more; None if they are not known.
    """

    description: str
    image_shape: tuple[int, int, int]
    num_images: int
    content: Any
    names: tuple[str, ...] = ()
    classes: np.ndarray | None = None

    def first(self, number: int | None) -> "Images":
        """The first images.

        Raises:
          ValueError: if there are fewer.
        """
        if number is None or number == self.num_images:
            return self
        if not 1 <= number <= self.num_images:
            raise ValueError(f"--num {number} must be from 1 to {self.num_images}, the number of images")
        return dataclasses.replace(self, num_images=number, names=self.names[:number])

    def at(self, numbers: Sequence[int], store: MarginStore) -> np.ndarray:
        """Some of the images, by their numbers.

        Raises:
          ValueError: if they are not the images whose margins are in the store.
        """
        if self.num_images != store.num_images:
            raise ValueError(
                f"{store.path} has margins of {store.num_images} images, and {self.description} has "
                f"{self.num_images} now: put back those that were measured"
            )
        is_array = isinstance(self.content, np.ndarray)
        found = np.stack([np.asarray(self.content[n] if is_array else self.content[n][0]) for n in numbers])
        hashes = {chunk: store.image_sha256(chunk) for chunk in {n // store.chunk_size for n in numbers}}
        if _identity.of_images(found) != [hashes[n // store.chunk_size][n % store.chunk_size] for n in numbers]:
            raise ValueError(
                f"{store.path} has margins of other images than {self.description} has now: put back those that were "
                "measured"
            )
        return found

    def labels(self) -> np.ndarray:
        """The labels of the images.

        Raises:
          ValueError: if they are not known.
        """
        if self.classes is None:
            raise ValueError(
                f"the classes of the images in {self.description} are not known: name a folder with a subfolder for "
                "each class, an .npz file with an array that is named labels, or a data set such as mnist:train"
            )
        return self.classes[: self.num_images]

    def read(self) -> Any:
        """The images as `hmt_jax.measure_to_store` takes them: an array, or a source that decodes them on the way."""
        if isinstance(self.content, np.ndarray):
            return self.content[: self.num_images]
        return _First(self.content, self.num_images)


def load(text: str, *, resize: int | None, crop: int | None, data_dir: str | None, option: str = "--images") -> Images:
    """The images that a text names: a folder, a `.npy` or `.npz` file, or a data set as in `mnist:test[:1000]`.

    Args:
      text: the value of an option.
      resize, crop, data_dir: as on the command line.
      option: the name of the option.

    Raises:
      ValueError: if there are none, or they can't be read.
      ModuleNotFoundError: if a package that reads them is missing.
    """
    path = expand(option, text)
    if not os.path.exists(path) and (match := _DATA_SET.fullmatch(text)):
        return _data_set(text, match, resize, crop, data_dir)
    if os.path.isdir(path):
        return _folder(path, resize, crop)
    if not os.path.exists(path):
        raise ValueError(
            f"there are no images at {shown(path)}: name a folder of images, a .npy or .npz file, or a data set with "
            "its split, such as mnist:test"
        )
    if resize is not None or crop is not None:
        raise ValueError(f"--resize and --crop are for folders and data sets, and {shown(path)} holds an array")
    array, classes = _array(path)
    return Images(os.path.abspath(path), array.shape[1:], len(array), array, classes=classes)


def _array(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of images in a file, without reading all of it if the format allows that, and labels if it has some."""
    with open(path, "rb") as file:
        first = file.read(4)
    is_npy = first == b"\x93NUM"
    if not is_npy and first not in (b"PK\3\4", b"PK\5\6"):  # the last is that of an empty .npz
        raise ValueError(f"{shown(path)} is neither a .npy nor a .npz file: name such a file, or a folder of images")
    try:
        found: Any = map_npy(path) if is_npy else read_npz(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{shown(path)} can't be read as an array of numbers ({reason(error).rstrip('.')}): write it with "
            "numpy.save, as uint8 or float32"
        ) from error
    classes = None
    if isinstance(found, dict):
        classes = found.get("labels")
        wanted = [name for name, array in found.items() if array.ndim == 4]
        wanted = ["images"] if "images" in found else wanted
        if len(wanted) != 1:
            arrays = ", ".join(f"{name} {array.shape}" for name, array in found.items()) or "none"
            raise ValueError(
                f"{shown(path)} must hold one array of images, or one that is named images; its arrays are {arrays}"
            )
        found = found[wanted[0]]
    if found.ndim == 3:
        found = found[..., None]
    if found.ndim != 4 or not found.size:
        raise ValueError(
            f"{shown(path)} must hold images (N, height, width, channels), got shape {found.shape}: write it in that "
            "shape"
        )
    if found.shape[1] in (1, 3) and found.shape[3] not in (1, 3):
        raise ValueError(
            f"{shown(path)} holds images with channels first, {found.shape}: write images.transpose(0, 2, 3, 1)"
        )
    return found, classes


def _data_set(text: str, match: re.Match[str], resize, crop, data_dir) -> Images:
    name, split = match["name"], match["split"]
    if name not in data.names():
        sides = (resize or crop or 256, crop or resize or 224)
        source: Any = data.tfds_images(name, text.partition(":")[2], data_dir=data_dir, resize=sides[0], crop=sides[1])
        return Images(text, source[0][0].shape, len(source), source)
    if resize is not None or crop is not None:
        raise ValueError(f"--resize and --crop don't apply to {name}, whose images have one size: leave them out")
    dataset = data.load(name, data_dir)
    if split not in ("train", "test"):
        raise ValueError(f"{name} has no split {split!r}: use {name}:train or {name}:test, or a part such as [:1000]")
    is_train = split == "train"
    images, labels = (
        (dataset.train_images, dataset.train_labels) if is_train else (dataset.test_images, dataset.test_labels)
    )
    bounds = [int(match[end]) if match[end] else None for end in ("first", "last")]
    num_images, images, labels = len(images), np.asarray(images)[slice(*bounds)], np.asarray(labels)[slice(*bounds)]
    if not len(images):
        raise ValueError(f"{text} has no images: the split {split} has {num_images}")
    return Images(text, images.shape[1:], len(images), images, classes=labels)


def _folder(path: str, resize, crop) -> Images:
    require("a folder of images", "data", "PIL")
    files = sorted(_files_below(path, "", ()))
    if not files:
        raise ValueError(f"{shown(path)} holds no images ({', '.join(SUFFIXES)}): name another folder")
    sides = None if resize is None and crop is None else (resize or crop or 0, crop or resize or 0)
    if sides is not None:
        check_crop(*sides)
    heads = [_head(os.path.join(path, file)) for file in files]
    shapes = {size: file for (size, _), file in reversed(list(zip(heads, files, strict=True)))}
    if sides is None and len(shapes) > 1:
        (first, one), (second, other) = list(shapes.items())[:2]
        raise ValueError(
            f"the images in {shown(path)} have several sizes, {shown(one)} {first[0]} x {first[1]} and {shown(other)} "
            f"{second[0]} x {second[1]} for instance: pass --resize and --crop, such as --resize 256 --crop 224"
        )
    mode = "L" if all(mode in _GREY for _, mode in heads) else "RGB"
    width, height = next(iter(shapes)) if sides is None else (sides[1], sides[1])
    source = _Folder(path, tuple(files), mode, sides)
    folders = [file.partition(os.sep)[0] for file in files if os.sep in file]
    classes = np.unique(folders, return_inverse=True)[1] if len(folders) == len(files) else None
    shape = (height, width, 1 if mode == "L" else 3)
    return Images(os.path.abspath(path), shape, len(files), source, tuple(files), classes)


def _files_below(root: str, folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """The images in a folder and its subfolders, relative to the root, without names that begin with a dot."""
    path = os.path.join(root, folder)
    real = os.path.realpath(path)
    if real in above:
        raise ValueError(f"{shown(path)} is a link to a folder that it lies in: remove the link")
    yield from (os.path.join(folder, name) for name in entries_of(path, _is_image_file))
    for name in entries_of(path, os.DirEntry.is_dir):
        yield from _files_below(root, os.path.join(folder, name), (*above, real))


def _is_image_file(entry: os.DirEntry) -> bool:
    return not entry.is_dir() and is_image(entry)


def _head(file: str) -> tuple[tuple[int, int], str]:
    """The size and the mode of an image, from the head of its file."""
    with readable(file):
        return size_and_mode(file)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """The images of a folder as a source, all with the label 0."""

    path: str
    files: tuple[str, ...]
    mode: str
    sides: tuple[int, int] | None  # of `resize_and_crop`

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file = os.path.join(self.path, self.files[index])
        with readable(file):
            image = decode(file, self.mode)
        pixels = np.asarray(image if self.sides is None else resize_and_crop(image, *self.sides))
        return pixels.reshape(*pixels.shape[:2], -1), 0


@dataclasses.dataclass(frozen=True)
class _First:
    """The first samples of a source."""

    source: Sequence[Any]
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        return self.source[index]
