"""Training of classifiers, plain or adversarial, and exact evaluation.

The recipe is the paper's: SGD with momentum, coupled weight decay on all parameters, clipping of the gradient's global
norm, and a learning rate that rises and falls linearly. Arrays lie on the device, and an epoch is one compiled loop
over its batches, so that nothing travels between host and device; on CPU, where XLA compiles convolutions badly inside
loops, the host runs the loop. Batches are split over all local devices: each holds a copy of the parameters and of
the data, and batch norm takes its statistics over the whole batch.
"""

import dataclasses
import functools
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hmt_jax import _batches, _checks, _devices, _programs
from hmt_jax._checks import as_numbers, check_key
from hmt_jax._images import as_floats, check_range
from hmt_jax.attacks import Attack, perturb
from hmt_jax.attacks._evaluate import as_argument
from hmt_jax.classifiers import Classifier, as_new_function, as_pytree, logits_of
from hmt_jax.data import prefetch

__all__ = [
    "Metrics",
    "Module",
    "Recipe",
    "Stream",
    "TrainState",
    "classifier_of",
    "crop_and_mirror",
    "evaluate",
    "start",
    "train",
    "train_on_stream",
    "triangular_schedule",
]

Module = TypeVar("Module", bound=nnx.Module)

_AXIS = "data"
_NEVER = np.iinfo(np.int32).max
# Random streams are new in every step, and the values that a module sows are for observers only.
_NOT_CARRIED = (nnx.RngState, nnx.Intermediate)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of training.

    Attributes:
      num_epochs: passes through the training set.
      batch_size: samples in a step, over all devices. The last batch of an epoch is filled up with samples from the
        beginning of that epoch, which count for the statistics of batch norm and for nothing else.
      max_learning_rate: peak of the learning rate, which rises from 0 over 2/5 of the steps and falls to 0 again.
      momentum: momentum of SGD.
      weight_decay: every parameter, times this factor, is added to its gradient.
      max_gradient_norm: L2 norm over all parameters to which gradients are clipped, before weight decay.
      compute_dtype: `float32`, or `bfloat16` for networks that compute in it, with parameters, batch-norm statistics
        and loss in float32.
      augment: function of (key, images) that changes a batch's images at random, for example `crop_and_mirror`.
    """

    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.21
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient_norm: float = 0.5
    compute_dtype: str = "float32"
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    def __post_init__(self):
        as_numbers(self)
        for name in ("num_epochs", "batch_size", "max_learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("max_learning_rate", "max_gradient_norm", "momentum", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if not (self.augment is None or callable(self.augment)):
            raise ValueError(
                f"augment must be a function of (key, images), such as crop_and_mirror, got {self.augment!r}"
            )
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be 'float32' or 'bfloat16', got {self.compute_dtype!r}")


class TrainState(NamedTuple):
    """The state of a classifier in training; `classifier_of` returns the classifier."""

    structure: nnx.GraphDef
    parameters: nnx.State
    variables: nnx.State  # all other variables of the classifier, such as batch-norm statistics
    optimizer: optax.OptState
    num_steps: jax.Array  # steps taken


class Metrics(NamedTuple):
    """Means over samples: the cross-entropy in nats, and the share of right labels in [0, 1]."""

    loss: float
    accuracy: float


class Stream(Protocol):
    """Batches that come from outside the device, such as those of `hmt_jax.data.loader`.

    An epoch yields every sample once, as (images (B, height, width, channels), labels (B,)) in NumPy, in an order that
    depends on the epoch's number alone. B is `batch_size`, except in the last batch, which may be smaller.
    """

    num_samples: int
    batch_size: int

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch, which are counted from 0."""
        ...


