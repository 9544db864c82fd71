"""Streams: batches from the host, checked and shared by processes."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from hmt_jax import _batches, _checks, _processes
from hmt_jax._images import check_range


class Stream(Protocol):
    """A source of batches on the host, such as `hmt_jax.data.loader` returns.

    An epoch yields every sample once, in batches (images (B, height, width, channels), labels (B,)) of NumPy arrays, in
    an order that depends only on the number of the epoch. B is `batch_size`, except that the last batch may be smaller.

    If P processes train together, each has a stream of its own, which yields only this process's rows of every batch:
    process p has rows p B / P to (p + 1) B / P - 1, as far as the batch has them. If the last batch has none of them,
    the stream yields nothing for it.

    Attributes:
      num_samples: number of samples in an epoch, over all processes.
      batch_size: number of samples in a batch, over all processes.

    >>> from hmt_jax import data
    >>> stream: Stream = data.loader([(np.zeros((2, 2, 1), np.uint8), 0)] * 5, batch_size=2)
    >>> stream.num_samples, [len(images) for images, labels in stream.epoch(0)]
    (5, [2, 2, 1])
    """

    num_samples: int
    batch_size: int

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch. Epochs are counted from 0."""
        ...


def check_can_share(stream: Stream, mesh: Mesh) -> None:
    """Raises ValueError for a stream of another number of processes, or one that can't fill a batch for several."""
    num_processes = _processes.count(mesh)
    if (process_count := getattr(stream, "process_count", num_processes)) != num_processes:
        raise ValueError(
            f"the stream shares its batches between {process_count} processes, but the devices are of {num_processes}: "
            "pass devices of all processes, or make the stream in those that train"
        )
    if num_processes > 1 and stream.num_samples < stream.batch_size:
        raise ValueError(
            f"the stream has {stream.num_samples} samples, and several processes can't share less than a batch, of "
            f"{stream.batch_size}: lower batch_size"
        )


def batches_of(
    stream: Stream, epoch: int, mesh: Mesh, attack: Any, num_classes_for: Callable[[Any], int]
) -> Iterator[_batches.Batch]:
    """This process's rows of the batches of an epoch, the last of which is filled up with samples of the first one."""
    rows = _processes.rows(mesh, stream.batch_size)

    def whole(share: tuple[Any, Any]) -> tuple[Any, Any]:
        if _processes.count(mesh) == 1:
            return share
        images, labels = map(np.concatenate, map(_processes.gather, share))
        return images, labels

    shares = _processes.each_alike(_shares(stream, epoch, rows, attack, num_classes_for), mesh)
    return _batches.fill(shares, stream.num_samples, stream.batch_size, rows, whole)


def _shares(stream, epoch, rows, attack, num_classes_for):
    """The samples of each batch at the rows, checked as `train` checks its samples."""
    samples = range(stream.num_samples)
    batches = (samples[start : start + stream.batch_size] for start in samples[:: stream.batch_size])
    sizes = [len(batch[rows.start : rows.stop]) for batch in batches]
    num_found = 0
    for size, batch in itertools.zip_longest(filter(None, sizes), stream.epoch(epoch)):
        if batch is not None:
            images, labels = _batches.check_samples(*batch)
            if len(images) != size == len(rows) and num_found + size < sum(sizes):
                raise ValueError(
                    f"the stream's batch_size is {stream.batch_size}{_share(rows, stream, size)}, but a batch of epoch "
                    f"{epoch} has another number of samples: fill every batch, except the last one, which may have "
                    "fewer"
                )
            if not num_found:
                num_classes = num_classes_for(images)
                check_range(images, attack)
            _checks.check_are_classes(labels, num_classes)
            num_found += len(images)
        if batch is None or len(images) != size:
            raise ValueError(
                f"the stream yielded {num_found} samples in epoch {epoch}, but its num_samples is {stream.num_samples}"
                f"{_share(rows, stream, sum(sizes))}: let every epoch yield each sample once"
            )
        yield images, labels
    if not sizes[-1]:
        yield images[:0], labels[:0]


def _share(rows, stream, number):
    """The words of a message on this process's share; none if it has all rows."""
    return "" if len(rows) == stream.batch_size else f", {number} of them for this process"
