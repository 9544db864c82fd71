"""Subspaces that a data set spans: principal components, class means and Fisher's discriminant directions."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, as_array, check_labels, integer
from hmt_jax._images import Images, ImageSource
from hmt_jax.subspaces import _rows
from hmt_jax.subspaces._base import Subspace
from hmt_jax.subspaces._complement import orthogonal_complement
from hmt_jax.subspaces._span import Span

# Directions in which standard deviations are less than this share of the greatest one count as constant.
_CONSTANT = 1e-4


def principal_components(
    images: ArrayLike | ImageSource | Iterable[Any], groups: Sequence[tuple[int | None, int | None]]
) -> list[Span]:
    """The spans of groups of principal components, the directions in which images vary, from the greatest variance on.

    Images are read once, chunk by chunk, into the products (D, D) of their D pixels, in float64. If these take more
    than a quarter of memory, the products (N, N) of the N images less their mean are used instead, and images are read
    several times: for their mean, for the products, and for the components. Then K components take memory for N^2 and
    D K numbers, a stream must fit into memory because it can be read only once, and only components along which images
    vary are known. These are at most N - 1, of which (N - 33, N - 1) are the 32 trailing ones.

    The same images give the same components, bit for bit on one machine. Their error from rounding grows with the
    square of the ratio of the greatest standard deviation to their own: it is about 1e-6 for a ratio of 1e5. Components
    of equal variance, such as those of constant pixels, are an arbitrary basis of their span.

    Args:
      images: as for `hmt_jax.measure_margins`. 8-bit images are divided by 255.
      groups: (first, stop) for each group, as in a slice: (0, 32) are the 32 leading components, (32, 64) the next
        ones, and (-32, None) the trailing ones.

    Returns:
      A span for each group. Its coordinates are the scores of the components, except that no mean is subtracted.

    Raises:
      ValueError: if there is no group, a group is empty, there are too few images or too little memory for its
        components, or a pixel is NaN or infinite.

    >>> images = np.random.default_rng(0).uniform(size=(100, 4, 4, 1))
    >>> leading, trailing = principal_components(images, [(0, 5), (-2, None)])
    >>> leading.dimension, trailing.dimension
    (5, 2)
    """
    source = Images(images)
    num_pixels = math.prod(source.image_shape)
    if not (numbers := [_numbers(group, num_pixels) for group in groups]):
        raise ValueError("groups is empty: name at least one, such as (0, 32)")
    wanted = sorted(set().union(*numbers))
    if _rows.fits(num_pixels**2):
        _, products, _ = _rows.moments(_rows.rows_of(source), num_pixels)
        components = _eigh(products)[1][:, wanted]
    else:
        components = _components_of_few(source, wanted)
    return [_span(components[:, np.searchsorted(wanted, each)], source.image_shape) for each in numbers]


def class_means(images: ArrayLike | ImageSource | Iterable[Any], labels: ArrayLike) -> list[Subspace]:
    """The spans of the differences of class means and of Fisher's directions, and the complement of each.

    Fisher's discriminant directions are those of linear discriminant analysis: the directions in which means differ
    most relative to the variance within classes. Images are read chunk by chunk, as by `principal_components`.

    Args:
      images: as for `hmt_jax.measure_margins`. 8-bit images are divided by 255.
      labels: the class of each image, (N,).

    Returns:
      The span of the differences of class means, its orthogonal complement, the span of Fisher's directions, and its
      orthogonal complement. With C classes, the spans have dimension C - 1, or fewer if means are linearly dependent.
      Fisher's directions contain no direction in which no class varies.

    Raises:
      ValueError: if there is only one class, all means are equal, no class varies, labels are not one for each image,
        there is too little memory, or a pixel is NaN or infinite.

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
        found = f"only {classes[0]}" if len(classes) else "none"
        raise ValueError(f"labels must be of two classes or more, got {found}: pass images of others, too")
    num_pixels = math.prod(source.image_shape)
    if _rows.fits(num_pixels**2):
        counts, within, means = _rows.moments(_rows.rows_of(source), num_pixels, numbers)
        between = _between(counts, means)
        variances, vectors = _varying(within)
        white = vectors / np.sqrt(variances)
        fisher = white @ _range_of(white.T @ between)
    else:
        _check_fit("means of classes", len(classes), num_pixels)
        centred = _rows.Centred(source, numbers)
        between = _between(centred.counts, centred.means)
        # X = U S V^T has products U S^2 U^T, and V S^-1 = X^T U S^-2.
        variances, vectors = _varying(centred.products())
        white = vectors / variances
        fisher = centred.combined(white @ _range_of(white.T @ centred.times(between)))
    # Columns of greatly different lengths: they are told from rounding where variances within classes are 1.
    spans = [_span(basis, source.image_shape) for basis in (_range_of(between), np.linalg.qr(fisher)[0])]
    return [each for span in spans for each in (span, orthogonal_complement(span))]


