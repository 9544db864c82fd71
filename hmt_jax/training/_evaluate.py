"""Accuracy and loss of a classifier."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hmt_jax import _batches, _checks, _devices, _processes, _programs
from hmt_jax._images import as_floats
from hmt_jax.classifiers import Classifier, as_pytree, logits_of
from hmt_jax.data import prefetch
from hmt_jax.training._step import AXIS, Metrics, let_finish


def evaluate(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    batch_size: int = 1000,
    devices: Sequence[jax.Device] | None = None,
) -> Metrics:
    """Cross-entropy and accuracy over all samples; padding of the last batch does not count.

    Args:
      classifier: any classifier that `hmt_jax.measure_margins` takes.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      batch_size: number of samples evaluated together, over all devices.
      devices: where to compute; all devices if not given. If these are of several processes, each calls this function,
        with the same arguments.

    Returns:
      A `Metrics` with the mean loss and the accuracy.

    Raises:
      ValueError: if there are no images or not as many labels; for labels that are not below L or a batch size below 1.
      TypeError: for a classifier that can't be called.

    >>> import jax.numpy as jnp
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> evaluate(classifier, jnp.eye(3, 4).reshape(3, 2, 2, 1), [0, 1, 1]).accuracy == 2 / 3
    True
    """
    mesh = _devices.mesh(jax.devices() if devices is None else devices, AXIS)
    _processes.check(mesh)
    with _processes.alike(mesh):
        pixels, targets = _batches.check_samples(images, labels)
        pytree = as_pytree(classifier)
        _batches.check_batch_size(batch_size)
    pytree = _processes.put(pytree, NamedSharding(mesh, PartitionSpec()))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    batch_size = -(-min(batch_size, len(pixels)) // mesh.size) * mesh.size
    batches = _batches.slices(pixels, targets, batch_size, _processes.rows(mesh, batch_size))
    sums: list[Any] = []
    with _programs.of_call(pytree):
        for batch in prefetch(batches, sharding):
            *found, num_classes = _evaluate_batch(pytree, batch)
            if not sums:
                with _processes.alike(mesh):
                    _checks.check_are_classes(targets, int(num_classes))
            sums.append(found)
            let_finish(found, mesh)
    loss = sum(float(loss) for loss, _ in sums)
    return Metrics(loss / len(pixels), sum(int(num_correct) for _, num_correct in sums) / len(pixels))


@_programs.jit
def _evaluate_batch(classifier, batch):
    logits = logits_of(classifier, as_floats(batch.images))
    return *_batches.sum_over(logits, batch), logits.shape[-1]
