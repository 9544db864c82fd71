"""DeepFool as an attack of bounded length."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hmt_jax import _checks, _programs, solvers
from hmt_jax._misc import promoted
from hmt_jax.attacks._bounded import BOXES, NUM_PROJECTIONS, STATIC, Bounds, checked, loop
from hmt_jax.classifiers import Classifier, restrict
from hmt_jax.frequency import flip
from hmt_jax.margins._pair import in_subspace, linearize_at
from hmt_jax.projections import box, dykstra, multiple_to_half_space, multiple_to_sphere
from hmt_jax.subspaces import Subspace

# The shortest step, in pixels, as in `hmt_jax.solvers.DeepFool`.
_SHORTEST_STEP = 1e-4
# A boundary counts as reached if at most this share of the distance to it remains, which may be rounding.
_UNREACHED = 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFool:
    """An attack that moves each image across its nearest decision boundary, or as far towards it as the bounds allow.

    It takes the steps of `hmt_jax.solvers.DeepFool`, except that each step goes to the nearest point of the linearised
    boundary within the box, or as near to the boundary as the box allows. If the last point is outside the L2 ball, the
    sum of the steps is scaled down and clipped to the box again, so that it ends on the sphere. For two classes with
    linear logits this is exact: the label changes if any image in the box within epsilon / (1 + overshoot) has the
    other label. In a subspace, points of the search may be slightly outside the box; the last point is projected onto
    all bounds, as in `PGD`.

    Misclassified images are returned unchanged. So are images for which the search meets logits or gradients that are
    not finite, or finds no gradient at all. The attack is not random and ignores its key.

    An attack is a pytree whose only arrays belong to the subspace. Other settings are static: attacks that differ in
    them are compiled separately.

    Args:
      epsilon: greatest L2 norm of the perturbation, over all channels, in pixels in [0, 1].
      num_steps: steps of DeepFool.
      overshoot: relative length added to the perturbation.
      num_candidates: number of candidates, including the label: the classes with the largest logits. Each candidate
        other than the label costs a backward pass in each step.
      subspace: as in `PGD`.
      domain: as in `PGD`.

    Raises:
      ValueError: for settings out of range, or an unknown domain.

    References:
      Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016, arXiv:1511.04599.

    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.6, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> attack = DeepFool(epsilon=1.0, overshoot=0.1)
    >>> [round(pixel, 4) for pixel in attack(classifier, image, jnp.array([0]), jax.random.key(0)).ravel().tolist()]
    [0.545, 0.555, 0.5, 0.5]
    """

    epsilon: float = dataclasses.field(metadata=STATIC)
    num_steps: int = dataclasses.field(default=5, metadata=STATIC)
    overshoot: float = dataclasses.field(default=0.02, metadata=STATIC)
    num_candidates: int = dataclasses.field(default=2, metadata=STATIC)
    subspace: Subspace | None = None
    domain: str = dataclasses.field(default="pixels", metadata=STATIC)

    def __post_init__(self) -> None:
        _checks.as_numbers(self)
        self._bounds.check()
        _checks.integer("num_steps", self.num_steps, at_least=1)
        # Raises if the other settings are out of range.
        solvers.DeepFool(num_candidates=self.num_candidates, overshoot=self.overshoot, max_steps=self.num_steps)

    def __call__(self, classifier: Classifier, images: ArrayLike, labels: ArrayLike, key: jax.Array) -> jax.Array:
        """The perturbed images (N, height, width, channels).

        Args:
          classifier: anything that `hmt_jax.classifiers.as_pytree` takes, in evaluation mode.
          images: (N, height, width, channels), floating point.
          labels: (N,) whole numbers in [0, L).
          key: any random key; it is ignored.

        Raises:
          ValueError: for images and labels of the wrong shape or type, labels that are not below L, or a subspace for
            images of another shape.
          TypeError: for a classifier that can't be called, a key that is no random key, or a subspace that is none.
        """
        arguments = checked(self.subspace, classifier, images, labels, key)
        with _programs.of_call(*arguments):
            return _cross_boundary(self, *arguments)

    @property
    def _bounds(self) -> Bounds:
        return Bounds("l2", self.epsilon, self.subspace, self.domain)


@_programs.jit
def _cross_boundary(attack, classifier, images, labels):
    classifier, images = jax.lax.stop_gradient((classifier, images))
    return jax.vmap(partial(_perturbed, attack, classifier))(images, labels)


def _perturbed(attack, classifier, image, label):
    search = _Search(attack, image)
    restriction = restrict(classifier, image, search.space)
    at_image = linearize_at(attack.num_candidates, classifier, image)

    def step(walk, _):
        is_done = walk.status != solvers.Status.OUT_OF_STEPS
        return jax.tree.map(partial(jnp.where, is_done), walk, search.step(restriction, walk)), None

    walk = search.start(restriction, in_subspace(image, search.space, at_image))
    walk = loop(step, walk, length=attack.num_steps - 1)
    is_hopeless = (walk.status == solvers.Status.NON_FINITE) | (walk.status == solvers.Status.ZERO_GRADIENT)
    is_found = (walk.candidates[0] == label) & ~is_hopeless
    return jnp.where(is_found, search.result(walk).astype(image.dtype), image)


class _Walk(NamedTuple):
    """The state of a search."""

    z: jax.Array  # (d,) the change so far, before the overshoot
    pull: jax.Array  # (d,) the sum of the steps before the box clipped them; z itself if it clipped none
    candidates: jax.Array  # (C,) classes by falling logit, the label first; -1 if those logits are not finite
    status: jax.Array  # OUT_OF_STEPS while the search goes on


class _Search:
    """A search like `hmt_jax.solvers.DeepFool`, around one image, with every point in the box.

    A step goes to the nearest point of the linearised boundary within the box. Without a subspace, z is the change of
    the pixels (of the image flipped back, if the domain is "flipped"), and that point is found exactly.
    """

    def __init__(self, attack, image):
        self.attack, self.bounds, self.image = attack, attack._bounds, image
        is_flipped = attack.domain == "flipped" and attack.subspace is None
        self.space: Any = _Flipped(image.shape) if is_flipped else self.bounds.space(image)
        self.low, self.high = -jnp.inf, jnp.inf
        if attack.subspace is None and attack.domain != "unbounded":
            pixels = self.space.coordinates(image)
            self.low, self.high = -pixels, 1 - pixels

    def start(self, restriction, at_image):
        is_labelled = solvers.has_label(at_image.logits)
        zero = jnp.zeros_like(at_image.normals[0])
        walk = _Walk(zero, zero, jnp.where(is_labelled, at_image.candidates, -1), jnp.asarray(0, jnp.int32))
        return self._move(restriction, walk, at_image.logits, at_image.normals)

    def step(self, restriction, walk):
        logits, pull_back = jax.vjp(restriction, walk.z)
        return self._move(restriction, walk, logits, solvers.normals_of(pull_back, logits, walk.candidates))

    def _move(self, restriction, walk, logits, normals):
        label, others = walk.candidates[0], walk.candidates[1:]
        norms = solvers.norms_of(normals)
        gaps = jnp.abs(logits[others] - logits[label]).astype(norms.dtype)
        has_direction = (norms > 0) & jnp.isfinite(gaps)
        distances = jnp.where(has_direction, gaps / jnp.where(has_direction, norms, 1), 0)
        distances = jnp.maximum(distances, _SHORTEST_STEP)
        units = normals / jnp.where(has_direction, norms, 1)[:, None]
        points, pulls = jax.vmap(partial(self._toward, walk.z))(units, distances)
        # The nearest boundary that can be reached in the box; if there is none, the boundary that the step comes
        # closest to.
        steps = (points - walk.z[None]).astype(promoted(points.dtype, jnp.float32))
        left = jnp.where(has_direction, distances - jnp.sum(units * steps, axis=1), jnp.inf)
        is_reached = left <= _UNREACHED * distances
        lengths = jnp.where(is_reached, jnp.linalg.norm(steps, axis=1), jnp.inf)
        nearest = jnp.where(is_reached.any(), jnp.argmin(lengths), jnp.argmin(left))

        z = jnp.where(has_direction[nearest], points[nearest], walk.z)
        overshot_logits = restriction(self._overshot(z))
        is_changed = jnp.argmax(overshot_logits) != label
        is_finite = solvers.has_label(logits) & jnp.isfinite(norms).all() & solvers.has_label(overshot_logits)
        status = jnp.where(is_changed, solvers.Status.CONVERGED, solvers.Status.OUT_OF_STEPS)
        status = jnp.where(has_direction[nearest], status, solvers.Status.ZERO_GRADIENT)
        status = jnp.where(is_finite, status, solvers.Status.NON_FINITE).astype(jnp.int32)
        return walk._replace(z=z, pull=walk.pull + pulls[nearest], status=status)

    def _toward(self, z, unit, distance):
        """The nearest point in the box at this distance along a unit normal, and the step before the box clips it."""
        if self.attack.domain == "unbounded":
            return z + distance * unit, distance * unit
        if self.attack.subspace is None:
            pull = multiple_to_half_space(z, unit, distance, self.low, self.high) * unit
            return box(z + pull, self.low, self.high), pull
        embed, coordinates = self.space.embed, self.space.coordinates

        def to_half_space(point):  # within the subspace
            change = coordinates(point - self.image)
            return self.image + embed(change + jnp.maximum(distance - jnp.vdot(unit, change - z), 0) * unit)

        sets = (BOXES[self.attack.domain], to_half_space)
        found = coordinates(dykstra(self.image + embed(z), sets, NUM_PROJECTIONS) - self.image)
        return found, found - z

    def _overshot(self, z):
        return box((1 + self.attack.overshoot) * z, self.low, self.high)

    def result(self, walk):
        """The image at the end of a walk, or the last point on the way there that the bounds allow."""
        z, epsilon = self._overshot(walk.z), self.attack.epsilon
        if self.attack.subspace is not None:
            return self.bounds.project(self.image + self.space.embed(z), self.image)
        multiple = multiple_to_sphere(jnp.zeros_like(z), walk.pull, epsilon, self.low, self.high)
        z = jnp.where(solvers.norms_of(z) > epsilon, box(multiple * walk.pull, self.low, self.high), z)
        return self.image + self.bounds.shorten(self.space.embed(z))


@dataclasses.dataclass(frozen=True)
class _Flipped:
    """The space of all images, whose coordinates are the pixels of the flipped image."""

    image_shape: tuple[int, int, int]

    def coordinates(self, image):
        return flip(image).reshape(-1)

    def embed(self, z):
        return flip(z.reshape(self.image_shape))
