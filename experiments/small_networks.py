"""Small networks that train in seconds, until their loss on the training images is low enough."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hmt_jax import models, training
from hmt_jax.models import _layers

_SIZE = 3  # pixels along each side of a kernel
# Units of a hidden linear layer for each filter, so that both kinds of one width and depth have parameters of one order
# of magnitude.
_UNITS_A_FILTER = 8

Dropout = Callable[[jax.Array], jax.Array]


class SmallNetwork(nnx.Module):
    """A network with ReLU after each hidden layer, on normalised images.

    A "cnn" has `depth` 3 x 3 convolutions of `width` filters with stride 2, and then one hidden linear layer. An "mlp"
    has `depth` hidden linear layers. Hidden linear layers have 8 * `width` units, and dropout comes after them. The
    dropout rate is not part of the network, so that all networks of one architecture share compiled programs.
    """

    def __init__(
        self,
        kind: Literal["cnn", "mlp"],
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        rngs: nnx.Rngs,
    ):
        height, width_of_image, channels = image_shape
        num_convolutions = depth if kind == "cnn" else 0
        filters = [channels, *num_convolutions * [width]]
        self.convolutions = nnx.List(
            [
                _layers.conv(*pair, _SIZE, stride=2, padding=_SIZE // 2, rngs=rngs)
                for pair in itertools.pairwise(filters)
            ]
        )
        num_pixels = -(-height // 2**num_convolutions) * -(-width_of_image // 2**num_convolutions)
        hidden = (1 if kind == "cnn" else depth) * [_UNITS_A_FILTER * width]
        units = [num_pixels * filters[-1], *hidden, num_classes]
        self.linear = nnx.List([_layers.linear(*pair, rngs=rngs) for pair in itertools.pairwise(units)])

    def __call__(self, images: jax.Array, dropout: Dropout = lambda units: units) -> jax.Array:
        x = images
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        x = _layers.flatten(x)
        *hidden, last = self.linear
        for layer in hidden:
            x = dropout(jax.nn.relu(layer(x)))
        return last(x)


class Settings(NamedTuple):
    """The settings in which small networks and their training differ.

    Attributes:
      kind: "cnn" or "mlp".
      width: filters of a convolution; hidden linear layers have eight times as many units.
      depth: number of hidden layers, not counting the linear one of a "cnn".
      batch_size: images in a step of training.
      dropout_rate: probability that a unit of a hidden linear layer is dropped in a step.
      weight_decay: weight decay of AdamW.
      wrong_share: share of the training images that have a wrong label.
    """

    kind: Literal["cnn", "mlp"]
    width: int
    depth: int
    batch_size: int
    dropout_rate: float
    weight_decay: float
    wrong_share: float


class Trained(NamedTuple):
    """A network, the epochs of its training, and its metrics on the training images."""

    classifier: models.Normalized
    num_epochs: int
    metrics: training.Metrics


def train(
    settings: Settings,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    target_loss: float,
    max_epochs: int,
    learning_rate: float,
    key: jax.Array,
) -> Trained:
    """A network that is trained by AdamW until its mean cross-entropy on the training images is at most `target_loss`.

    The loss is computed after each epoch, without dropout. Images left over at the end of an epoch are too few for a
    batch, and are not used in it. Images are normalised by the mean and the standard deviation of each channel.

    Args:
      settings: settings of the network and of its training. A batch has at most N samples.
      images: (N, height, width, channels), floating point in [0, 1].
      labels: (N,), wrong ones included.
      num_classes: number of logits.
      target_loss: in nats.
      max_epochs: epochs after which training ends, whatever the loss.
      learning_rate: learning rate of AdamW.
      key: random key of the weights, of the order of samples, and of dropout.

    Raises:
      FloatingPointError: if training diverges.
    """
    init_key, order_key, dropout_key = jax.random.split(key, 3)
    network = SmallNetwork(
        settings.kind,
        images.shape[1:],
        num_classes,
        width=settings.width,
        depth=settings.depth,
        rngs=nnx.Rngs(init_key),
    )
    mean, std = (statistic(images, axis=(0, 1, 2)) for statistic in (np.mean, np.std))
    normalized = (images - mean) / std
    structure, parameters = nnx.split(network, nnx.Param)
    scalars = {name: jnp.float32(getattr(settings, name)) for name in ("dropout_rate", "weight_decay")}
    scalars["learning_rate"] = jnp.float32(learning_rate)
    state = parameters, _optimizer(scalars).init(parameters)
    num_batches = len(images) // settings.batch_size
    epoch = 0
    while True:
        epoch += 1
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), len(images)))
        keys = jax.random.split(jax.random.fold_in(dropout_key, epoch), num_batches)
        # A loop on the host: on CPU, XLA runs convolutions in compiled loops on one core.
        batches = order[: num_batches * settings.batch_size].reshape(num_batches, -1)
        for rows, step_key in zip(batches, keys, strict=True):
            state = _step(structure, state, normalized[rows], labels[rows], step_key, scalars)
        classifier = models.Normalized(nnx.merge(structure, state[0], copy=True), jnp.asarray(mean), jnp.asarray(std))
        metrics = training.evaluate(classifier, images, labels)
        if not math.isfinite(metrics.loss):
            raise FloatingPointError(f"training diverged in epoch {epoch}, with {settings}: lower learning_rate")
        if metrics.loss <= target_loss or epoch == max_epochs:
            return Trained(classifier, epoch, metrics)


def drop(units: jax.Array, rate: jax.typing.ArrayLike, key: jax.Array) -> jax.Array:
    """The units, each set to 0 with probability `rate`; the others grow, so that expected values stay the same."""
    return units * jax.random.bernoulli(key, 1 - rate, units.shape) / (1 - rate)


def _optimizer(scalars: dict[str, jax.Array]) -> optax.GradientTransformation:
    return optax.adamw(scalars["learning_rate"], weight_decay=scalars["weight_decay"])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(structure, state, images, labels, key, scalars) -> tuple[Any, Any]:
    """The parameters and the optimizer after a step."""

    def loss_of(parameters: nnx.State) -> jax.Array:
        network = nnx.merge(structure, parameters)
        keys = iter(jax.random.split(key, len(network.linear)))
        logits = network(images, lambda units: drop(units, scalars["dropout_rate"], next(keys)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    parameters, optimizer = state
    updates, optimizer = _optimizer(scalars).update(jax.grad(loss_of)(parameters), optimizer, parameters)
    return optax.apply_updates(parameters, updates), optimizer