def _numbers(group, num_pixels: int) -> range:
    """The numbers of the components of a group."""
    if not isinstance(group, tuple | list) or len(group) != 2:
        raise ValueError(f"groups must be pairs (first, stop) of numbers of components, got {group!r}")
    first, stop = (None if each is None else integer("groups", each) for each in group)
    numbers = range(num_pixels)[first:stop]
    if not numbers or (stop is not None and stop > num_pixels) or (first is not None and first < -num_pixels):
        raise ValueError(
            f"the group {tuple(group)} must name at least one of the {num_pixels} components, and no others"
        )
    return numbers


def _components_of_few(source: Images, wanted: Sequence[int]) -> np.ndarray:
    """The principal components with the wanted numbers, (D, len(wanted)), of fewer images than pixels."""
    import scipy.linalg  # which takes a second

    num_pixels = math.prod(source.image_shape)
    _check_fit("components", len(wanted), num_pixels)
    centred = _rows.Centred(source)
    _check_known(wanted[-1], centred.num_images - 1, centred.num_images)
    variances, vectors = _eigh(centred.products())
    is_known = variances > len(variances) * np.finfo(float).eps * variances[0]
    _check_known(wanted[-1], min(np.sum(is_known), centred.num_images - 1), centred.num_images)
    components = centred.combined(vectors[:, wanted])
    return scipy.linalg.qr(components, overwrite_a=True, mode="economic")[0]


def _check_known(last: int, num_known: int, num_images: int) -> None:
    if not num_known:
        raise ValueError("all images are equal, so they have no principal components: pass images that differ")
    if last >= num_known:
        raise ValueError(
            f"at most the {num_known} leading components of {num_images} images are known, but groups name component "
            f"{last}: pass more images that differ, or end groups at {num_known}"
        )


def _check_fit(name: str, number: int, num_pixels: int) -> None:
    if not _rows.fits(number * num_pixels):
        raise ValueError(f"{number} {name} of {num_pixels} pixels do not fit into memory: ask for fewer at a time")


def _eigh(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues, from the greatest on, and eigenvectors of a matrix given on and below its diagonal.

    The matrix is overwritten, and the result takes as much memory again.
    """
    import scipy.linalg  # which takes a second

    # LAPACK stores matrices by columns, so the transpose needs no copy. NumPy's eigh takes several times the memory.
    values, vectors = scipy.linalg.eigh(products.T, lower=False, overwrite_a=True, driver="evr")
    return values[::-1], vectors[:, ::-1]


def _varying(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues and eigenvectors of products within classes, without directions that count as constant."""
    variances, vectors = _eigh(products)
    if not variances[0] > 0:
        raise ValueError(
            "within each class all images are equal, so Fisher's directions are undefined: pass other images"
        )
    num_kept = np.sum(variances > _CONSTANT**2 * variances[0])
    return variances[:num_kept], vectors[:, :num_kept]


def _between(counts: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The differences of class means from the mean of all images, times the root of their shares, as columns (D, C)."""
    if np.ptp(means, axis=0).max() <= 1e-12 * np.abs(means).max():
        raise ValueError("the means of all classes are equal, so no direction tells them apart: pass other images")
    shares = counts / counts.sum()
    return (np.sqrt(shares)[:, None] * (means - shares @ means)).T


def _range_of(vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the span of C columns that depend on each other, without what rounding alone has made."""
    u, s, _ = np.linalg.svd(vectors, full_matrices=False)
    return u[:, s > 1e-7 * s[0]][:, : vectors.shape[1] - 1]


def _span(basis: np.ndarray, image_shape: ImageShape) -> Span:
    # The sign of a component is arbitrary: its greatest entry is made positive.
    greatest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return Span(jnp.asarray(basis * np.where(greatest < 0, -1, 1)), image_shape)
