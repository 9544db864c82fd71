"""Projected gradient ascent as an attack."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hmt_jax import _checks, _programs
from hmt_jax.attacks._bounded import NORMS, STATIC, Bounds, checked, loop
from hmt_jax.classifiers import Classifier, logits_of
from hmt_jax.subspaces import Subspace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD:
    """An attack by projected gradient ascent on the cross-entropy, within a ball around each image.

    Let g be the gradient of the loss at x, projected orthogonally onto the subspace if there is one, and P the
    projection onto the bounds. A step is

      x <- P(x + step_size g / ||g||_2)   or, in the L-infinity norm,   x <- P(x + step_size sign(g)).

    The attack returns the point with the greatest loss among all points of all restarts, including the image itself, so
    the loss never falls. The ascent itself is on the log-odds against the label, because in float32 the cross-entropy
    of a confident classifier is rounded to 0. The cross-entropy is the softplus of the log-odds, so both are greatest
    at the same points, and their gradients differ only in length.

    P projects onto the ball and then onto the box. For flipped images, and in a subspace, P runs a few steps of
    Dykstra's algorithm, which come close to the nearest point of the intersection. A perturbation that is still outside
    is then scaled down.

    A random start is uniform in the ball, or in the intersection of the ball and the subspace, and is then projected by
    P. The L-infinity norm in a subspace is an exception: there the direction is Gaussian, and the norm has the
    distribution of epsilon u^(1/d), with u uniform in [0, 1] and d the dimension of the subspace.

    An attack is a pytree whose only arrays belong to the subspace. Other settings are static: attacks that differ in
    them are compiled separately.

    Args:
      norm: "l2", over all channels, or "linf".
      epsilon: radius of the ball, in pixels in [0, 1].
      num_steps: gradients computed in each restart.
      step_size: length of a step, in pixels; 2.5 * epsilon / num_steps if None, as Madry et al. suggest. The computed
        number is stored; `dataclasses.replace(attack, epsilon=epsilon, step_size=None)` computes it again.
      num_restarts: number of searches, which have different random starts.
      random_start: whether searches start at a random point; if not, they start at the image.
      subspace: a subspace of `hmt_jax.subspaces` that contains the perturbation; if None, all directions are allowed.
      domain: "pixels"; "flipped" for images whose frequencies are flipped; "unbounded" for no limits on the pixels,
        for example if the images themselves are not within [0, 1].

    Raises:
      ValueError: for settings out of range, or an unknown norm or domain.

    References:
      Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks",
      ICLR 2018, arXiv:1706.06083.

    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> attack = PGD(norm="linf", epsilon=0.1, random_start=False)
    >>> images = attack(classifier, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]), jax.random.key(0))
    >>> [round(pixel, 4) for pixel in images.ravel().tolist()]
    [0.4, 0.6, 0.5, 0.5]
    """

    norm: str = dataclasses.field(metadata=STATIC)
    epsilon: float = dataclasses.field(metadata=STATIC)
    num_steps: int = dataclasses.field(default=10, metadata=STATIC)
    step_size: float | None = dataclasses.field(default=None, metadata=STATIC)
    num_restarts: int = dataclasses.field(default=1, metadata=STATIC)
    random_start: bool = dataclasses.field(default=True, metadata=STATIC)
    subspace: Subspace | None = None
    domain: str = dataclasses.field(default="pixels", metadata=STATIC)

    def __post_init__(self) -> None:
        _checks.as_numbers(self)
        self._bounds.check()
        _checks.integer("num_steps", self.num_steps, at_least=1)
        step_size = 2.5 * self.epsilon / self.num_steps if self.step_size is None else self.step_size
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, in pixels in [0, 1], got {step_size}")
        # Stored, so that attacks with equal steps are equal and share compiled programs.
        object.__setattr__(self, "step_size", step_size)
        _checks.integer("num_restarts", self.num_restarts, at_least=1)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                f"num_restarts={self.num_restarts} would repeat one search: set random_start=True, or num_restarts=1"
            )

    def __call__(self, classifier: Classifier, images: ArrayLike, labels: ArrayLike, key: jax.Array) -> jax.Array:
        """The perturbed images (N, height, width, channels).

        Args:
          classifier: anything that `hmt_jax.classifiers.as_pytree` takes, in evaluation mode.
          images: (N, height, width, channels), floating point.
          labels: (N,) whole numbers in [0, L).
          key: random key of the starts.

        Raises:
          ValueError: for images and labels of the wrong shape or type, labels that are not below L, or a subspace for
            images of another shape.
          TypeError: for a classifier that can't be called, a key that is no random key, or a subspace that is none.
        """
        arguments = checked(self.subspace, classifier, images, labels, key)
        with _programs.of_call(*arguments):
            return _ascend(self, *arguments, key)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.norm, self.epsilon, self.subspace, self.domain)


class _Best(NamedTuple):
    """The points with the greatest log-odds so far."""

    images: jax.Array
    log_odds: jax.Array

    def or_better(self, images, log_odds):
        is_better = log_odds > self.log_odds  # never true for NaN
        images = jnp.where(is_better[:, None, None, None], images, self.images)
        return _Best(images, jnp.where(is_better, log_odds, self.log_odds))


@_programs.jit
def _ascend(attack, classifier, images, labels, key):
    classifier, images = jax.lax.stop_gradient((classifier, images))
    log_odds = partial(_log_odds, classifier, labels)

    def step(carry, _):
        points, best = carry
        values, pull_back = jax.vjp(log_odds, points)
        (gradients,) = pull_back(jnp.ones_like(values))
        return (jax.vmap(partial(_step, attack))(points, images, gradients), best.or_better(points, values)), None

    def restart(best, points):
        points, best = loop(step, (points, best), length=attack.num_steps)
        return best.or_better(points, log_odds(points)), None

    keys = jax.random.split(key, (attack.num_restarts, len(images)))
    starts = jax.vmap(jax.vmap(partial(_start, attack)), (0, None))(keys, images)
    return loop(restart, _Best(images, log_odds(images)), starts).images


def _start(attack, key, image):
    if not attack.random_start:
        return image
    if attack.norm == "linf" and attack.subspace is None:
        change = jax.random.uniform(key, image.shape, image.dtype, -attack.epsilon, attack.epsilon)
    else:
        direction_key, length_key = jax.random.split(key)
        space = attack._bounds.space(image)
        z = jax.random.normal(direction_key, space.coordinates(image).shape, image.dtype)
        length = attack.epsilon * jax.random.uniform(length_key, dtype=image.dtype) ** (1 / z.size)
        direction = space.embed(z)
        change = direction * (length / NORMS[attack.norm](direction))
    return attack._bounds.project(image + change, image)


def _step(attack, point, image, gradient):
    if attack.subspace is not None:
        gradient = attack.subspace.embed(attack.subspace.coordinates(gradient))
    if attack.norm == "linf":
        direction = jnp.sign(gradient)
    else:
        length = NORMS["l2"](gradient)
        direction = gradient / jnp.where(length > 0, length, 1)
    return attack._bounds.project(point + attack.step_size * direction, image)


def _log_odds(classifier, labels, images):
    """log((1 - p) / p) for the probability p of the label, for each image: the cross-entropy is its softplus."""
    logits = logits_of(classifier, images)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jax.nn.logsumexp(logits, axis=1, where=~is_label) - jnp.sum(logits, axis=1, where=is_label)
