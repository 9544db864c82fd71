"""Training over epochs, on arrays and on streams."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hmt_jax import _batches, _checks, _devices, _processes, _programs
from hmt_jax._checks import check_key
from hmt_jax._images import check_range
from hmt_jax.attacks import Attack
from hmt_jax.data import prefetch
from hmt_jax.training._recipe import Recipe, steps_per_epoch
from hmt_jax.training._state import NEVER, TrainState, check_is_module, check_state, classifier_of, start
from hmt_jax.training._step import (
    AXIS,
    Metrics,
    count_classes,
    functions_of,
    let_finish,
    step_at,
    train_step,
    train_step_at,
)
from hmt_jax.training._stream import Stream, batches_of, check_can_share

#: The class of the module that is trained: training returns a module of the class that it is passed.
Module = TypeVar("Module", bound=nnx.Module)

OnStep = Callable[[TrainState], None]

_Advance = Callable[[TrainState], TrainState]

_BLOCK_SIZE = 32  # steps in one program on an accelerator, between calls of `on_step`: at most seconds


def train(
    classifier: Module,
    images: ArrayLike,
    labels: ArrayLike,
    recipe: Recipe,
    key: jax.Array,
    *,
    attack: Attack | None = None,
    state: TrainState | None = None,
    devices: Sequence[jax.Device] | None = None,
    on_epoch: Callable[[int, TrainState, Metrics], None] | None = None,
    on_step: OnStep | None = None,
) -> Module:
    """The classifier, trained from its present parameters. The classifier that is passed is not changed.

    Args:
      classifier: a Flax NNX module from images (N, height, width, channels) in [0, 1] to logits (N, L). Batch norm and
        dropout are in training mode in the steps, and in evaluation mode in the classifier that is returned. Random
        streams get new keys from `key` in every step. Other variables that a call changes keep their new values for the
        next step, except those sown as `nnx.Intermediate`, which are dropped.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      recipe: the settings of training.
      key: random key for the order of the samples, and for everything else that is random.
      attack: for adversarial training: a callable pytree from (classifier, images, labels, key) to perturbed images,
        such as a `hmt_jax.attacks.PGD`. It sees the classifier in evaluation mode. Training then uses only the
        perturbed images.
      state: a state to continue from, after any step of training with the same arguments. The result is the same as
        without the interruption. The steps may take over the buffers of the state: pass a copy if you need it later.
      devices: where to train; if not given, as many devices as can share a batch evenly, or all of them if they are of
        several processes, which then all call this function with the same arguments.
      on_epoch: called after every epoch with its number, counted from 0, the state, and the metrics of the epoch's
        training batches, each evaluated before its step. The buffers of the state live until the next step: copy
        anything that you want to keep.
      on_step: called with the state before every step, on accelerators before every 32 steps of an epoch. An error that
        it raises ends training. If the devices are of several processes, all must raise it at the same call.

    Returns:
      The trained classifier, in evaluation mode, on the first of the devices; each process has it on one of its own.

    Raises:
      ValueError: if there are no images or not as many labels; for labels that are not below L; an attack that does not
        return images of the same shape; a batch size that the devices can't share; a state of another network, batch
        size or number of samples; or a classifier whose call makes variables, changes their shape or type, or changes
        its parameters.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key, the attack or a callback is of the
        wrong kind.

    Warns:
      PixelRangeWarning: if pixels are outside [0, 1], flipped frequencies do not explain it, and the attack keeps
        pixels within [0, 1].
      UserWarning: if training has only one step, which changes nothing because its learning rate is 0.

    >>> from hmt_jax import models
    >>> from hmt_jax.training import evaluate
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> images = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))])
    >>> trained = train(classifier, images, jnp.array([0, 1]), Recipe(num_epochs=50), jax.random.key(1))
    >>> evaluate(trained, images, jnp.array([0, 1])).accuracy
    1.0
    """
    _check_kinds(classifier, recipe, key, on_epoch, on_step)
    recipe, functions = functions_of(recipe, attack)
    mesh = _mesh(recipe, devices)
    with _processes.alike(mesh):
        pixels, targets = _batches.check_samples(images, labels)
        _checks.check_are_classes(targets, count_classes(classifier, pixels))
        check_range(pixels, attack)
    _processes.check_same(mesh, images=pixels, labels=targets, key=key)
    samples = _processes.put((pixels, targets), NamedSharding(mesh, PartitionSpec()))
    is_on_host = mesh.devices.flat[0].platform == "cpu"
    block_size = None if on_step is None else _BLOCK_SIZE
    steps_of = _host_steps if is_on_host else functools.partial(_device_steps, block_size=block_size)

    def advances(epoch: int, first: int) -> Iterator[_Advance]:
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        rows = _order(recipe, len(pixels), order_key)
        return steps_of(recipe, mesh, functions, samples, rows, step_key, first)

    with _programs.of_call(*functions):
        return _train(classifier, len(pixels), recipe, advances, mesh, state, on_epoch, on_step)


def train_on_stream(
    classifier: Module,
    stream: Stream,
    recipe: Recipe,
    key: jax.Array,
    *,
    attack: Attack | None = None,
    state: TrainState | None = None,
    devices: Sequence[jax.Device] | None = None,
    on_epoch: Callable[[int, TrainState, Metrics], None] | None = None,
    on_step: OnStep | None = None,
) -> Module:
    """The classifier, trained as by `train` on the batches of a stream, for data that do not fit on the device.

    At most two batches at a time are on the device or being copied to it.

    Args:
      classifier, recipe, attack, state, devices, on_epoch, on_step: as in `train`. The recipe and the stream must have
        the same batch size. From a state within an epoch, the stream yields that epoch from its beginning, and the
        batches of the steps that were taken are not used.
      stream: the batches, for example `hmt_jax.data.loader(...)`. If the devices are of several processes, each passes
        a stream of its own share, as `Stream` says, and what one stream raises is raised in all processes.
      key: random key for attacks, dropout and augmentation. The stream decides the order of the samples.

    Returns:
      The trained classifier, in evaluation mode. The classifier that is passed is not changed.

    Raises:
      ValueError: for a batch size that differs from the stream's, or that the devices can't share; images, labels and
        states as in `train`; or an epoch that does not yield `num_samples` samples in batches of that size, or
        this process's share of them.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key, the attack or a callback is of the
        wrong kind.

    Warns:
      As `train`. Only the first batch of each epoch is checked for pixels outside [0, 1].

    >>> from hmt_jax import models
    >>> class Twice:
    ...     num_samples, batch_size = 4, 2
    ...     def epoch(self, number):
    ...         for _ in range(2):
    ...             yield np.stack([np.zeros((2, 2, 1), np.float32), np.ones((2, 2, 1), np.float32)]), np.array([0, 1])
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> recipe, one = Recipe(num_epochs=50, batch_size=2), jax.local_devices()[:1]
    >>> trained = train_on_stream(classifier, Twice(), recipe, jax.random.key(1), devices=one)
    >>> jnp.argmax(trained(jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))])), axis=1).tolist()
    [0, 1]
    """
    _check_kinds(classifier, recipe, key, on_epoch, on_step)
    recipe, functions = functions_of(recipe, attack)
    if stream.batch_size != recipe.batch_size:
        raise ValueError(
            f"the stream's batch_size is {stream.batch_size} and the recipe's {recipe.batch_size}: make them equal"
        )
    mesh = _mesh(recipe, devices)
    check_can_share(stream, mesh)
    _processes.check_same(mesh, key=key)
    num_classes = functools.partial(count_classes, classifier)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def advances(epoch: int, first: int) -> Iterator[_Advance]:
        step_key = jax.random.split(jax.random.fold_in(key, epoch))[1]
        batches = itertools.islice(batches_of(stream, epoch, mesh, attack, num_classes), first, None)
        for batch in prefetch(batches, sharding):
            yield functools.partial(advance, batch, step_key)

    def advance(batch: Any, step_key: jax.Array, state: TrainState) -> TrainState:
        return train_step(recipe, stream.num_samples, functions, state, batch, step_key)

    with _programs.of_call(*functions):
        return _train(classifier, stream.num_samples, recipe, advances, mesh, state, on_epoch, on_step)


def _mesh(recipe, devices):
    """The devices that share each batch, in their order."""
    mesh = _devices.mesh(_devices.sharing(recipe.batch_size) if devices is None else devices, AXIS)
    _processes.check(mesh)
    if recipe.batch_size % mesh.size:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not divisible by the number of devices, {mesh.size}: change it, or "
            "pass fewer devices"
        )
    return mesh


def _check_kinds(classifier, recipe, key, on_epoch, on_step):
    """Raises TypeError for arguments of the wrong kind, before any sample is read."""
    check_is_module(classifier)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a hmt_jax.training.Recipe, got {recipe!r}")
    check_key(key)
    _checks.check_callback("on_epoch", on_epoch, "an epoch's number, the state and its metrics")
    _checks.check_callback("on_step", on_step, "the state")


def _train(classifier, num_samples, recipe, advances, mesh, state, on_epoch, on_step):
    """The classifier after the remaining steps.

    `advances` maps an epoch and the number of its steps that were taken to functions from a state to a later one.
    """
    num_steps = steps_per_epoch(recipe, num_samples)
    if recipe.num_epochs * num_steps == 1:
        warnings.warn(
            f"{num_samples} samples in batches of {recipe.batch_size} make one step in all, whose learning rate is 0: "
            "lower batch_size, or train for more epochs",
            stacklevel=3,
        )
    with _processes.alike(mesh):
        if state is None:
            state = start(classifier, recipe, num_samples)
        else:
            check_state(state, classifier, recipe, num_samples)
    _processes.check_same(mesh, state=state)
    state = _processes.put(state, NamedSharding(mesh, PartitionSpec()))
    first_epoch, first = divmod(int(state.num_steps), num_steps)
    for epoch in range(first_epoch, recipe.num_epochs):
        for advance in advances(epoch, first if epoch == first_epoch else 0):
            if on_step is not None:
                jax.block_until_ready(state.num_steps)  # or many more steps would be on their way when it ends training
                on_step(state)
            state = advance(state)
            let_finish(state.num_steps, mesh)
        sums = state.sums
        if (bad_step := int(sums.first_bad_step)) != NEVER:
            raise FloatingPointError(
                f"the loss or its gradient became NaN or infinite in step {bad_step}, in epoch {epoch}: lower "
                f"max_learning_rate ({recipe.max_learning_rate}), or check the images for NaN and the labels for "
                "numbers that are no class"
            )
        if on_epoch is not None:
            metrics = Metrics(float(sums.loss) / num_samples, int(sums.num_correct) / num_samples)
            with _processes.alike(mesh):
                on_epoch(epoch, state, metrics)
    return classifier_of(jax.tree.map(lambda leaf: leaf.addressable_data(0), state))


def _host_steps(recipe, mesh, functions, samples, rows, key, first):
    """Functions from a state to the next, from a step of the epoch on, for the samples in the given rows."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    for row in zip(*(np.asarray(each)[first:] for each in rows), strict=True):
        indices, is_counted = _processes.put(row, sharding)
        yield lambda state, indices=indices, is_counted=is_counted: train_step_at(
            recipe, functions, state, samples, indices, is_counted, key
        )