class _Sums(NamedTuple):
    loss: jax.Array
    num_correct: jax.Array
    first_bad_step: jax.Array  # the first step whose loss or gradient is not finite


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
    """Trains a classifier from the parameters it has, and returns the trained one; the given one stays as it is.

    Args:
      classifier: a Flax NNX module from images (N, height, width, channels) in [0, 1] to logits (N, L). Its batch norm
        and dropout are in training mode in the steps, and in evaluation mode in the classifier that is returned. Its
        random streams get new keys from `key` in every step. Other variables that a call changes keep their new values
        for the next step, except those sown as `nnx.Intermediate`, which are dropped.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      recipe: how to train.
      key: random key of the order of the samples, and of everything else that is random.
      attack: for adversarial training: a callable pytree from (classifier, images, labels, key) to perturbed images,
        such as a `hmt_jax.attacks.PGD`. It sees the classifier in evaluation mode, and training sees its images only.
      state: a state to go on from, after any epoch of training with the same arguments; the result is the same as
        without the interruption. The steps may take over its buffers: pass a copy if you need it afterwards.
      devices: where to train; all local devices if not given.
      on_epoch: called after every epoch with its number (from 0), the state, and the epoch's metrics on the training
        batches, each before its step. The state's buffers live until the next step: copy what you want to keep.

    Raises:
      ValueError: for images and labels of unequal number, or none; labels that are no class; an attack that does not
        return images of the same shape; a batch size that the devices can't share; a state of another network, or one
        that is not at the end of an epoch of such a training; or a classifier whose call makes variables, changes their
        shape or type, or changes its parameters.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key or the attack is of another kind.

    Warns:
      PixelRangeWarning: if the attack keeps pixels in [0, 1], but they leave it, and not because images are flipped.
      UserWarning: if there is one step in all, which changes nothing, because its learning rate is 0.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> images = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))])
    >>> trained = train(classifier, images, jnp.array([0, 1]), Recipe(num_epochs=50), jax.random.key(1))
    >>> evaluate(trained, images, jnp.array([0, 1])).accuracy
    1.0
    """
    _check_kinds(classifier, recipe, key, on_epoch)
    recipe, functions = _functions_of(recipe, attack)
    pixels, targets = _batches.check_samples(images, labels)
    _checks.check_are_classes(targets, _num_classes(classifier, pixels))
    check_range(pixels, attack)
    mesh = _devices.mesh(devices, _AXIS)
    samples = jax.device_put((pixels, targets), NamedSharding(mesh, PartitionSpec()))
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
    """Trains a classifier like `train`, but on the batches of a stream, for data that do not fit the device.

    Two batches at a time are on the device or on their way there.

    Args:
      classifier, recipe, attack, state, devices, on_epoch: as in `train`; the recipe's batch size is the stream's.
      stream: the batches, for example `hmt_jax.data.loader(...)`.
      key: random key of attacks, dropout and augmentation; the order is the stream's.

    Returns:
      The trained classifier; the given one stays as it is.

    Raises:
      ValueError: for a batch size that is not the stream's, or that the devices can't share, for a stream of several
        processes, for images, labels and states as in `train`, and for an epoch that does not yield `num_samples`
        samples in batches of that size.
      FloatingPointError: if a loss or a gradient is not finite.
      TypeError: if the classifier is not a Flax NNX module, or the recipe, the key or the attack is of another kind.

    Warns:
      As `train`, about the pixels of an epoch's first batch.
    """
    _check_kinds(classifier, recipe, key, on_epoch)
    recipe, functions = _functions_of(recipe, attack)
    if stream.batch_size != recipe.batch_size:
        raise ValueError(
            f"the stream's batch_size is {stream.batch_size} and the recipe's {recipe.batch_size}: make them equal"
        )
    if (process_count := getattr(stream, "process_count", 1)) > 1:
        raise ValueError(
            f"the stream shares its batches between {process_count} processes, and training is on the devices "
            "of one: make it with process_count=1"
        )
    mesh = _devices.mesh(devices, _AXIS)
    num_classes = functools.partial(_num_classes, classifier)
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, _Sums]:
        step_key = jax.random.split(jax.random.fold_in(key, epoch))[1]
        sums = _zero_sums(mesh)
        for batch in prefetch(_batches.fill(_checked(stream, epoch, attack, num_classes), recipe.batch_size), sharding):
            state, sums = _train_step(recipe, stream.num_samples, functions, state, sums, batch, step_key)
            _let_finish(sums, mesh)
        return state, sums

    with _programs.of_call(*functions):
        return _train(classifier, stream.num_samples, recipe, run_epoch, mesh, state, on_epoch)


