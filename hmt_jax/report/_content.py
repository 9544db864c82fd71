"""The data of a page: measurements with their claims, pictures and progress."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hmt_jax.margins import MarginResult


class Claim(NamedTuple):
    """A claim on a measurement, and whether it holds.

    Attributes:
      text: what is claimed.
      found: the number that decides, with its interval, as text.
      expected: the threshold, as text.
      holds: the verdict; None if it is undecided.
      reason: why the threshold is where it is, or why nothing is decided.

    >>> Claim("margins grow from low to high frequencies", "2.2 (2.1 to 2.4)", "at least 1.5", True).holds
    True
    """

    text: str
    found: str
    expected: str
    holds: bool | None
    reason: str = ""


class Picture(NamedTuple):
    """An image and the perturbation that changes its label.

    Attributes:
      subspace: the number of the subspace.
      image: the number of the image.
      rank: what the margin is among those in the subspace: "least", "median" or "greatest".
      margin: the length of the perturbation.
      original: (height, width, channels), in [0, 1].
      perturbation: the same shape.
      label: of the image.
      adversarial_label: of the perturbed image.

    >>> grey = np.full((2, 2, 1), 0.5, np.float32)
    >>> Picture(0, 7, "least", 0.2, grey, 0.2 * grey, label=4, adversarial_label=9).rank
    'least'
    """

    subspace: int
    image: int
    rank: str
    margin: float
    original: np.ndarray
    perturbation: np.ndarray
    label: int
    adversarial_label: int


class Progress(NamedTuple):
    """The progress of a measurement that is still going on.

    Attributes:
      num_done: pairs of an image and a subspace that are finished.
      num_pairs: all pairs.

    >>> Progress(num_done=500, num_pairs=2000)
    Progress(num_done=500, num_pairs=2000)
    """

    num_done: int
    num_pairs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Margins with a name, and whatever else is known about them.

    Attributes:
      name: a name that tells the measurement from others on the page.
      result: margins of N images in R subspaces.
      subspaces: a name for each of the R subspaces, in the order in which they stand from left to right.
      axis: what the subspaces are, below that axis.
      is_ordered: whether the order of the subspaces means something, so that a line may join their medians.
      corners: (R, 2), the first vertical and horizontal frequency of each subspace, for windows of the DCT.
      num_images: the number of images that are to be measured, if `result` has not all of them yet.
      classes: names of the labels; their numbers if not given.
      bounds: (R, M), certified lower bounds of the margins of the first M images.
      image_ids: a text for each of the N images, which is equal for the same image in other measurements. Images that
        two measurements share are compared one by one.
      classifier_id: a text that is equal for the same classifier.
      claims: what is claimed, with verdicts.
      history: curves of training by their names, such as "test accuracy", with a number for each epoch.
      pictures: images for the gallery.
      no_pictures: why there are none, as a sentence.
      command: the command that makes the measurement again.
      attributes: the configuration, versions, hardware, times and checksums: anything that JSON can hold, and arrays;
        whatever else is there becomes text.

    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((2, 2, 1)))
    >>> Measurement(name="linear", result=result, subspaces=["whole space"], classes=["cat", "dog"]).label(1)
    'dog'
    """

    name: str
    result: MarginResult
    subspaces: Sequence[str]
    axis: str = "subspace"
    is_ordered: bool = True
    corners: np.ndarray | None = None
    num_images: int | None = None
    classes: Sequence[str] = ()
    bounds: np.ndarray | None = None
    image_ids: Sequence[str] = ()
    classifier_id: str | None = None
    claims: Sequence[Claim] = ()
    history: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    no_pictures: str = ""
    command: str = ""
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.result, MarginResult):
            raise TypeError(f"result must be a MarginResult, got {type(self.result).__name__}")
        number, num_images = self.result.margin.shape
        for argument, values in (("subspaces", self.subspaces), ("corners", self.corners), ("bounds", self.bounds)):
            if values is not None and (isinstance(values, str) or len(values) != number):
                found = repr(values) if isinstance(values, str) else len(values)
                raise ValueError(
                    f"{argument} of the measurement {self.name!r} must have one entry for each of the {number} "
                    f"subspaces, got {found}"
                )
        for argument, shape in (("corners", f"({number}, 2)"), ("bounds", f"({number}, M)")):
            if (values := getattr(self, argument)) is not None:
                array = np.asarray(values)
                if array.ndim != 2 or (argument == "corners" and array.shape[1] != 2):
                    raise ValueError(
                        f"{argument} of the measurement {self.name!r} must have the shape {shape}, got {array.shape}"
                    )
                object.__setattr__(self, argument, array)
        if len(self.image_ids) not in (0, num_images):
            raise ValueError(
                f"image_ids of the measurement {self.name!r} must have one entry for each of the {num_images} images, "
                f"got {len(self.image_ids)}"
            )
        # Numbers, paths and arrays of texts are as good as texts.
        object.__setattr__(self, "name", str(self.name))
        for argument in ("subspaces", "classes", "image_ids"):
            object.__setattr__(self, argument, [str(each) for each in getattr(self, argument)])

    def label(self, number: int) -> str:
        """The name of a label."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)


def of_windows(corners: np.ndarray, size: int) -> dict[str, Any]:
    """The fields of a `Measurement` in windows of the DCT: `subspaces`, `axis`, `is_ordered` and `corners`.

    Args:
      corners: (R, 2), the first vertical and horizontal frequency of each window.
      size: the number of frequencies along each side of a window.

    >>> of_windows(np.array([[0, 0], [4, 4]]), 8)["subspaces"]
    ['0', '4']
    """
    corners = np.asarray(corners)
    is_diagonal = bool((corners[:, 0] == corners[:, 1]).all())
    where = "first frequency" if is_diagonal else "first vertical and horizontal frequency"
    return {
        "subspaces": [str(row) if is_diagonal else f"{row},{column}" for row, column in corners.tolist()],
        "axis": f"{where} of the {size} x {size} DCT window" + ", from low to high" * is_diagonal,
        "is_ordered": is_diagonal,
        "corners": corners,
    }


def plain(value: Any) -> Any:
    """A value that JSON can't hold as one that it can: an array as a list, its number as a number, others as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
