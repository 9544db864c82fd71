"""The settings of training: the paper's recipe, its schedule and its augmentation."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hmt_jax._checks import as_numbers


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of training.

    Attributes:
      num_epochs: passes through the training set.
      batch_size: samples in a step, over all devices. The last batch of an epoch is padded with samples from the
        beginning of that epoch, which count only in the statistics of batch norm.
      max_learning_rate: peak of the learning rate, which rises from 0 over 2/5 of the steps and falls to 0 again.
      momentum: momentum of SGD.
      weight_decay: factor by which every parameter is multiplied before it is added to its gradient.
      max_gradient_norm: largest L2 norm of the gradient over all parameters; it is clipped before weight decay.
      compute_dtype: "float32" or "bfloat16", in which the network computes. Parameters, batch-norm statistics and loss
        are in float32.
      augment: function of (key, images) that changes a batch's images at random, such as `crop_and_mirror`; or None.

    Raises:
      ValueError: for settings out of range, or an `augment` that can't be called.

    >>> Recipe(num_epochs=10, augment=crop_and_mirror).batch_size
    128
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


def triangular_schedule(recipe: Recipe, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear from 0 to its maximum at 2/5 of the steps, and back to 0.

    Step n, counted from 0, has the value at n + 1, so that only the last step has a rate of 0.

    Args:
      recipe: the recipe, whose `max_learning_rate` is the maximum.
      num_steps: total number of steps.

    >>> [round(float(triangular_schedule(Recipe(), 5)(step)), 3) for step in range(5)]
    [0.105, 0.21, 0.14, 0.07, 0.0]
    """
    corners = jnp.array([0, 0.4 * num_steps, num_steps])
    rates = jnp.array([0, recipe.max_learning_rate, 0])
    return lambda step: jnp.interp(jnp.asarray(step + 1, corners.dtype), corners, rates)


def crop_and_mirror(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images shifted at random by up to four pixels along each axis, padded with black, and mirrored at random.

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


def make_optimizer(recipe: Recipe, num_samples: int) -> optax.GradientTransformation:
    num_steps = recipe.num_epochs * steps_per_epoch(recipe, num_samples)
    return optax.chain(
        optax.clip_by_global_norm(recipe.max_gradient_norm),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(triangular_schedule(recipe, num_steps), momentum=recipe.momentum),
    )


def steps_per_epoch(recipe, num_samples) -> int:
    return -(-num_samples // recipe.batch_size)
