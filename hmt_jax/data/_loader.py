"""Batches of data too big for the memory: Grain reads, shuffles and shares them out, `prefetch` transfers them."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from hmt_jax._checks import as_array, integer
from hmt_jax._extras import require


class Source(Protocol):
    """Samples by number: each is an image (height, width, channels) and its label, a whole number from 0.

    >>> source: Source = [(np.zeros((8, 8, 3), np.uint8), 4)]
    >>> image, label = source[0]
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Batches of a source, epoch by epoch; `loader` makes one.

    Attributes:
      source: the samples.
      batch_size: samples in a batch, over all processes.
      seed: seed of the samples' order.
      num_workers: threads that read batches ahead.
      shuffle: whether each epoch has a random order.
      process_index: number of this process.
      process_count: number of processes that share each batch.

    >>> batches = loader([(np.zeros((8, 8, 3), np.uint8), label) for label in range(5)], batch_size=2)
    >>> batches.num_samples, len(list(batches.epoch(0)))
    (5, 3)
    """

    source: Source = dataclasses.field(repr=False)
    batch_size: int
    seed: int
    num_workers: int
    shuffle: bool
    process_index: int
    process_count: int

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all processes."""
        return len(self.source)

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch: images (B, height, width, channels) as the source has them, labels (B,) int32.

        They depend on the seed and the number alone, so that interrupted training can resume at any epoch.

        Args:
          number: number of the epoch, from 0.

        Raises:
          ValueError: if the number is negative; and, once its batch is reached, if images differ in shape or labels are
            not whole numbers. Errors of the source are passed on.
        """
        import grain

        if integer("number", number) < 0:
            raise ValueError(f"number must be at least 0, got {number}: epochs count from 0")
        samples = grain.MapDataset.source(self.source)
        if self.shuffle:
            # Grain itself adds the epoch's number to the seed, so that two seeds would share orders.
            (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1)
            samples = samples.shuffle(seed=int(seed))
        size = self.batch_size // self.process_count
        if self.process_count > 1:
            is_here = np.arange(self.num_samples) % self.batch_size // size == self.process_index
            places, whole = np.flatnonzero(is_here), samples
            samples = grain.MapDataset.range(len(places)).map(lambda i: whole[int(places[i])])
        batches = samples.batch(size, batch_fn=_stack)
        # Threads read whole batches, because handing over a single small sample costs Grain more than reading it. With
        # two batches each, a thread need not wait until its finished batch is fetched.
        options = grain.ReadOptions(num_threads=self.num_workers, prefetch_buffer_size=2 * self.num_workers)
        return iter(batches.to_iter_dataset(options))


def loader(source: Source, *, batch_size: int, seed: int = 0, num_workers: int = 0, shuffle: bool = True) -> Loader:
    """Batches of a source that need not fit into memory, such as an `image_folder`.

    Each sample is in an epoch once; the last batch may be smaller. If JAX runs in several processes, each reads its own
    rows of every batch, and all shares of a batch have the same size. Those of a smaller last batch may differ, and a
    process that has none of it gets one batch fewer. In loops of your own, take only the
    `num_samples // batch_size` whole batches then.

    Args:
      source: samples (image, label) by number, for example a list of them. Images (height, width, channels) have one
        shape, and labels are whole numbers from 0.
      batch_size: samples in a batch, over all processes.
      seed: seed of the samples' order, a whole number from 0.
      num_workers: number of threads that read batches ahead; each keeps up to two in memory, and the source must allow
        several threads. With 0, a batch is read when it is asked for.
      shuffle: whether each epoch has a random order, rather than that of the source.

    Returns:
      A `Loader`, whose `epoch(number)` iterates over the batches of an epoch.

    Raises:
      ValueError: if the source has no samples, fewer than several processes need to fill a batch, or other samples than
        (image, label); if batch_size is not divisible by the number of processes; or if a number is out of range.
      ModuleNotFoundError: if Grain is missing.

    >>> source = [(np.zeros((8, 8, 3), np.uint8), label) for label in range(5)]
    >>> batches = loader(source, batch_size=2, shuffle=False)
    >>> [(images.shape, labels.tolist()) for images, labels in batches.epoch(0)]
    [((2, 8, 8, 3), [0, 1]), ((2, 8, 8, 3), [2, 3]), ((1, 8, 8, 3), [4])]
    """
    require("batches of a loader", "data", "grain")
    for name, value, lowest in (("batch_size", batch_size, 1), ("seed", seed, 0), ("num_workers", num_workers, 0)):
        if integer(name, value) < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    if not isinstance(shuffle, bool | np.bool_):
        raise ValueError(f"shuffle must be True or False, got {shuffle!r}")
    if isinstance(source, Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"source must return samples (image, label) by number, as a list does, got {type(source).__name__}: "
            "pass list(zip(images, labels)), or an object with __len__ and __getitem__"
        )
    process_count = jax.process_count()
    if batch_size % process_count:
        raise ValueError(
            f"batch_size must be divisible by the number of processes, got {batch_size} and {process_count}: take "
            f"{-(-batch_size // process_count) * process_count}"
        )
    if len(source) < (batch_size if process_count > 1 else 1):
        raise ValueError(
            "source must have a sample, and fill a batch if several processes share it, got "
            f"{len(source)} samples for batch_size {batch_size} and {process_count} processes: pass more samples"
        )
    _check_sample(source[0])
    return Loader(source, batch_size, seed, num_workers, shuffle, jax.process_index(), process_count)


def prefetch(batches: Iterable[Any], sharding: jax.sharding.Sharding | None = None, size: int = 2) -> Iterator[Any]:
    """The same batches on the device, in order; each is on its way there before it is asked for.

    Args:
      batches: arrays, or pytrees of them, such as an epoch of a `loader`.
      sharding: where to put every array; on the default device if not given. If JAX runs in several processes, each
        passes its share of the arrays, and gets arrays of all shares.
      size: number of batches on the device or on their way, including the one that was asked for last.

    Raises:
      ValueError: if the size is below 1, the batches are not iterable, or the sharding is of another type; and, once
        its batch is reached, if the sharding can't divide an array. Smaller batches, such as the last one of an epoch,
        often can't be divided: pad them, or leave them out.

    >>> [batch.tolist() for batch in prefetch(np.arange(6).reshape(3, 2))]
    [[0, 1], [2, 3], [4, 5]]
    """
    if integer("size", size) < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not isinstance(batches, Iterable):
        remedy = "pass one of its epochs, loader.epoch(0)" if isinstance(batches, Loader) else "pass a list of them"
        raise ValueError(f"batches must be an iterable of batches, got {type(batches).__name__}: {remedy}")
    if not isinstance(sharding, jax.sharding.Sharding | None):
        raise ValueError(
            f"sharding must be a jax.sharding.Sharding, got {type(sharding).__name__}: make one, such as "
            "jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))"
        )
    return _prefetch(batches, sharding, size)


def _prefetch(batches, sharding, size):
    queue: collections.deque[Any] = collections.deque()
    for batch in batches:
        batch = jax.tree.map(functools.partial(as_array, "batches"), batch)
        if sharding is None:
            queue.append(jax.device_put(batch))
        else:
            queue.append(jax.make_array_from_process_local_data(sharding, batch))
        if len(queue) == size:
            yield queue.popleft()
    yield from queue


def _check_sample(sample):
    is_pair = isinstance(sample, tuple) and len(sample) == 2
    if not is_pair or np.ndim(sample[0]) != 3 or not _is_whole_number(sample[1]):
        raise ValueError(
            "source must have samples (image, label), with images (height, width, channels) and whole numbers for "
            f"labels, but one is {_describe(sample)}: wrap it in a source of such pairs"
        )


def _is_whole_number(label):
    return np.ndim(label) == 0 and np.issubdtype(np.asarray(label).dtype, np.integer)


def _describe(sample):
    if not isinstance(sample, tuple):
        return f"a {type(sample).__name__}"
    return f"({', '.join(f'{array.dtype} {array.shape}' for array in map(np.asarray, sample))})"


def _stack(samples):
    for sample in samples:
        _check_sample(sample)
    images, labels = zip(*samples, strict=True)
    shapes = {np.shape(image) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"images of a source must have one shape, got {', '.join(map(str, sorted(shapes)))}: resize or crop them"
        )
    if not 0 <= min(labels) <= max(labels) <= np.iinfo(np.int32).max:
        raise ValueError(
            f"labels of a source must be whole numbers from 0 in int32, got {min(labels)} to {max(labels)}: number its "
            "classes from 0"
        )
    return np.stack(images), np.array(labels, np.int32)
