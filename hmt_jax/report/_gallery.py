"""The gallery of a page: images before and after the perturbation that changes their label."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hmt_jax.margins import MarginResult
from hmt_jax.report._content import Measurement, Picture

_LARGE = 96  # pixels from which images are compressed with losses
_FACTORS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


def chosen(result: MarginResult, subspaces: Sequence[int] | None = None) -> list[tuple[int, int, str]]:
    """The pairs (subspace, image, rank) with the least, the median and the greatest margin in each subspace.

    Args:
      result: margins with axes (R, N).
      subspaces: numbers of subspaces; the first, the middle and the last one if not given.
    """
    if subspaces is None:
        number = len(result.margin)
        subspaces = sorted({0, (number - 1) // 2, number - 1})
    found = []
    for r in subspaces:
        images = np.flatnonzero(result.is_converged[r])
        images = images[np.argsort(result.margin[r, images], kind="stable")]
        if len(images):
            places = {"least": 0, "median": (len(images) - 1) // 2, "greatest": len(images) - 1}
            kept = {place: rank for rank, place in reversed(places.items())}  # one for each image, if there are few
            found += [(int(r), int(images[place]), rank) for place, rank in sorted(kept.items())]
    return found


def pictures(
    result: MarginResult,
    subspaces: Sequence[Any],
    images: Any,
    of: Sequence[tuple[int, int, str]] | None = None,
) -> list[Picture]:
    """The pictures of some pairs.

    Args:
      result: margins with axes (R, N), with coordinates.
      subspaces: the R subspaces.
      images: (N, height, width, channels), 8-bit or in [0, 1]; or a dict of single images by their numbers.
      of: pairs (subspace, image, rank); those with the least, the median and the greatest margin in the first, the
        middle and the last subspace if not given.

    Raises:
      ValueError: if the result has no coordinates.

    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> whole = hmt_jax.subspaces.full((2, 2, 1))
    >>> result = hmt_jax.measure_margins(classifier, images, whole, keep_coordinates=True)
    >>> (picture,) = pictures(result, [whole], images, [(0, 3, "chosen")])
    >>> bool(np.isclose(np.linalg.norm(picture.perturbation), result.margin[0, 3]))
    True
    """
    if result.coordinates is None:
        raise ValueError("result has no coordinates: measure with keep_coordinates=True")
    found = []
    for r, n, rank in chosen(result) if of is None else of:
        original = np.asarray(images[n])
        original = original / np.float32(255) if original.dtype == np.uint8 else original.astype(np.float32)
        perturbation = np.asarray(subspaces[r].embed(result.coordinates[r][n]))
        labels = int(result.label[r, n]), int(result.adversarial_label[r, n])
        found.append(Picture(r, n, rank, float(result.margin[r, n]), original, perturbation, *labels))
    return found


class Row(NamedTuple):
    """A picture as the page shows it: sources of images, and the texts beside them."""

    window: str
    image: int
    rank: str
    margin: float
    sources: tuple[str, str, str]
    factor: int
    before: str
    after: str


def rows(measurement: Measurement) -> list[Row]:
    """The pictures of a measurement."""
    found = []
    for picture in measurement.pictures:
        size = float(np.abs(picture.perturbation).max())
        factor = max((f for f in _FACTORS if f * size <= 0.5), default=1)
        views = (
            picture.original,
            0.5 + factor * picture.perturbation,
            picture.original + picture.perturbation,
        )
        first, second, third = map(source, views)
        found.append(
            Row(
                measurement.subspaces[picture.subspace],
                picture.image,
                picture.rank,
                picture.margin,
                (first, second, third),
                factor,
                measurement.label(picture.label),
                measurement.label(picture.adversarial_label),
            )
        )
    return found


def source(image: np.ndarray) -> str:
    """An image (height, width, channels), clipped to [0, 1], as an address that holds it."""
    from PIL import Image

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    if pixels.shape[2] not in (1, 3):  # of some other number of channels, their mean
        pixels = pixels.mean(2, keepdims=True).astype(np.uint8)
    kind = "png" if max(pixels.shape[:2]) <= _LARGE else "jpeg"
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, format=kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
