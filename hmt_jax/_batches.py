"""Batches of labelled images, all of one size, and sums over the samples in them that count."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from hmt_jax import _checks
from hmt_jax._checks import as_array, integer
from hmt_jax._misc import promoted
from hmt_jax.solvers import has_label


class Batch(NamedTuple):
    """B samples, some of which may only fill it up."""

    images: Any  # (B, height, width, channels)
    labels: Any  # (B,)
    is_counted: Any  # (B,)


def check_samples(images: ArrayLike, labels: ArrayLike) -> tuple[Any, Any]:
    """Images and int32 labels as arrays, left on the device or host where they are.

    Raises:
      ValueError: if images and labels differ in number, have the wrong type, or are empty; and as `as_array`.
    """
    pixels, targets = as_array("images", images), as_array("labels", labels)
    _checks.check_labels("labels", targets)
    if pixels.ndim != 4 or targets.shape != pixels.shape[:1] or not len(pixels):
        raise ValueError(
            "images must have shape (N, height, width, channels) and labels (N,), with N at least 1, got "
            f"{pixels.shape} and {targets.shape}"
        )
    _checks.check_type("images", pixels)
    return pixels, targets.astype(np.int32)


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless the batch size is a positive whole number."""
    integer("batch_size", batch_size, at_least=1)


def slices(images: Any, labels: Any, batch_size: int, rows: range | None = None) -> Iterator[Batch]:
    """The samples in their order, in batches of one size; of each, all rows unless told otherwise."""
    rows = range(batch_size) if rows is None else rows
    shares = (slice(first + rows.start, first + rows.stop) for first in range(0, len(images), batch_size))
    parts = ((images[share], labels[share]) for share in shares)
    return fill(parts, len(images), batch_size, rows, lambda _: (images[:batch_size], labels[:batch_size]))


def fill(
    shares: Iterable[tuple[Any, Any]],
    num_samples: int,
    batch_size: int,
    rows: range,
    whole: Callable[[tuple[Any, Any]], tuple[Any, Any]],
) -> Iterator[Batch]:
    """Shares of one size of an epoch's batches: the last batch is filled up with the first one, which does not count.

    Args:
      shares: the samples of each batch at the `rows`, of which the last batch may have fewer, or none.
      num_samples: number of samples in the epoch.
      batch_size: number of rows of a batch.
      rows: which rows.
      whole: makes the whole first batch of its share, if the last batch has to be filled up.
    """
    first: tuple[Any, Any] | None = None
    for start, (images, labels) in zip(range(0, num_samples, batch_size), shares, strict=True):
        first = first or (images, labels)
        if start + batch_size > num_samples:
            head = whole(first)
            added = (np.array(rows[len(images) :], int) + start - num_samples) % len(head[0])
            images, labels = _join(images, head[0][added]), _join(labels, head[1][added])
        yield Batch(images, labels, np.array(rows) + start < num_samples)


def _join(first, second):
    return (jnp if isinstance(first, jax.Array) else np).concatenate([first, second])


def sum_over(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy, in float32 at least, and the number of right labels, summed over the samples that count."""
    logits = logits.astype(promoted(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    # `argmax` returns a class for NaNs as well.
    is_correct = has_label(logits) & (logits.argmax(-1) == batch.labels)
    return (
        jnp.sum(losses, where=batch.is_counted),
        jnp.sum(is_correct, where=batch.is_counted, dtype=jnp.int32),
    )
