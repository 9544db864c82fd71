"""Subspaces that a data set spans: principal components, class means and Fisher's discriminant directions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _memory
from hmt_jax._checks import ImageShape, as_array, check_labels, integer
from hmt_jax._images import Images, ImageSource, as_floats
from hmt_jax.subspaces._base import Subspace
from hmt_jax.subspaces._complement import orthogonal_complement
from hmt_jax.subspaces._span import Span

_BYTES_AT_A_TIME = 2**26
_SHARE = 0.25  # of the memory that a process may use, for one array
# Directions in which standard deviations are less than this share of the greatest one count as constant.
_CONSTANT = 1e-4


def principal_components(
    images: ArrayLike | ImageSource | Iterable[Any], groups: Sequence[tuple[int | None, int | None]]
) -> list[Span]:
    """The spans of groups of principal components, the directions in which images vary, from the greatest variance on.

    Images are read once, chunk by chunk, into the sum of their products, in float64. If pixels are too many for that
    matrix, which has the square of their number of entries, all images must fit into memory. The same images give the
    same components. Components of equal variance are an arbitrary basis of their span, as where pixels are constant.

    Args:
      images: as for `hmt_jax.measure_margins`. 8-bit images are divided by 255.
      groups: (first, stop) for each group, as in a slice: (0, 32) are the 32 leading components, (32, 64) the next
        ones, and (-32, None) the trailing ones.

    Returns:
      A span for each group. Its coordinates are the scores of the components, except that no mean is subtracted.

    Raises:
      ValueError: if a group is empty, or there are too few images or too little memory for its components.

    >>> images = np.random.default_rng(0).uniform(size=(100, 4, 4, 1))
    >>> leading, trailing = principal_components(images, [(0, 5), (-2, None)])
    >>> leading.dimension, trailing.dimension
    (5, 2)
    """
    source = Images(images)
    num_pixels = math.prod(source.image_shape)
    if not (numbers := [_numbers(group, num_pixels) for group in groups]):
        raise ValueError("groups is empty: name at least one, such as (0, 32)")
    if _fits(num_pixels**2):
        _, products, _ = moments(rows_of(source), num_pixels)
        components = np.linalg.eigh(products)[1][:, ::-1]
    else:
        components = _components_of_few(_all_of(source), max(each.stop for each in numbers))
    return [_span(components[:, each.start : each.stop], source.image_shape) for each in numbers]


def class_means(images: ArrayLike | ImageSource | Iterable[Any], labels: ArrayLike) -> list[Subspace]:
    """The spans of the differences of class means and of Fisher's directions, and the complement of each.

    Fisher's discriminant directions are those of linear discriminant analysis: the directions in which means differ
    most relative to the variance within classes. Images are read once, chunk by chunk, as by `principal_components`.

    Args:
      images: as for `hmt_jax.measure_margins`. 8-bit images are divided by 255.
      labels: the class of each image, (N,).

    Returns:
      The span of the differences of class means, its orthogonal complement, the span of Fisher's directions, and its
      orthogonal complement. With C classes, the spans have dimension C - 1, or fewer if means are linearly dependent.
      Directions in which no class varies take no part in Fisher's.

    Raises:
      ValueError: if there is only one class, all means are equal, no class varies, labels do not fit, or memory is too
        little.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(90) % 3
    >>> images = rng.uniform(size=(90, 4, 4, 1)) + labels[:, None, None, None] * rng.uniform(size=(4, 4, 1))
    >>> [each.dimension for each in class_means(images, labels)]
    [2, 14, 2, 14]
    """
    source = Images(images)
    labels = np.asarray(as_array("labels", labels))
    check_labels("labels", labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels must be of two classes or more, got only {classes[0]}: pass images of others, too")
    num_pixels = math.prod(source.image_shape)
    if _fits(num_pixels**2):
        axes, counts, within, means = np.eye(num_pixels), *moments(rows_of(source), num_pixels, numbers)
    else:  # all that images tell about classes is in the span of their differences
        rows = _all_of(source)
        axes = _components_of_few(rows, min(len(rows) - 1, num_pixels))
        counts, within, means = moments([rows @ axes], axes.shape[1], numbers)
    _check_differ(means)
    between = np.sqrt(counts / counts.sum())[:, None] * (means - counts @ means / counts.sum())
    variances, vectors = np.linalg.eigh(within / counts.sum())
    if not variances[-1] > 0:
        raise ValueError("all images of a class are equal, so Fisher's directions are undefined: pass other images")
    is_kept = variances > _CONSTANT**2 * variances[-1]
    inverse = vectors[:, is_kept] / variances[is_kept] @ vectors[:, is_kept].T
    spans = [_span(axes @ _range_of(each), source.image_shape) for each in (between.T, inverse @ between.T)]
    return [each for span in spans for each in (span, orthogonal_complement(span))]


def _numbers(group, num_pixels: int) -> range:
    """The numbers of the components of a group."""
    if not isinstance(group, tuple | list) or len(group) != 2:
        raise ValueError(f"groups must be pairs (first, stop) of numbers of components, got {group!r}")
    first, stop = (None if each is None else integer("groups", each) for each in group)
    numbers = range(num_pixels)[first:stop]
    if not numbers or (stop is not None and stop > num_pixels):
        raise ValueError(f"the group {tuple(group)} has no components, or not all: there are {num_pixels}")
    return numbers


def _fits(num_entries: int) -> bool:
    return 8 * num_entries <= _SHARE * _memory.limit()


def rows_of(source: Images) -> Iterator[np.ndarray]:
    """Chunks of the images, as rows (n, D) of float64."""
    num_pixels = math.prod(source.image_shape)
    for chunk in source.chunks(max(_BYTES_AT_A_TIME // (8 * num_pixels), 1)):
        yield as_floats(chunk.own).reshape(-1, num_pixels).astype(np.float64)


def moments(
    chunks: Iterable[np.ndarray], num_pixels: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of images of each class, the sum of products within classes, and the means; one class if no labels."""
    num_classes = 1 if labels is None else labels.max() + 1
    counts, sums = np.zeros(num_classes), np.zeros((num_classes, num_pixels))
    products = np.zeros((num_pixels, num_pixels))
    shift: np.ndarray | None = None  # near the mean, so that little is lost when the means' products are subtracted
    num_read = 0
    for rows in chunks:
        own = np.zeros(len(rows), int) if labels is None else labels[num_read : num_read + len(rows)]
        num_read += len(rows)
        if len(own) < len(rows):
            break
        shift = rows.mean(axis=0) if shift is None else shift
        rows = rows - shift
        products += rows.T @ rows
        np.add.at(sums, own, rows)
        counts += np.bincount(own, minlength=num_classes)
    if labels is not None and num_read != len(labels):
        raise ValueError(f"labels must be one for each image, got {len(labels)} for at least {num_read} images")
    assert shift is not None  # there is at least one image
    means = sums / counts[:, None]
    return counts, products - (sums.T @ means), means + shift


