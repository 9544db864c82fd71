"""Data sets in arrays, and checks of their images and labels."""

import dataclasses

import numpy as np
import numpy.typing as npt

from hmt_jax import _checks
from hmt_jax._checks import as_array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, in a training and a test set.

    Attributes:
      name: name of the data set.
      train_images: (N, height, width, channels), uint8 in [0, 255] as stored, or floating point in [0, 1].
      train_labels: (N,) int32 in [0, num_classes).
      test_images: as `train_images`.
      test_labels: as `train_labels`.
      num_classes: number of classes.

    >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 0])
    >>> dataset = from_arrays(images, labels, images[:2], labels[:2], name="black")
    >>> dataset, dataset.image_shape
    (Dataset(name='black', num_classes=3), (8, 8, 1))
    """

    name: str
    train_images: np.ndarray = dataclasses.field(repr=False)
    train_labels: np.ndarray = dataclasses.field(repr=False)
    test_images: np.ndarray = dataclasses.field(repr=False)
    test_labels: np.ndarray = dataclasses.field(repr=False)
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The (height, width, channels) of each image."""
        return self.train_images.shape[1:]

    def first(self, num_train: int, num_test: int) -> "Dataset":
        """The first images of each set, without copying them.

        Args:
          num_train: number of training images; 0 for all.
          num_test: number of test images; 0 for all.

        Raises:
          ValueError: if there are fewer, or a number is negative.

        >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 0])
        >>> few = from_arrays(images, labels, images, labels).first(num_train=3, num_test=0)
        >>> len(few.train_images), len(few.test_images)
        (3, 4)
        """
        for argument, asked, there, kind in (
            ("num_train", num_train, len(self.train_images), "training"),
            ("num_test", num_test, len(self.test_images), "test"),
        ):
            if _checks.integer(argument, asked, at_least=0) > there:
                raise ValueError(
                    f"{argument}={asked} is more than the {there} {kind} images of {self.name}: set {argument} to at "
                    f"most {there}"
                )
        train, test = slice(num_train or None), slice(num_test or None)
        return dataclasses.replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
        )


def as_floats(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as float32: 8-bit ones divided by 255, others converted.

    Args:
      images: uint8 in [0, 255], or floating point in [0, 1].

    Raises:
      ValueError: if they have any other type.

    >>> as_floats(np.array([0, 255], np.uint8))
    array([0., 1.], dtype=float32)
    """
    images = np.asarray(as_array("images", images))
    _checks.check_type("images", images)
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def from_arrays(
    train_images: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    test_images: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays of any origin.

    Args:
      train_images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      train_labels: (N,) whole numbers from 0; the largest one in either set determines the number of classes.
      test_images: (M, height, width, channels), as `train_images`.
      test_labels: (M,) whole numbers, as `train_labels`.
      name: name of the data set.

    Raises:
      ValueError: if an array is empty or has the wrong shape, type or range, or if the arrays do not fit each other.

    >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 0])
    >>> from_arrays(images, labels, images[:2], labels[:2])
    Dataset(name='arrays', num_classes=3)
    """
    images = _arrays(train_images=train_images, test_images=test_images)
    labels = _arrays(train_labels=train_labels, test_labels=test_labels)
    for argument, array in images.items():
        _check_images(argument, array)
    for argument, array in labels.items():
        _checks.check_labels(argument, array)
    for part in ("train", "test"):
        num_images, num_labels = len(images[f"{part}_images"]), len(labels[f"{part}_labels"])
        if num_images != num_labels:
            raise ValueError(f"{part}_images has {num_images} images, but {part}_labels has {num_labels} labels")
    train_shape, test_shape = (array.shape[1:] for array in images.values())
    if train_shape != test_shape:
        raise ValueError(f"train_images has images of shape {train_shape}, but test_images of shape {test_shape}")
    if labels["train_labels"].min() > 0:
        raise ValueError(
            f"train_labels must count from 0, but the lowest one is {labels['train_labels'].min()}: subtract it from "
            "all labels"
        )
    num_classes = 1 + max(int(array.max()) for array in labels.values())
    return Dataset(
        name=name,
        num_classes=num_classes,
        **images,
        **{argument: array.astype(np.int32) for argument, array in labels.items()},
    )


def _arrays(**given) -> dict[str, np.ndarray]:
    return {argument: np.asarray(as_array(argument, values)) for argument, values in given.items()}


def _check_images(argument, images):
    if images.ndim != 4:
        raise ValueError(
            f"{argument} must have shape (N, height, width, channels), got {images.shape}; add the channel axis of "
            f"grey images with {argument}[..., None]"
        )
    if not images.size:
        raise ValueError(f"{argument} is empty, with shape {images.shape}: pass at least one image")
    _checks.check_type(argument, images)
    # Written so that NaN fails, too.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"{argument} must lie in [0, 1] if they are floating point, got {images.min():g} to {images.max():g}; "
            "divide them by the value of white, such as 255"
        )