def _device_steps(recipe, mesh, functions, samples, rows, key, first, *, block_size=None):
    """The same as `_host_steps`, with so many steps in one compiled loop, or all of them."""
    rows = _processes.put(rows, NamedSharding(mesh, PartitionSpec(None, AXIS)))
    num_steps = len(rows[0])
    block_size = block_size or num_steps
    for begin in range(first, num_steps, block_size):
        end = min(begin + block_size, num_steps)
        yield lambda state, begin=begin, end=end: _loop(recipe, functions, state, samples, rows, key, begin, end)


@functools.partial(_programs.jit, static_argnums=0, donate_argnums=2)
def _loop(recipe, functions, state, samples, rows, key, begin, end):
    """The state after the steps of an epoch from `begin` to `end`."""

    def step(number: jax.Array, state: TrainState) -> TrainState:
        indices, is_counted = (each[number] for each in rows)
        return step_at(recipe, functions, state, samples, indices, is_counted, key)

    return jax.lax.fori_loop(begin, end, step, state)


@functools.partial(_programs.jit, static_argnums=(0, 1))
def _order(recipe, num_samples, key):
    """Indices (steps, B) of the samples in random order, and which of them count: the last row is padded."""
    shape = (steps_per_epoch(recipe, num_samples), recipe.batch_size)
    order = jnp.resize(jax.random.permutation(key, num_samples), shape)
    return order, jnp.arange(order.size).reshape(shape) < num_samples
