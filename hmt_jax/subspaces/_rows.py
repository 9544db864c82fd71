"""Images as rows of pixels: their moments, and products of images with each other if there are too many pixels."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from hmt_jax import _memory
from hmt_jax._images import Images, as_floats

_BYTES_AT_A_TIME = 2**26
# Rows held in memory while later images are read once and multiplied by them: so many that reading takes less time.
_BYTES_HELD = 2**30
_SHARE = 0.25  # of the memory that a process may use, for one array


def fits(num_entries: int) -> bool:
    """Whether one array of so many float64 entries is small enough for the memory that this process may use."""
    return 8 * num_entries <= _SHARE * _memory.limit()


def rows_of(source: Images, first_chunk: int = 0) -> Iterator[np.ndarray]:
    """Chunks of the images, as rows (n, D) of float64, from chunk `first_chunk` on.

    The number of images in a chunk depends only on the number of their pixels.
    """
    size = _chunk_size(source)
    numbers = range(first_chunk, -(-source.num_images // size)) if first_chunk and source.num_images else None
    first = first_chunk * size
    for chunk in source.chunks(size, numbers):
        rows = as_floats(chunk.own).reshape(chunk.num_images, -1).astype(np.float64)
        if not (is_finite := np.isfinite(rows).all(axis=1)).all():
            number = first + int(np.argmin(is_finite))
            raise ValueError(f"image {number} has pixels that are NaN or infinite: leave it out")
        yield rows
        first += len(rows)


def moments(
    chunks: Iterable[np.ndarray], num_pixels: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The counts (C,), the sum of centred products (D, D) and the means (C, D) of C classes; of one, without labels."""
    num_classes = 1 if labels is None else labels.max() + 1
    counts, sums = np.zeros(num_classes), np.zeros((num_classes, num_pixels))
    products = np.zeros((num_pixels, num_pixels))
    starts = _starts(labels)
    shifts = np.zeros_like(sums)  # near the means, so that little is lost when the means' products are subtracted
    num_read = 0
    for rows in chunks:
        own = np.zeros(len(rows), int) if labels is None else labels[num_read : num_read + len(rows)]
        is_new = (num_read <= starts) & (starts < num_read + len(rows))
        num_read += len(rows)
        if len(own) < len(rows):
            break
        for label in np.flatnonzero(is_new):
            shifts[label] = _mean(rows[own == label])
        rows = rows - shifts[own]
        products += rows.T @ rows
        np.add.at(sums, own, rows)
        counts += np.bincount(own, minlength=num_classes)
    if labels is not None and num_read != len(labels):
        raise ValueError(f"labels must be one for each image, got {len(labels)} for at least {num_read} images")
    means = sums / counts[:, None]
    products -= sums.T @ means
    return counts, products, means + shifts


class Centred:
    """N images less the mean of their class, as rows X (N, D) that are read again whenever they are needed.

    Memory is taken by results, by the means, and by at most 1 GiB of rows and the chunk that is read.

    Attributes:
      counts: the number of images of each class, (C,).
      means: the mean of each class, (C, D).

    Raises:
      ValueError: if the products of all images, or the images of a stream, do not fit into memory, or labels are not
        one for each image.
    """

    def __init__(self, source: Images, labels: np.ndarray | None = None):
        self._source = _to_read_again(source)
        assert self._source.num_images is not None
        self.num_images, self.num_pixels = self._source.num_images, math.prod(source.image_shape)
        if not fits(self.num_images**2):
            most = math.isqrt(int(_SHARE * _memory.limit() / 8))
            raise ValueError(
                f"neither the products of {self.num_pixels} pixels nor those of {self.num_images} images fit into "
                f"memory: pass at most {most} images, or smaller ones"
            )
        self._labels = np.zeros(self.num_images, int) if labels is None else labels
        if len(self._labels) != self.num_images:
            raise ValueError(f"labels must be one for each image, got {len(self._labels)} for {self.num_images} images")
        self.counts = np.bincount(self._labels)
        self.means = np.zeros((len(self.counts), self.num_pixels))
        starts, sums = _starts(self._labels), np.zeros_like(self.means)
        for part, rows in self._rows():
            is_new = (part.start <= starts) & (starts < part.stop)
            own = self._labels[part]
            for label in np.flatnonzero(is_new):
                shift = _mean(rows[own == label])
                self.means[label] = shift
                rows[own == label] -= shift
            np.add.at(sums, own, rows)
        self.means += sums / self.counts[:, None]

    def products(self) -> np.ndarray:
        """X X^T, (N, N), on and below its diagonal.

        Rows are held in memory part by part. For each part, the rows from its first one on are read once.
        """
        found = np.zeros((self.num_images, self.num_images))
        size = _chunk_size(self._source)
        num_bytes = int(min(_BYTES_HELD, _SHARE * _memory.limit()))
        num_held = size * max(num_bytes // (8 * self.num_pixels * size), 1)
        held = np.empty((min(num_held, self.num_images), self.num_pixels))
        for start in range(0, self.num_images, num_held):
            for part, rows in self._rows(start // size):
                if part.start < start + num_held:
                    held[part.start - start : part.stop - start] = rows
                stop = min(start + num_held, part.stop)
                found[part, start:stop] = rows @ held[: stop - start].T
        return found

    def times(self, vectors: np.ndarray) -> np.ndarray:
        """X B, (N, K), for vectors B (D, K)."""
        return np.concatenate([rows @ vectors for _, rows in self._rows()])

    def combined(self, weights: np.ndarray) -> np.ndarray:
        """X^T W, (D, K), for weights W (N, K)."""
        found = np.zeros((weights.shape[1], self.num_pixels))
        for part, rows in self._rows():
            found += weights[part].T @ rows
        return found.T

    def _rows(self, first_chunk: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        first = first_chunk * _chunk_size(self._source)
        for rows in rows_of(self._source, first_chunk):
            part = slice(first, first + len(rows))
            rows -= self.means[self._labels[part]]
            yield part, rows
            first = part.stop


def _starts(labels: np.ndarray | None) -> np.ndarray:
    """The number of the first image of each class."""
    return np.zeros(1, int) if labels is None else np.unique(labels, return_index=True)[1]


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean of rows; that of equal ones is the row itself, bit for bit, so that nothing is left of them less it."""
    return rows[0] + (rows - rows[0]).mean(axis=0)


def _chunk_size(source: Images) -> int:
    return max(_BYTES_AT_A_TIME // (8 * math.prod(source.image_shape)), 1)


def _to_read_again(source: Images) -> Images:
    """The images of a stream, which can be read only once, as an array; others as they are."""
    if source.num_images is not None:
        return source
    kept, num_bytes = [], 0
    for chunk in source.chunks(_chunk_size(source)):
        num_bytes += chunk.own.nbytes
        if not fits(num_bytes // 8):
            raise ValueError(
                "images is a stream, which can be read only once, and neither its images nor the products of their "
                f"{math.prod(source.image_shape)} pixels fit into memory: pass an array, a memory map, or a source of "
                "images by number"
            )
        kept.append(chunk.own)
    return Images(np.concatenate(kept))