def _all_of(source: Images) -> np.ndarray:
    """All images as rows (N, D) of float64, for images with more pixels than products of them fit into memory."""
    rows, num_images, num_pixels = [], 0, math.prod(source.image_shape)
    for chunk in rows_of(source):
        num_images += len(chunk)
        if not _fits(num_images * max(num_pixels, num_images)):
            raise ValueError(
                f"the images are more than fit into memory, and so are the products of their {num_pixels} pixels: pass "
                f"at most {num_images - len(chunk)} images, or smaller ones"
            )
        rows.append(chunk)
    return np.concatenate(rows)


def _components_of_few(rows: np.ndarray, num_components: int) -> np.ndarray:
    """The leading principal components of fewer images than pixels, as columns (D, num_components)."""
    if num_components >= len(rows):
        raise ValueError(
            f"{len(rows)} images have at most {len(rows) - 1} components that are known, without those at the end, but "
            f"the groups name component {num_components - 1}: pass more images, or other groups"
        )
    centred = rows - rows.mean(axis=0)
    scores = np.linalg.eigh(centred @ centred.T)[1][:, ::-1][:, :num_components]
    return np.linalg.qr(centred.T @ scores)[0]


def _check_differ(means: np.ndarray) -> None:
    if np.ptp(means, axis=0).max() <= 1e-12 * np.abs(means).max():
        raise ValueError("the means of all classes are equal, so no direction tells them apart: pass other images")


def _range_of(vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the span of columns, without directions that rounding alone has made."""
    u, s, _ = np.linalg.svd(vectors, full_matrices=False)
    return u[:, s > 1e-7 * s[0]]


def _span(basis: np.ndarray, image_shape: ImageShape) -> Span:
    # The sign of a component is arbitrary: its greatest entry is made positive.
    greatest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return Span(jnp.asarray(basis * np.where(greatest < 0, -1, 1)), image_shape)
