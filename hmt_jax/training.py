"""Training of classifiers on data that lie on the device, and exact evaluation.

The recipe is the paper's: SGD with momentum, coupled weight decay on all parameters, a clip of the gradient's global
norm, and a learning rate that rises and falls linearly. An epoch is one compiled loop over its batches, so that nothing
travels between host and device; on CPU, where XLA compiles convolutions badly inside loops, the host makes the loop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax.classifiers import Classifier, as_pytree

Module = TypeVar("Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
      num_epochs: passes through the training set.
      batch_size: samples in a step; the last batch of an epoch holds what is left.
      max_learning_rate: reached after 2/5 of the steps, from 0 and down to 0 again.
      momentum: of SGD.
      weight_decay: times every parameter, added to its gradient.
      max_gradient_norm: L2 norm over all parameters to which gradients are clipped, before weight decay.
    """

    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.21
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient_norm: float = 0.5

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "max_learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class TrainState(NamedTuple):
    """A classifier in training; `classifier_of` gives it back."""

    structure: nnx.GraphDef
    parameters: nnx.State
    statistics: nnx.State  # all other variables of the classifier
    optimizer: optax.OptState


class Metrics(NamedTuple):
    """Means over samples: the cross-entropy in nats, and the share of right labels in [0, 1]."""

    loss: float
    accuracy: float


class _Sums(NamedTuple):
    loss: jax.Array
    num_correct: jax.Array


def train(
    classifier: Module,
    images: ArrayLike,
    labels: ArrayLike,
    recipe: Recipe,
    key: jax.Array,
    *,
    on_epoch: Callable[[int, TrainState, Metrics], None] | None = None,
) -> Module:
    """Trains a classifier from the parameters it has, and returns the trained one; the given one stays as it is.

    Args:
      classifier: a Flax NNX module from images (N, height, width, channels) in [0, 1] to logits (N, L).
      images: (N, height, width, channels), uint8 in [0, 255] or floating point.
      labels: (N,) whole numbers in [0, L).
      recipe: how to train.
      key: random key of the order of the samples.
      on_epoch: called after every epoch with its number (from 0), the state, and the epoch's metrics on the training
        batches, each before its step.

    Raises:
      ValueError: for images and labels of unequal number, or none.
      FloatingPointError: if the loss of an epoch is not finite.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> images = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))])
    >>> trained = train(classifier, images, jnp.array([0, 1]), Recipe(num_epochs=50), jax.random.key(1))
    >>> evaluate(trained, images, jnp.array([0, 1])).accuracy
    1.0
    """
    pixels, targets = _on_device(images, labels)
    state = start(classifier, recipe, len(pixels))
    for epoch in range(recipe.num_epochs):
        state, metrics = train_epoch(state, pixels, targets, recipe, jax.random.fold_in(key, epoch))
        if not np.isfinite(metrics.loss):
            raise FloatingPointError(
                f"the training loss became {metrics.loss} in epoch {epoch}: lower max_learning_rate "
                f"({recipe.max_learning_rate}), or check the images for NaN"
            )
        if on_epoch is not None:
            on_epoch(epoch, state, metrics)
    return classifier_of(state)


def start(classifier: nnx.Module, recipe: Recipe, num_samples: int) -> TrainState:
    """The state before the first step of training on so many samples."""
    # Copies, for the steps take over the buffers of their state, and the classifier is the caller's.
    structure, parameters, statistics = jax.tree.map(jnp.copy, nnx.split(classifier, nnx.Param, ...))
    return TrainState(structure, parameters, statistics, _optimizer(recipe, num_samples).init(parameters))


def classifier_of(state: TrainState) -> Any:
    """The classifier as it is at a state."""
    return nnx.merge(state.structure, state.parameters, state.statistics)


