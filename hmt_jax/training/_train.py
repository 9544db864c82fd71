"""Training over epochs, on arrays and on streams."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

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
from hmt_jax.training._state import TrainState, check_is_module, check_state, classifier_of, start
from hmt_jax.training._step import (
    AXIS,
    NEVER,
    Metrics,
    Sums,
    count_classes,
    functions_of,
    let_finish,
    step_at,
    train_step,
    train_step_at,
    zero_sums,
)
from hmt_jax.training._stream import Stream, batches_of, check_can_share

#: The class of the module that is trained: training returns a module of the class that it is passed.
Module = TypeVar("Module", bound=nnx.Module)


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
      key: random key of the order of the samples, and of everything else that is random.
      attack: for adversarial training: a callable pytree from (classifier, images, labels, key) to perturbed images,
        such as a `hmt_jax.attacks.PGD`. It sees the classifier in evaluation mode. Training then uses only the
        perturbed images.
      state: a state to continue from, after any epoch of training with the same arguments. The result is the same as
        without the interruption. The steps may take over the buffers of the state: pass a copy if you need it later.
      devices: where to train; if not given, as many devices as can share a batch evenly, or all of them if they are of
        several processes. These all call this function with the same arguments.
      on_epoch: called after every epoch with its number, counted from 0, the state, and the metrics of the epoch's
        training batches, each evaluated before its step. The buffers of the state live until the next step: copy
        anything that you want to keep.

    Returns:
      The trained classifier, in evaluation mode, on the first of the devices; each process has it on one of its own.

    Raises:
      ValueError: if there are no images or not as many labels; for labels that are not below L; an attack that does not
        return images of the same shape; a batch size that the devices can't share; a state of another network, or one
        that is not at the end of an epoch of such a training; or a classifier whose call makes variables, changes their
        shape or type, or changes its parameters.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key, the attack or `on_epoch` is of the
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
    _check_kinds(classifier, recipe, key, on_epoch)
    recipe, functions = functions_of(recipe, attack)
    mesh = _mesh(recipe, devices)
    with _processes.alike(mesh):
        pixels, targets = _batches.check_samples(images, labels)
        _checks.check_are_classes(targets, count_classes(classifier, pixels))
        check_range(pixels, attack)
    _processes.check_same(mesh, images=pixels, labels=targets, key=key)
    samples = _processes.put((pixels, targets), NamedSharding(mesh, PartitionSpec()))
    run_epoch = _host_epoch if mesh.devices.flat[0].platform == "cpu" else _device_epoch
    with _programs.of_call(*functions):
        return _train(
            classifier,
            len(pixels),
            recipe,
            lambda state, epoch: run_epoch(recipe, mesh, functions, state, samples, jax.random.fold_in(key, epoch)),
            mesh,
            state,
            on_epoch,
        )


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
) -> Module:
    """The classifier, trained as by `train` on the batches of a stream, for data that do not fit on the device.

    At most two batches at a time are on the device or being copied to it.

    Args:
      classifier, recipe, attack, state, devices, on_epoch: as in `train`. The recipe and the stream must have the same
        batch size.
      stream: the batches, for example `hmt_jax.data.loader(...)`. If the devices are of several processes, each passes
        a stream of its own share, as `Stream` says, and what one stream raises is raised in all processes.
      key: random key of attacks, dropout and augmentation. The stream decides the order of the samples.

    Returns:
      The trained classifier, in evaluation mode. The classifier that is passed is not changed.

    Raises:
      ValueError: for a batch size that differs from the stream's, or that the devices can't share; images, labels and
        states as in `train`; or an epoch that does not yield `num_samples` samples in batches of that size, or in a
        process not its share of them.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key, the attack or `on_epoch` is of the
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
    _check_kinds(classifier, recipe, key, on_epoch)
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

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, Sums]:
        step_key = jax.random.split(jax.random.fold_in(key, epoch))[1]
        sums = zero_sums(mesh)
        for batch in prefetch(batches_of(stream, epoch, mesh, attack, num_classes), sharding):
            state, sums = train_step(recipe, stream.num_samples, functions, state, sums, batch, step_key)
            let_finish(sums, mesh)
        return state, sums

    with _programs.of_call(*functions):
        return _train(classifier, stream.num_samples, recipe, run_epoch, mesh, state, on_epoch)


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


def _check_kinds(classifier, recipe, key, on_epoch):
    """Raises TypeError for arguments of the wrong kind, before any sample is read."""
    check_is_module(classifier)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a hmt_jax.training.Recipe, got {recipe!r}")
    check_key(key)
    _checks.check_callback("on_epoch", on_epoch, "an epoch's number, the state and its metrics")


def _train(classifier, num_samples, recipe, run_epoch, mesh, state, on_epoch):
    """The classifier after the remaining epochs. `run_epoch` maps a state and an epoch to the next state and sums."""
    if recipe.num_epochs * steps_per_epoch(recipe, num_samples) == 1:
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
    for epoch in range(int(state.num_steps) // steps_per_epoch(recipe, num_samples), recipe.num_epochs):
        state, sums = run_epoch(state, epoch)
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


def _host_epoch(recipe, mesh, functions, state, samples, key):
    """The state and the sums after one pass through the samples, in the order that the key draws."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    order_key, step_key = jax.random.split(key)
    num_samples, sums = len(samples[0]), zero_sums(mesh)
    for rows in zip(*map(np.asarray, _order(recipe, num_samples, order_key)), strict=True):
        indices, is_counted = _processes.put(rows, sharding)
        state, sums = train_step_at(recipe, functions, state, sums, samples, indices, is_counted, step_key)
        let_finish(sums, mesh)
    return state, sums


@functools.partial(_programs.jit, static_argnums=(0, 1), donate_argnums=3)
def _device_epoch(recipe, mesh, functions, state, samples, key):
    """The same as `_host_epoch`, in one compiled loop."""
    order_key, step_key = jax.random.split(key)
    rows = _order(recipe, len(samples[0]), order_key)
    rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(None, AXIS)))

    def step(carry: tuple[TrainState, Sums], row: tuple[jax.Array, jax.Array]) -> tuple[tuple[TrainState, Sums], None]:
        state, sums = carry
        indices, is_counted = row
        return step_at(recipe, functions, state, sums, samples, indices, is_counted, step_key), None

    return jax.lax.scan(step, (state, zero_sums(mesh)), rows)[0]


@functools.partial(_programs.jit, static_argnums=(0, 1))
def _order(recipe, num_samples, key):
    """Indices (steps, B) of the samples in random order, and which of them count: the last row is padded."""
    shape = (steps_per_epoch(recipe, num_samples), recipe.batch_size)
    order = jnp.resize(jax.random.permutation(key, num_samples), shape)
    return order, jnp.arange(order.size).reshape(shape) < num_samples
