"""Accuracy and loss under an attack."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _batches, _checks, _programs
from hmt_jax._images import as_floats, check_range
from hmt_jax.classifiers import Classifier, as_new_function, as_pytree, logits_of
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import as_list
from hmt_jax.subspaces._groups import grouped


class Attack(Protocol):
    """An attack: a callable pytree that returns perturbed images of the same shape.

    >>> def brighten(classifier, images, labels, key):
    ...     return jnp.clip(images + 0.25, 0, 1)
    >>> attack: Attack = brighten
    >>> attack(None, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), jax.random.key(0)).ravel().tolist()
    [0.75, 0.75]
    """

    def __call__(self, classifier: Classifier, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array: ...


class RobustMetrics(NamedTuple):
    """Means over samples, with and without an attack.

    Attributes:
      accuracy: share of perturbed images that are classified correctly, in [0, 1].
      clean_accuracy: the same for the images themselves.
      loss: cross-entropy of perturbed images, in nats.
      clean_loss: the same for the images themselves.
      energy: (R,) squared L2 norm of the perturbation's projection onto each subspace; None without subspaces.

    >>> metrics = RobustMetrics(accuracy=0.5, clean_accuracy=0.75, loss=1.5, clean_loss=0.5, energy=None)
    >>> metrics.clean_accuracy - metrics.accuracy  # the share of images that the attack deceives
    0.25
    """

    accuracy: float
    clean_accuracy: float
    loss: float
    clean_loss: float
    energy: np.ndarray | None


def as_argument(attack: Attack | None) -> Any:
    """The attack as an argument of compiled functions. A plain function is compiled anew in every call.

    Raises:
      TypeError: if it can't be called on (classifier, images, labels, key), as the class `PGD` can't.
    """
    if attack is None or _can_attack(attack):
        return as_new_function(attack) if callable(attack) and jax.tree_util.all_leaves([attack]) else attack
    raise TypeError(
        "attack must be an attack, such as hmt_jax.attacks.PGD(norm='l2', epsilon=1.0), or a function of (classifier, "
        f"images, labels, key), got {attack!r}"
    )


def _can_attack(attack) -> bool:
    if isinstance(attack, type) or not callable(attack):
        return False
    try:
        inspect.signature(attack).bind("classifier", "images", "labels", "key")
    except TypeError:
        return False
    except ValueError:  # Python can't find its signature
        pass
    return True


def perturb(attack: Attack, classifier: Classifier, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
    """The perturbed images that an attack returns, checked and converted to the dtype of the images.

    Args:
      attack: a `PGD` or `DeepFool`, or another function of (classifier, images, labels, key).
      classifier: anything that `hmt_jax.classifiers.as_pytree` takes, in evaluation mode.
      images: (N, height, width, channels), floating point.
      labels: (N,) whole numbers in [0, L).
      key: random key of the attack.

    Raises:
      ValueError: if the attack returns anything but floating-point images of the same shape.

    >>> from hmt_jax.attacks import PGD
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images, attack = jnp.full((1, 2, 2, 1), 0.5), PGD(norm="linf", epsilon=0.1, random_start=False)
    >>> perturbed = perturb(attack, classifier, images, jnp.array([0]), jax.random.key(0))
    >>> [round(pixel, 4) for pixel in perturbed.ravel().tolist()]
    [0.4, 0.6, 0.5, 0.5]
    """
    perturbed = attack(classifier, images, labels, key)
    is_array = isinstance(perturbed, jax.Array | np.ndarray)
    if not is_array or perturbed.shape != images.shape or not jnp.issubdtype(perturbed.dtype, jnp.floating):
        found = f"{perturbed.dtype} {perturbed.shape}" if is_array else f"a {type(perturbed).__name__}"
        raise ValueError(
            f"attack must return the perturbed images, floating point of shape {images.shape}, got {found}: return one "
            "image for each that is passed to it, and nothing else"
        )
    return jnp.asarray(perturbed, images.dtype)


def evaluate(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike,
    attack: Attack,
    key: jax.Array,
    *,
    batch_size: int = 500,
    subspaces: Subspace | Sequence[Subspace] | None = None,
) -> RobustMetrics:
    """Accuracy and loss over all samples, with and without an attack; padding of the last batch does not count.

    Args:
      classifier: anything that `hmt_jax.classifiers.as_pytree` takes, in evaluation mode.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      attack: a `PGD` or `DeepFool`, another callable pytree of that kind, or a plain function.
      key: random key of the attack, from which the keys of all batches are made.
      batch_size: number of samples attacked together.
      subspaces: subspaces in which the energy of perturbations is measured: one subspace, or a list of any kinds and
        dimensions, such as `hmt_jax.subspaces.dct_diagonal` returns.

    Returns:
      A `RobustMetrics`.

    Raises:
      ValueError: if there are no images or not as many labels; for labels that are not below L, a batch size below 1,
        subspaces for images of another shape, or an attack that does not return images of the same shape.
      TypeError: if the classifier, the subspaces, the attack or the key are of the wrong kind.

    Warns:
      PixelRangeWarning: if pixels are outside [0, 1], flipped frequencies do not explain it, and the attack keeps
        pixels within [0, 1].

    >>> from hmt_jax.attacks import DeepFool
    >>> from hmt_jax.subspaces import dct_diagonal
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jnp.array([[0.6, 0.4, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5]]).reshape(2, 2, 2, 1)
    >>> windows = dct_diagonal((2, 2, 1), size=1, step=1)
    >>> metrics = evaluate(classifier, images, [0, 0], DeepFool(epsilon=0.2), jax.random.key(0), subspaces=windows)
    >>> metrics.clean_accuracy, metrics.accuracy
    (1.0, 0.5)
    >>> metrics.energy.shape
    (2,)
    """
    if attack is None:
        raise TypeError("attack must not be None: to measure unperturbed images, use hmt_jax.training.evaluate")
    attack_argument = as_argument(attack)
    _checks.check_key(key)
    pixels, targets = _batches.check_samples(images, labels)
    check_range(pixels, attack)
    groups = [] if subspaces is None else grouped(as_list(subspaces, pixels.shape[1:]))
    places = [place for group in groups for place in group.places]
    sizes, stacks = tuple(len(group.places) for group in groups), [group.members for group in groups]
    _batches.check_batch_size(batch_size)
    pytree = as_pytree(classifier)
    batches = _batches.slices(pixels, targets, min(batch_size, len(pixels)))
    sums: list[Any] = []
    with _programs.of_call(pytree, attack_argument):
        for index, batch in enumerate(batches):
            *found, num_classes = _evaluate_batch(
                sizes, pytree, attack_argument, stacks, batch, jax.random.fold_in(key, index)
            )
            if not sums:
                _checks.check_are_classes(targets, int(num_classes))
            sums.append(found)
    means = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64) / len(pixels), *jax.device_get(sums))
    accuracy, clean_accuracy, loss, clean_loss = map(float, means[:-1])
    energy = None if subspaces is None else np.concatenate(means[-1])[np.argsort(places)]
    return RobustMetrics(accuracy, clean_accuracy, loss, clean_loss, energy)


@partial(_programs.jit, static_argnums=0)
def _evaluate_batch(sizes, classifier, attack, stacks, batch, key):
    """The fields of `RobustMetrics` as sums over the samples of a batch, without padding, and the number of classes.

    The energies are a list of arrays, one for each group of stacked subspaces; `sizes` are the lengths of the groups.
    """
    images = as_floats(batch.images)
    clean_logits = logits_of(classifier, images)
    perturbed = perturb(attack, classifier, images, batch.labels, key)

    def energy(subspace):
        energies = jax.vmap(lambda change: jnp.sum(subspace.coordinates(change) ** 2))(perturbed - images)
        return jnp.sum(energies, where=batch.is_counted)

    loss, num_correct = _batches.sum_over(logits_of(classifier, perturbed), batch)
    clean_loss, num_clean_correct = _batches.sum_over(clean_logits, batch)
    # The size is passed because subspaces without arrays have no axis to map over.
    energies = [jax.vmap(energy, axis_size=size)(stack) for size, stack in zip(sizes, stacks, strict=True)]
    return num_correct, num_clean_correct, loss, clean_loss, energies, clean_logits.shape[-1]