def start(classifier: nnx.Module, recipe: Recipe, num_samples: int) -> TrainState:
    """The state before the first step of training.

    Args:
      classifier: a Flax NNX module; it stays as it is.
      recipe: how to train.
      num_samples: number of training samples.

    Raises:
      TypeError: if the classifier is no Flax NNX module.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> int(start(classifier, Recipe(), num_samples=10).num_steps)
    0
    """
    _check_is_module(classifier)
    evaluated = nnx.clone(classifier)
    evaluated.eval()
    # Copies, because the steps take over the buffers of their state, and the classifier is the caller's.
    structure, parameters, variables = jax.tree.map(jnp.copy, nnx.split(evaluated, nnx.Param, ...))
    return TrainState(
        structure,
        parameters,
        variables,
        optimizer=_optimizer(recipe, num_samples).init(parameters),
        num_steps=jnp.zeros((), jnp.int32),
    )


def classifier_of(state: TrainState) -> Any:
    """The classifier at a state of training, in evaluation mode.

    Args:
      state: the state, which stays as it is.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> classifier_of(start(classifier, Recipe(), num_samples=10))(jnp.ones((1, 2, 2, 1))).shape
    (1, 2)
    """
    # A copy, because modules update their variables in place.
    return nnx.merge(state.structure, state.parameters, state.variables, copy=True)


