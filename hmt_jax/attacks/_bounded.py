"""Shared parts of the attacks: the bounds of a perturbation, the checks of an attack's arguments, and a loop."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _checks, _programs, solvers
from hmt_jax.classifiers import Classifier, as_pytree, shape_of_logits
from hmt_jax.frequency import flip
from hmt_jax.projections import affine, box, dykstra, flipped_box, l2_ball, linf_ball
from hmt_jax.subspaces import Subspace, full
from hmt_jax.subspaces._base import check_fits, check_orthonormal

STATIC = {"static": True}

# Steps of Dykstra's algorithm in a projection. A point that is still outside the bounds is scaled back.
NUM_PROJECTIONS = 10
# The float32 rounding of black pixels in an image that is flipped and flipped back.
_ROUNDING = 1e-6

NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda change: solvers.norms_of(change.reshape(-1)),
    "linf": lambda change: jnp.max(jnp.abs(change)),
}
_BALLS = {"l2": l2_ball, "linf": linf_ball}
BOXES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "pixels": box,
    "flipped": flipped_box,
    "unbounded": lambda images: images,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """The set of perturbed images that an attack may return for an image."""

    norm: str
    epsilon: float
    subspace: Subspace | None
    domain: str

    def check(self) -> None:
        for name, known in (("norm", NORMS), ("domain", BOXES)):
            if getattr(self, name) not in tuple(known):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if not 0 < self.epsilon < math.inf:  # written so that NaN fails, too
            raise ValueError(f"epsilon must be positive and finite, in pixels in [0, 1], got {self.epsilon}")

    def space(self, image: jax.Array) -> Subspace:
        return full(image.shape) if self.subspace is None else self.subspace

    def project(self, point: jax.Array, image: jax.Array) -> jax.Array:
        """A point near `point` within the bounds around the image."""
        ball = partial(_BALLS[self.norm], center=image, radius=self.epsilon)
        to_box = BOXES[self.domain]
        if self.subspace is None:
            if self.domain == "flipped":
                point = dykstra(point, (ball, to_box), NUM_PROJECTIONS)
            # Projection onto the box can leave the ball only in the flipped domain, where their axes differ.
            return image + self.shorten(to_box(ball(point)) - image)
        in_subspace = partial(affine, center=image, subspace=self.subspace)
        change = self.shorten(dykstra(point, (ball, to_box, in_subspace), NUM_PROJECTIONS) - image)
        return image + self._share_in_box(image, change) * change

    def shorten(self, change: jax.Array) -> jax.Array:
        """The perturbation, scaled down to the norm epsilon if it is longer."""
        return change * (self.epsilon / jnp.maximum(NORMS[self.norm](change), self.epsilon))

    def _share_in_box(self, image, change):
        """The largest t <= 1 for which image + t * change is in the box."""
        if self.domain == "unbounded":
            return 1
        pixels, change = (flip(image), flip(change)) if self.domain == "flipped" else (image, change)
        room = jnp.maximum(jnp.where(change > 0, 1 - pixels, pixels), _ROUNDING)
        return jnp.min(jnp.where(jnp.abs(change) > room, room / jnp.abs(change), 1))


def checked(
    subspace: Subspace | None, classifier: Classifier, images: ArrayLike, labels: ArrayLike, key: jax.Array
) -> tuple[Classifier, jax.Array, jax.Array]:
    """The classifier, images and labels as arguments of the compiled attack.

    Raises:
      ValueError: for images and labels of the wrong shape or type, labels that are not below the number of classes, or
        a subspace for images of another shape.
      TypeError: if the key is no random key, or the subspace is no subspace.
    """
    _checks.check_key(key)
    classifier, images = as_pytree(classifier), jnp.asarray(_checks.as_array("images", images))
    # Checked before JAX converts them: labels that are too large for int32 would wrap around.
    labels = _checks.as_array("labels", labels)
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have shape (N, height, width, channels) and labels (N,), got {images.shape} and "
            f"{labels.shape}"
        )
    _checks.check_floating("images", images)
    if subspace is not None:
        if not (hasattr(subspace, "coordinates") and hasattr(subspace, "embed")):
            raise TypeError(
                f"the attack's subspace must be one subspace of hmt_jax.subspaces, or None, got {subspace!r}"
            )
        _, height, width, channels = images.shape
        check_fits(subspace, (height, width, channels))
        is_known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(subspace))
        if is_known and not getattr(type(subspace), "is_orthonormal", False):
            with jax.ensure_compile_time_eval():
                check_orthonormal(subspace, (height, width, channels))
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        _checks.check_labels("labels", values)
        with _programs.of_call(classifier):
            _checks.check_are_classes(values, shape_of_logits(classifier, images).shape[1])
    return classifier, images, jnp.asarray(labels)


def loop(body: Callable, carry: Any, items: Any = None, length: int | None = None) -> Any:
    """The last carry of a loop as in `jax.lax.scan`.

    On CPU the loop is unrolled, because XLA compiles convolutions inside loops badly there.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, items, length)[0]
    # In Python, because the `unroll` of `scan` keeps a loop of one turn.
    for turn in range(len(items) if length is None else length):
        carry, _ = body(carry, None if items is None else items[turn])
    return carry