def train_epoch(
    state: TrainState, images: jax.Array, labels: jax.Array, recipe: Recipe, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One pass through the samples in the order that the key draws. The buffers of the given state are used up."""
    if jax.default_backend() == "cpu":
        sums = _zero_sums()
        for batch in np.asarray(_batches(recipe, len(images), key)):
            state, sums = _train_step(recipe, len(images), state, sums, images, labels, batch)
    else:
        state, sums = _scan_epoch(recipe, state, images, labels, key)
    return state, Metrics(float(sums.loss) / len(images), int(sums.num_correct) / len(images))


def evaluate(classifier: Classifier, images: ArrayLike, labels: ArrayLike, *, batch_size: int = 1000) -> Metrics:
    """Cross-entropy and accuracy over all samples, exactly: the last batch is padded, and the padding masked.

    Raises:
      ValueError: for images and labels of unequal number, or none.
    """
    pixels, targets = _on_device(images, labels)
    pytree = as_pytree(classifier)
    batches = _pad(np.arange(len(pixels)), min(batch_size, len(pixels)))
    sums = [_evaluate_batch(pytree, pixels, targets, batch) for batch in batches]
    loss = sum(float(s.loss) for s in sums)
    return Metrics(loss / len(pixels), sum(int(s.num_correct) for s in sums) / len(pixels))


def triangular_schedule(recipe: Recipe, num_steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: linear from 0 up to its maximum at 2/5 of the steps, and down to 0.

    Step n has the value at n + 1, so that no step but the last is lost on a rate of 0.
    """
    corners = jnp.array([0, 0.4 * num_steps, num_steps])
    return lambda step: jnp.interp(step + 1, corners, jnp.array([0, recipe.max_learning_rate, 0]))


def _optimizer(recipe: Recipe, num_samples: int) -> optax.GradientTransformation:
    num_steps = recipe.num_epochs * -(-num_samples // recipe.batch_size)
    return optax.chain(
        optax.clip_by_global_norm(recipe.max_gradient_norm),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(triangular_schedule(recipe, num_steps), momentum=recipe.momentum),
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _scan_epoch(recipe, state, images, labels, key):
    def step(carry, batch):
        state, sums = carry
        return _step(recipe, len(images), state, sums, images, labels, batch), None

    return jax.lax.scan(step, (state, _zero_sums()), _batches(recipe, len(images), key))[0]


def _step(recipe, num_samples, state, sums, images, labels, batch):
    """One step of SGD on the samples whose indices are in the batch; -1 stands for none."""

    def loss_fn(parameters):
        classifier = nnx.merge(state.structure, parameters, state.statistics)
        batch_sums = _sum_over(classifier, images, labels, batch)
        return batch_sums.loss / jnp.sum(batch >= 0), batch_sums

    gradients, batch_sums = jax.grad(loss_fn, has_aux=True)(state.parameters)
    updates, optimizer = _optimizer(recipe, num_samples).update(gradients, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    state = state._replace(parameters=parameters, optimizer=optimizer)
    return state, jax.tree.map(jnp.add, sums, batch_sums)


_train_step = jax.jit(_step, static_argnums=(0, 1), donate_argnums=(2, 3))


def _sum_over(classifier, images, labels, batch) -> _Sums:
    """Loss and right labels summed over the samples of a batch of indices, -1 standing for none."""
    logits = classifier(_as_floats(images[batch]))
    targets = labels[batch]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return _Sums(
        loss=jnp.sum(losses, where=batch >= 0),
        num_correct=jnp.sum(logits.argmax(-1) == targets, where=batch >= 0, dtype=jnp.int32),
    )


_evaluate_batch = jax.jit(_sum_over)


def _as_floats(images: jax.Array) -> jax.Array:
    """Images in [0, 1]: 8-bit ones divided by 255, others as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batches(recipe, num_samples, key):
    """A random order of the samples, in rows of a batch each."""
    return _pad(jax.random.permutation(key, num_samples), recipe.batch_size)


def _pad(indices, batch_size):
    """Indices in rows of one batch each, the last one filled up with -1."""
    num_missing = -len(indices) % batch_size
    xp: Any = np if isinstance(indices, np.ndarray) else jnp
    return xp.pad(indices, (0, num_missing), constant_values=-1).reshape(-1, batch_size)


def _zero_sums() -> _Sums:
    return _Sums(jnp.zeros(()), jnp.zeros((), jnp.int32))


def _on_device(images: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    pixels, targets = jnp.asarray(images), jnp.asarray(labels)
    if pixels.ndim != 4 or targets.shape != pixels.shape[:1] or not len(pixels):
        raise ValueError(
            "images must have shape (N, height, width, channels) and labels (N,), with N at least 1, got "
            f"{pixels.shape} and {targets.shape}"
        )
    return pixels, targets.astype(jnp.int32)
