"""Images as users pass them (arrays, memory maps, sources, streams), cut into equal chunks, and checks of pixels."""

import concurrent.futures
import itertools
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, as_array, check_type
from hmt_jax._misc import warn
from hmt_jax.frequency import flip

# Above the float32 rounding of flipping an image and flipping it back; one 8-bit level is 4e-3.
_RANGE_TOLERANCE = 1e-3
_BYTES_AT_A_TIME = 2**24
# Threads that read a source, whose images may have to be decoded, and the images that one reads at a time.
_NUM_THREADS, _NUM_AT_A_TIME = 4, 16

_Array = TypeVar("_Array")


class PixelRangeWarning(UserWarning):
    """Pixels are outside [0, 1], and flipped frequencies do not explain it.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", PixelRangeWarning)  # within this block, such images are an error
    """


class Chunk(NamedTuple):
    """A chunk of images. Images before the last `num_images` are padding."""

    images: np.ndarray  # (S, height, width, channels)
    num_images: int  # images that are not padding

    @property
    def own(self) -> np.ndarray:
        """The images that are not padding."""
        return self.images[-self.num_images :]


class ImageSource(Protocol):
    """Images by number, each (height, width, channels) alone or with its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Images:
    """Images to be read chunk by chunk: a stream once, others as often as they are needed.

    Attributes:
      image_shape: (height, width, channels).
      dtype: the dtype of the images.
      num_images: the number of images; None for a stream.
    """

    def __init__(self, images: ArrayLike | ImageSource | Iterable[Any]):
        if isinstance(images, jax.core.Tracer):
            raise TypeError("many images can't be measured in compiled code: use hmt_jax.measure_margin there")
        self._array: np.ndarray | None = None
        self._source: _Source | None = None
        self.num_images: int | None = None
        if hasattr(images, "__array__") or (isinstance(images, list | tuple) and not _are_batches(images)):
            self._array = array = np.asarray(as_array("images", images))
            check_images(array)
            self.num_images = len(array)
            self.image_shape: ImageShape = array.shape[1:]
            self.dtype = array.dtype
            return
        if (first := _first_of_source(images)) is not None:
            self._source = _Source(images, first)
            self.num_images = len(self._source)
            self.image_shape, self.dtype = first.shape, first.dtype
            return
        if not isinstance(images, Iterable):
            raise TypeError(
                "images must be an array (N, height, width, channels), a source of images by number, or an iterable of "
                f"batches, got {type(images).__name__}"
            )
        self._batches: Iterator[np.ndarray] = _batches(images)
        first = next(self._batches, None)
        if first is None:
            raise ValueError("images is an iterable without batches: pass a new one, since an iterator is read once")
        self.image_shape, self.dtype = first.shape[1:], first.dtype
        self._batches = itertools.chain([first], self._batches)

    def chunks(self, size: int, numbers: Collection[int] | None = None) -> Iterator[Chunk]:
        """The images in order, in chunks of `size` images, or of all images if there are fewer.

        With `numbers`, only the chunks of these numbers; those of a stream are read all the same.
        """
        if self._array is not None:
            for chunk in cut(self._array, size, numbers):
                yield chunk
                _release(self._array)
        elif self._source is not None:
            yield from self._source.chunks(size, numbers)
        else:
            chunks = enumerate(self._chunks_of_stream(size))
            yield from (chunk for number, chunk in chunks if numbers is None or number in numbers)

    def _chunks_of_stream(self, size) -> Iterator[Chunk]:
        waiting: list[np.ndarray] = []
        num_waiting, is_first = 0, True
        error: Exception | None = None
        while True:
            try:
                batch = next(self._batches, None)
            except Exception as raised:  # raised again once the images before it are measured
                batch, error = None, raised
            if batch is None:
                break
            # Copied, because the stream may write its next batch to the same memory; and cut where a chunk ends.
            for first in range(-num_waiting, len(batch), size):
                waiting.append(batch[max(first, 0) : first + size].copy())
                num_waiting += len(waiting[-1])
                if num_waiting == size:
                    yield Chunk(np.concatenate(waiting), size)
                    waiting, num_waiting, is_first = [], 0, False
        if num_waiting:
            yield Chunk(_filled(np.concatenate(waiting), num_waiting if is_first else size), num_waiting)
        if error is not None:
            raise error


class _Source:
    """Images by number, which threads read: those of the next chunk while a chunk is in use."""

    def __init__(self, images: Any, first: np.ndarray):
        self._images, self._first = images, first

    def __len__(self) -> int:
        return len(self._images)

    def chunks(self, size: int, numbers: Collection[int] | None) -> Iterator[Chunk]:
        order = range(-(-len(self) // size)) if numbers is None else sorted(numbers)
        firsts = [number * size for number in order]
        threads = concurrent.futures.ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="hmt_jax-read")
        try:
            ahead = [self._read(threads, first, size) for first in firsts[:1]]
            for following in itertools.chain(firsts[1:], [None]):
                images = np.concatenate([part.result() for part in ahead.pop()])
                if following is not None:
                    ahead.append(self._read(threads, following, size))
                yield Chunk(_filled(images, min(size, len(self))), len(images))
        finally:
            threads.shutdown(cancel_futures=True)

    def _read(self, threads, first: int, size: int) -> list[concurrent.futures.Future]:
        last = min(first + size, len(self))
        parts = [range(part, min(part + _NUM_AT_A_TIME, last)) for part in range(first, last, _NUM_AT_A_TIME)]
        return [threads.submit(self._part, part) for part in parts]

    def _part(self, numbers: range) -> np.ndarray:
        return np.stack([self._image(number) for number in numbers])

    def _image(self, number: int) -> np.ndarray:
        image = _image_of(self._images[number])
        if image is None or (image.shape, image.dtype) != (self._first.shape, self._first.dtype):
            found = "is no array (height, width, channels)" if image is None else f"has {image.shape} {image.dtype}"
            raise ValueError(
                f"all images must have one shape and type, but image {number} {found}, and the first one has "
                f"{self._first.shape} {self._first.dtype}: resize or crop them"
            )
        return image


def checked_for_range(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same chunks, with a warning at the first one whose pixels are outside [0, 1]."""
    has_warned = False
    for chunk in chunks:
        has_warned = has_warned or _warn_of_range(chunk.own)
        yield chunk