def evaluate(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    batch_size: int = 1000,
    devices: Sequence[jax.Device] | None = None,
) -> Metrics:
    """Cross-entropy and accuracy over all samples, exactly: the last batch is padded, and the padding masked.

    Args:
      classifier: any classifier that `hmt_jax.measure_margins` takes.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      batch_size: number of samples at a time, over all devices.
      devices: where to compute; all local devices if not given.

    Raises:
      ValueError: for images and labels of unequal number, or none, labels that are no class, and a batch size below 1.
    """
    pixels, targets = _batches.check_samples(images, labels)
    mesh = _devices.mesh(devices, _AXIS)
    pytree = jax.device_put(as_pytree(classifier), NamedSharding(mesh, PartitionSpec()))
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    _batches.check_batch_size(batch_size)
    batch_size = -(-min(batch_size, len(pixels)) // mesh.size) * mesh.size
    sums: list[Any] = []
    with _programs.of_call(pytree):
        for batch in prefetch(_batches.slices(pixels, targets, batch_size), sharding):
            *found, num_classes = _evaluate_batch(pytree, batch)
            if not sums:
                _checks.check_are_classes(targets, int(num_classes))
            sums.append(found)
            _let_finish(found, mesh)
    loss = sum(float(loss) for loss, _ in sums)
    return Metrics(loss / len(pixels), sum(int(num_correct) for _, num_correct in sums) / len(pixels))


def triangular_schedule(recipe: Recipe, num_steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: linear from 0 up to its maximum at 2/5 of the steps, and down to 0.

    Step n has the value at n + 1, so that only the last step is lost on a rate of 0.

    Args:
      recipe: the recipe, whose `max_learning_rate` is the maximum.
      num_steps: number of steps in all.

    >>> [round(float(triangular_schedule(Recipe(), 5)(step)), 3) for step in range(5)]
    [0.105, 0.21, 0.14, 0.07, 0.0]
    """
    corners = jnp.array([0, 0.4 * num_steps, num_steps])
    rates = jnp.array([0, recipe.max_learning_rate, 0])
    return lambda step: jnp.interp(jnp.asarray(step + 1, corners.dtype), corners, rates)


def crop_and_mirror(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images moved at random by up to four pixels each way, with black at the edges, and mirrored or not.

    Args:
      key: random key.
      images: (N, height, width, channels).

    >>> crop_and_mirror(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    crop_key, mirror_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 9)
    is_mirrored = jax.random.bernoulli(mirror_key, shape=(len(images),))
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    cropped = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))(
        padded, corners
    )
    return jnp.where(is_mirrored[:, None, None, None], cropped[:, :, ::-1], cropped)


def _check_kinds(classifier, recipe, key, on_epoch):
    """Raises TypeError for arguments of the wrong kind, before any sample is looked at."""
    _check_is_module(classifier)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a hmt_jax.training.Recipe, got {recipe!r}")
    check_key(key)
    _checks.check_callback("on_epoch", on_epoch, "an epoch's number, the state and its metrics")


def _check_is_module(classifier):
    if not isinstance(classifier, nnx.Module):
        raise TypeError(
            f"training changes the parameters of a Flax NNX module, such as hmt_jax.models.create returns, got "
            f"{type(classifier)}; train other classifiers with their own library, and measure their margins here"
        )


def _num_classes(classifier, images) -> int:
    """The number L of logits (N, L) that the classifier returns for such images in training mode, found by tracing."""
    structure, state = nnx.split(classifier)
    shape = jax.ShapeDtypeStruct((2, *images.shape[1:]), jax.dtypes.canonicalize_dtype(images.dtype))
    return _logits_in_training.eval_shape(structure, state, shape).shape[1]


@functools.partial(jax.jit, static_argnums=0)
def _logits_in_training(structure, state, images):
    classifier = nnx.merge(structure, state, copy=True)
    classifier.train()
    key = jax.random.key(0)
    _renew_random_streams(classifier, key, key)
    return logits_of(classifier, as_floats(images))


class _Functions(NamedTuple):
    """The functions, or None, that a step calls besides the classifier, as arguments of compiled functions."""

    attack: Any
    augment: Any


def _functions_of(recipe, attack) -> tuple[Recipe, _Functions]:
    """The recipe without its augmentation, which no compiled program is to keep, and the functions of a step."""
    augment = recipe.augment
    if augment is not None:
        # A user's function is compiled anew in every call, because what it closes over may have changed.
        augment = jax.tree_util.Partial(augment) if augment is crop_and_mirror else as_new_function(augment)
    return dataclasses.replace(recipe, augment=None), _Functions(as_argument(attack), augment)


def _train(classifier, num_samples, recipe, run_epoch, mesh, state, on_epoch):
    """The classifier after the remaining epochs. `run_epoch` maps a state and a number to a state and sums."""
    if recipe.batch_size % mesh.size:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not divisible by the number of devices, {mesh.size}: change it, or "
            "pass fewer devices"
        )
    if recipe.num_epochs * _steps_per_epoch(recipe, num_samples) == 1:
        warnings.warn(
            f"{num_samples} samples in batches of {recipe.batch_size} make one step in all, whose learning rate is 0: "
            "lower batch_size, or train for more epochs",
            stacklevel=3,
        )
    if state is None:
        state = start(classifier, recipe, num_samples)
    else:
        _check_state(state, classifier, recipe, num_samples)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    for epoch in range(int(state.num_steps) // _steps_per_epoch(recipe, num_samples), recipe.num_epochs):
        state, sums = run_epoch(state, epoch)
        if (bad_step := int(sums.first_bad_step)) != _NEVER:
            raise FloatingPointError(
                f"the loss or its gradient became NaN or infinite in step {bad_step}, in epoch {epoch}: lower "
                f"max_learning_rate ({recipe.max_learning_rate}), or check the images for NaN and the labels for "
                "numbers that are no class"
            )
        if on_epoch is not None:
            on_epoch(epoch, state, Metrics(float(sums.loss) / num_samples, int(sums.num_correct) / num_samples))
    return classifier_of(jax.device_put(state, mesh.devices.flat[0]))


def _check_state(state, classifier, recipe, num_samples):
    """Raises ValueError unless the state to go on from is of such a classifier, at the end of an epoch."""
    shapes = jax.eval_shape(lambda: start(classifier, recipe, num_samples)[1:])
    found, expected = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (tuple(state)[1:], shapes)
    )
    if found != expected:
        raise ValueError(
            "the state is of another network than the classifier, or of another kind of training: go on with the "
            "architecture and the recipe that it was made with"
        )
    if (num_over := int(state.num_steps) % (steps := _steps_per_epoch(recipe, num_samples))) != 0:
        raise ValueError(
            f"the state is {num_over} steps into an epoch of {steps}: go on with the batch_size and the number of "
            "samples that it was trained with"
        )


def _checked(stream, epoch, attack, num_classes_for):
    """The batches of an epoch, each checked as `train` checks its samples."""
    num_samples = 0
    for images, labels in stream.epoch(epoch):
        images, labels = _batches.check_samples(images, labels)
        if num_samples % stream.batch_size or len(images) > stream.batch_size:
            raise ValueError(
                f"the stream's batch_size is {stream.batch_size}, but a batch of epoch {epoch} has another number "
                "of samples: fill every batch, except the last one, which may have fewer"
            )
        if not num_samples:
            num_classes = num_classes_for(images)
            check_range(images, attack)
        _checks.check_are_classes(labels, num_classes)
        num_samples += len(images)
        yield images, labels
    if num_samples != stream.num_samples:
        raise ValueError(
            f"the stream yielded {num_samples} samples in epoch {epoch}, but its num_samples is {stream.num_samples}: "
            "let every epoch yield each sample once"
        )


def _host_epoch(recipe, mesh, functions, state, samples, key):
    """One pass through the samples, in the order that the key draws."""
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    order_key, step_key = jax.random.split(key)
    num_samples, sums = len(samples[0]), _zero_sums(mesh)
    for rows in zip(*map(np.asarray, _order(recipe, num_samples, order_key)), strict=True):
        indices, is_counted = jax.device_put(rows, sharding)
        state, sums = _train_step_at(recipe, functions, state, sums, samples, indices, is_counted, step_key)
        _let_finish(sums, mesh)
    return state, sums


@functools.partial(_programs.jit, static_argnums=(0, 1), donate_argnums=3)
def _device_epoch(recipe, mesh, functions, state, samples, key):
    """As `_host_epoch`, as one compiled loop."""
    order_key, step_key = jax.random.split(key)
    rows = _order(recipe, len(samples[0]), order_key)
    rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(None, _AXIS)))

    def step(
        carry: tuple[TrainState, _Sums], row: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[TrainState, _Sums], None]:
        state, sums = carry
        indices, is_counted = row
        return _step_at(recipe, functions, state, sums, samples, indices, is_counted, step_key), None

    return jax.lax.scan(step, (state, _zero_sums(mesh)), rows)[0]


@functools.partial(_programs.jit, static_argnums=(0, 1))
def _order(recipe, num_samples, key):
    """Indices of the samples in a random order, (steps, B), and which of them count: the last row is filled up."""
    shape = (_steps_per_epoch(recipe, num_samples), recipe.batch_size)
    order = jnp.resize(jax.random.permutation(key, num_samples), shape)
    return order, jnp.arange(order.size).reshape(shape) < num_samples


def _step_at(recipe, functions, state, sums, samples, indices, is_counted, key):
    images, labels = samples
    batch = _batches.Batch(images[indices], labels[indices], is_counted)
    return _step(recipe, len(images), functions, state, sums, batch, key)


_train_step_at = _programs.jit(_step_at, static_argnums=0, donate_argnums=(2, 3))


def _step(recipe, num_samples, functions, state, sums, batch, key):
    """One step of SGD on a batch."""
    attack_key, dropout_key, augment_key, stream_key = jax.random.split(jax.random.fold_in(key, state.num_steps), 4)
    images = as_floats(batch.images)
    if functions.augment is not None:
        images = functions.augment(augment_key, images)
    if functions.attack is not None:
        frozen = as_pytree(_classifier_to_compute_with(recipe, state))
        computing = jax.tree_util.Partial(_ComputeIn(recipe.compute_dtype), frozen)
        images = perturb(functions.attack, computing, images, batch.labels, attack_key)

    def loss_fn(parameters: nnx.State) -> tuple[jax.Array, tuple]:
        logits, variables = _apply(recipe, state._replace(parameters=parameters), images, dropout_key, stream_key)
        loss, num_correct = _batches.sum_over(logits, batch)
        return loss / jnp.sum(batch.is_counted).astype(loss.dtype), (loss, num_correct, variables)

    gradients, (loss, num_correct, variables) = jax.grad(loss_fn, has_aux=True)(state.parameters)
    updates, optimizer = _optimizer(recipe, num_samples).update(gradients, state.optimizer, state.parameters)
    is_good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
    sums = _Sums(
        loss=sums.loss + loss,
        num_correct=sums.num_correct + num_correct,
        first_bad_step=jnp.minimum(sums.first_bad_step, jnp.where(is_good, _NEVER, state.num_steps)),
    )
    state = state._replace(
        parameters=optax.apply_updates(state.parameters, updates),
        variables=variables,
        optimizer=optimizer,
        num_steps=state.num_steps + 1,
    )
    return state, sums


_train_step = _programs.jit(_step, static_argnums=(0, 1), donate_argnums=(3, 4))


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
    """Applies a classifier to images in a dtype; logits are float32 for the loss."""

    dtype: str

    def __call__(self, classifier, images):
        if self.dtype == "float32":
            return logits_of(classifier, images)
        # Flax's batch norm leaves it to JAX to promote its statistics, which stay float32.
        with jax.numpy_dtype_promotion("standard"):
            return logits_of(classifier, images.astype(self.dtype)).astype(jnp.float32)


def _apply(recipe, state, images, dropout_key, stream_key):
    """The logits in training mode, and all variables after the call."""
    written: frozenset[Any] = frozenset()
    flat = nnx.to_flat_state(state.variables)
    if recipe.compute_dtype != "float32" and any(_may_be_cast(variable) for _, variable in flat):
        # In lower precision, sums and counts would stop growing. Only a call shows which variables are such.
        exact, called = dataclasses.replace(recipe, compute_dtype="float32"), []
        jax.eval_shape(lambda *keys: called.append(_call(exact, state, images, *keys)[1]), dropout_key, stream_key)
        written = frozenset(called[0])
    logits, changed = _call(recipe, state, images, dropout_key, stream_key, written)
    return logits, _carried(state.variables, changed)


def _may_be_cast(variable) -> bool:
    is_floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(variable))
    return is_floating and not isinstance(variable, nnx.BatchStat)


def _call(recipe, state, images, dropout_key, stream_key, written=frozenset()):
    """The logits in training mode, and the variables that the call has changed or made, by their paths."""
    classifier = _classifier_to_compute_with(recipe, state, written)
    classifier.train()
    _renew_random_streams(classifier, dropout_key, stream_key)
    before = {path: jax.tree.leaves(variable) for path, variable in _variables_of(classifier)}
    logits = _ComputeIn(recipe.compute_dtype)(classifier, images)
    after = _variables_of(classifier)
    return logits, {path: variable for path, variable in after if not _are_same(before.get(path), variable)}


def _variables_of(classifier):
    return nnx.to_flat_state(nnx.state(classifier, nnx.filterlib.Not(nnx.filterlib.Any(*_NOT_CARRIED))))


def _are_same(leaves, variable) -> bool:
    """Whether a variable still holds the same array objects as before."""
    found = jax.tree.leaves(variable)
    return leaves is not None and len(leaves) == len(found) and all(map(operator.is_, leaves, found))


def _renew_random_streams(classifier, dropout_key, stream_key):
    """Sets a new key for every random stream, and adds a stream to dropout layers that were made without one."""
    streams = [part for _, part in nnx.iter_graph(classifier) if isinstance(part, nnx.RngStream)]
    for number, stream in enumerate(streams):
        key, shape = jax.random.fold_in(stream_key, number), stream.key.shape
        stream.key.set_value(jax.random.split(key, shape) if shape else key)
        stream.count.set_value(jnp.zeros(shape, jnp.uint32))
    classifier.set_attributes(
        lambda _, part: isinstance(part, nnx.Dropout) and part.rngs is None,
        rngs=nnx.Rngs(dropout_key),
        raise_if_not_found=False,
    )


def _carried(variables, changed):
    """The variables with the values that a call has changed, in their former shapes and types.

    Raises:
      ValueError: if the call changed parameters, which only the optimizer may, made new variables, or changed a shape.
    """
    flat = dict(nnx.to_flat_state(variables))
    for path, variable in changed.items():
        name, reason = ".".join(map(str, path)), None
        if isinstance(variable, nnx.Param):
            reason = "is a parameter, which a call of the classifier changes: make it another kind of nnx.Variable"
        elif path not in flat:
            reason = "is made by a call of the classifier: make it in __init__"
        elif _kinds_of(variable) != _kinds_of(flat[path]):
            reason = "has another shape or type after a call of the classifier: keep the ones it has in __init__"
        if reason is not None:
            raise ValueError(f"training can't carry {name} ({type(variable).__name__}) from step to step: it {reason}")
        flat[path] = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), flat[path], variable)
    return nnx.from_flat_state(flat.items())


def _kinds_of(variable):
    """The structure, shapes and types that a variable must keep; floating-point types count as one."""
    return jax.tree.structure(variable.get_value()), [
        (jnp.shape(leaf), "floating" if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.result_type(leaf))
        for leaf in jax.tree.leaves(variable)
    ]


def _classifier_to_compute_with(recipe, state, written=frozenset()):
    """The classifier at a state, in the recipe's dtype, except batch-norm statistics and the `written` variables."""
    if recipe.compute_dtype == "float32":
        return classifier_of(state)

    def cast(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(recipe.compute_dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
        )

    variables = nnx.from_flat_state(
        (path, cast(variable) if _may_be_cast(variable) and path not in written else variable)
        for path, variable in nnx.to_flat_state(state.variables)
    )
    classifier = classifier_of(state._replace(parameters=cast(state.parameters), variables=variables))
    # Otherwise batch norm would promote its output, and so all that follows, to the float32 of its statistics.
    classifier.set_attributes(nnx.BatchNorm, promote_dtype=_as_they_are, raise_if_not_found=False)
    return classifier


def _as_they_are(arrays, **_):
    return arrays


@_programs.jit
def _evaluate_batch(classifier, batch):
    logits = logits_of(classifier, as_floats(batch.images))
    return *_batches.sum_over(logits, batch), logits.shape[-1]


def _optimizer(recipe: Recipe, num_samples: int) -> optax.GradientTransformation:
    num_steps = recipe.num_epochs * _steps_per_epoch(recipe, num_samples)
    return optax.chain(
        optax.clip_by_global_norm(recipe.max_gradient_norm),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(triangular_schedule(recipe, num_steps), momentum=recipe.momentum),
    )


def _steps_per_epoch(recipe, num_samples) -> int:
    return -(-num_samples // recipe.batch_size)


def _let_finish(arrays, mesh) -> None:
    """Waits for the arrays on simulated devices, which share few threads: two steps' sums over devices could block."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(arrays)


def _zero_sums(mesh) -> _Sums:
    """Zeros on the devices of the mesh, where a step's sums are: on others, the first step would be compiled twice."""
    zeros = _Sums(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.asarray(_NEVER, jnp.int32))
    return jax.device_put(zeros, NamedSharding(mesh, PartitionSpec()))
