"""Data sets by name."""

import numpy as np

from hmt_jax._extras import require
from hmt_jax._paths import PathLike
from hmt_jax.data import _tfds
from hmt_jax.data._dataset import Dataset, from_arrays


def names() -> tuple[str, ...]:
    """The names that `load` and `prepare` accept.

    >>> names()
    ('cifar10', 'digits', 'mnist')
    """
    return tuple(sorted(("digits", *_tfds.SIZES)))


def load(name: str, data_dir: PathLike | None = None) -> Dataset:
    """A data set that is on this machine; nothing is downloaded.

    `mnist` and `cifar10` are read from the array_record files of TensorFlow Datasets (TFDS), which `prepare` writes:
    images are uint8, in TFDS's order. `digits` are the 1,797 images of 8 x 8 pixels that come with scikit-learn, in
    float32: every fifth sample of each digit is for testing (360), the others are for training (1,437).

    Args:
      name: one of `names()`.
      data_dir: the folder of prepared data sets; if not given, the one that the environment variable TFDS_DATA_DIR
        names, or else TFDS's own.

    Raises:
      ValueError: if the name is unknown, or the data set is not prepared, damaged, incomplete or in another format.
      ModuleNotFoundError: if a package that reads it is missing, as array_record is on Windows.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_images.shape, digits.num_classes
    ((1437, 8, 8, 1), (360, 8, 8, 1), 10)
    """
    check_name(name)
    if name == "digits":
        return _load_digits()
    return _tfds.read(_tfds.find_prepared(name, data_dir))


def check_name(name: str) -> None:
    """Raises ValueError unless `load` and `prepare` accept the name."""
    if name not in names():
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(names())}")


def _load_digits():
    require("digits", "data", "sklearn")
    from sklearn.datasets import load_digits

    stored = load_digits()
    images, labels = (stored.images / 16).astype(np.float32)[..., None], stored.target
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return from_arrays(images[~is_test], labels[~is_test], images[is_test], labels[is_test], "digits")