def cut(images: np.ndarray, size: int, numbers: Collection[int] | None = None) -> Iterator[Chunk]:
    """Chunks of `size` images, or of all images if there are fewer, in order; with `numbers`, only those of them.

    They are views, so that nothing is copied: the last chunk overlaps the one before.
    """
    size = min(size, len(images))
    for number, first in enumerate(range(0, len(images), size)):
        if numbers is None or number in numbers:
            last = min(first + size, len(images))
            yield Chunk(images[last - size : last], last - first)


def as_floats(images: _Array) -> _Array:
    """Images in [0, 1]: 8-bit images divided by 255, other images unchanged."""
    pixels: Any = images
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else images


def check_range(images: Any, attack: Any) -> None:
    """Warns of pixels outside [0, 1] if an attack keeps pixels inside: it can't move them, which looks like robustness.

    Warns:
      PixelRangeWarning: if there are such pixels, and flipped frequencies do not explain them.
    """
    if getattr(attack, "domain", "unbounded") != "unbounded":
        _warn_of_range(images, "or an attack with domain='unbounded', because this one moves no pixel out of [0, 1]")


def _are_batches(images) -> bool:
    """Whether a list holds batches, or pairs of images and labels, rather than images."""
    first = images[0] if len(images) else None
    is_pair = isinstance(first, tuple | list) and len(first) > 0 and hasattr(first[0], "ndim")
    return is_pair or isinstance(first, dict) or getattr(first, "ndim", 0) == 4


def _first_of_source(images: Any) -> np.ndarray | None:
    """The first image of a source; None for anything else."""
    if isinstance(images, Mapping | str) or not (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
        return None
    if not len(images):
        raise ValueError("images is empty: pass at least one image")
    first = _image_of(images[0])
    if first is not None:
        check_images(first[None])
    return first


def _image_of(sample: Any) -> np.ndarray | None:
    """The image of a sample of a source, which is an image or (image, label); None for anything else."""
    image = sample[0] if isinstance(sample, tuple | list) and len(sample) == 2 else sample
    is_image = hasattr(image, "__array__") and np.ndim(image) == 3
    return np.asarray(as_array("images", image)) if is_image else None


def _batches(images) -> Iterator[np.ndarray]:
    first = None
    for number, batch in enumerate(images):
        is_pair = isinstance(batch, tuple | list) and len(batch) > 0
        rows = batch[0] if is_pair else batch
        is_two = is_pair and len(batch) > 1 and getattr(batch[1], "ndim", 0) > 2
        if is_two or isinstance(rows, str | dict) or not hasattr(rows, "__array__"):
            raise TypeError(
                "images must be an iterable of arrays, or of pairs (images, labels), but batch "
                f"{number} is of type {type(batch).__name__}"
            )
        rows = np.asarray(as_array("images", rows))
        if rows.ndim == 4 and not len(rows):
            continue
        check_images(rows)
        first = rows if first is None else first
        if (rows.shape[1:], rows.dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"all batches must have images of one shape and type, but batch {number} has {rows.shape[1:]} "
                f"{rows.dtype}, and the first one {first.shape[1:]} {first.dtype}"
            )
        yield rows


def _filled(images, size) -> np.ndarray:
    """The images after as many copies of the first one as make `size` images."""
    return images[np.maximum(np.arange(len(images) - size, len(images)), 0)]


def _release(array: Any) -> None:
    """Frees the memory of file pages that have been read, because the file may be larger than the memory."""
    base, is_shared = array, False
    while isinstance(base, np.ndarray):
        # Of a private mapping, mode "c" or not of NumPy's making, the changes would be lost.
        is_shared = base.mode != "c" if isinstance(base, np.memmap) else is_shared
        base = base.base
    if is_shared and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def check_images(images: Any) -> None:
    """Raises ValueError unless these are images (N, height, width, channels), uint8 or floating point."""
    if not images.size:
        raise ValueError(f"images is empty, with shape {images.shape}: pass at least one image")
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (N, height, width, channels), got {images.shape}; add the channel axis of grey "
            "images with images[..., None], and the batch axis of one image with image[None]"
        )
    check_type("images", images)


def _warn_of_range(images, remedy: str = "or silence hmt_jax.PixelRangeWarning if this is intended") -> bool:
    """Warns of pixels outside [0, 1], and returns whether it did."""
    if images.dtype == np.uint8:
        return False
    size = max(_BYTES_AT_A_TIME // images[0].nbytes, 1)
    num_unexplained, low, high = 0, np.inf, -np.inf
    for first in range(0, len(images), size):
        rows = np.asarray(images[first : first + size])
        _release(rows)
        is_outside = _leaves_range(rows) & np.isfinite(rows).all(axis=(1, 2, 3))
        if is_outside.any():
            is_outside[is_outside] = _leaves_range(np.asarray(flip(rows[is_outside])))
            worst = rows[is_outside].astype(float)
            num_unexplained += len(worst)
            low, high = np.min(worst, initial=low), np.max(worst, initial=high)
    if num_unexplained:
        warn(
            f"pixels of {num_unexplained} of {len(images)} images leave [0, 1], from {low:.3g} to {high:.3g}: pass "
            f"images before normalisation, 8-bit or divided by 255, {remedy}",
            PixelRangeWarning,
        )
    return num_unexplained > 0


def _leaves_range(images) -> np.ndarray:
    return ((images < -_RANGE_TOLERANCE) | (images > 1 + _RANGE_TOLERANCE)).any(axis=(1, 2, 3))
