"""Adversarial attacks on batches of images, and the accuracy that is left under them.

An attack is an immutable callable pytree, `attack(classifier, images, labels, key) -> images`: pure, an argument of
compiled functions like a classifier, and fit for the inside of a training step. Perturbed images stay within
`epsilon` of the images and keep their pixels in [0, 1]; with the domain "flipped", images are those that
`hmt_jax.frequency.flip` gives, and it is the images flipped back that keep their pixels in [0, 1]; "unbounded" keeps
them in no range. With a subspace, perturbations lie in it. No gradient passes through an attack.

All three bounds hold but for rounding, a few 1e-6 of a pixel in float32. Together they may leave little: an image of
which many pixels are black can't move in a subspace where every direction darkens one of them, such as the windows of
an MNIST image that leave out its lowest frequencies. Its attack returns the image, or one hardly different.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _batches, _checks, _pairs, _programs, solvers
from hmt_jax._numbers import as_array, as_numbers, check_key, number, promoted, whole_number
from hmt_jax.classifiers import Classifier, as_new_function, as_pytree, logits_of, restrict, shape_of_logits
from hmt_jax.frequency import flip
from hmt_jax.projections import (
    affine,
    box,
    dykstra,
    flipped_box,
    l2_ball,
    linf_ball,
    multiple_to_half_space,
    multiple_to_sphere,
)
from hmt_jax.subspaces import Subspace, full

# Steps of Dykstra's algorithm in a projection. What they leave outside is scaled back.
_NUM_PROJECTIONS = 10
# What flipping there and back leaves in float32: pixels that are black stay so to within this.
_ROUNDING = 1e-6
# Shortest step of DeepFool, in pixels, as in `hmt_jax.solvers.deepfool`; and the share of a step lost to rounding.
_SHORTEST_STEP, _UNREACHED = 1e-4, 1e-4

_NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda change: solvers.norms_of(change.reshape(-1)),
    "linf": lambda change: jnp.max(jnp.abs(change)),
}
_BALLS = {"l2": l2_ball, "linf": linf_ball}
_BOXES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "pixels": box,
    "flipped": flipped_box,
    "unbounded": lambda images: images,
}
_STATIC = {"static": True}


class Attack(Protocol):
    """A callable pytree that gives perturbed images of the same shape."""

    def __call__(self, classifier: Classifier, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, eq=False)
class _Bounded:
    """The bounds that attacks share."""

    subspace: Subspace | None
    norm: str = dataclasses.field(metadata=_STATIC)
    epsilon: float = dataclasses.field(metadata=_STATIC)
    domain: str = dataclasses.field(metadata=_STATIC)

    def __post_init__(self):
        as_numbers(self)
        for name, known in (("norm", _NORMS), ("domain", _BOXES)):
            if getattr(self, name) not in tuple(known):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if not 0 < self.epsilon < math.inf:  # so written that NaN fails, too
            raise ValueError(f"epsilon must be positive and finite, in pixels in [0, 1], got {self.epsilon}")

    def _prepare(self, classifier, images, labels, key):
        """The classifier, images and labels, checked, as the compiled attack takes them."""
        check_key(key)
        classifier, images = as_pytree(classifier), jnp.asarray(as_array("images", images))
        # Checked before they are JAX's, which wraps those beyond int32 around.
        labels = as_array("labels", labels)
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                "images must have shape (N, height, width, channels) and labels (N,), got "
                f"{images.shape} and {labels.shape}"
            )
        _checks.check_floating("images", images)
        if self.subspace is not None:
            _checks.check_subspace(self.subspace, images)
        if not isinstance(labels, jax.core.Tracer):
            values = np.asarray(labels)
            _checks.check_labels("labels", values)
            with _programs.of_call(classifier):
                _checks.check_are_classes(values, shape_of_logits(classifier, images).shape[1])
        return classifier, images, jnp.asarray(labels)

    def _space(self, image) -> Subspace:
        return full(image.shape) if self.subspace is None else self.subspace

    def _project(self, point, image):
        """One point moved to a near one within the bounds around its image."""
        ball = partial(_BALLS[self.norm], center=image, radius=self.epsilon)
        to_box = _BOXES[self.domain]
        if self.subspace is None:
            if self.domain == "flipped":
                point = dykstra(point, (ball, to_box), _NUM_PROJECTIONS)
            # The box holds the image, so that going to it leaves the ball only where their axes differ.
            return image + self._shorten(to_box(ball(point)) - image)
        in_subspace = partial(affine, center=image, subspace=self.subspace)
        change = self._shorten(dykstra(point, (ball, to_box, in_subspace), _NUM_PROJECTIONS) - image)
        return image + self._share_in_box(image, change) * change

    def _shorten(self, change):
        return change * (self.epsilon / jnp.maximum(_NORMS[self.norm](change), self.epsilon))

    def _share_in_box(self, image, change):
        """The largest t <= 1 for which image + t change is in the box."""
        if self.domain == "unbounded":
            return 1
        pixels, change = (flip(image), flip(change)) if self.domain == "flipped" else (image, change)
        room = jnp.maximum(jnp.where(change > 0, 1 - pixels, pixels), _ROUNDING)
        return jnp.min(jnp.where(jnp.abs(change) > room, room / jnp.abs(change), 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PGD(_Bounded):
    """The attack that `pgd` makes."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    step_size: float = dataclasses.field(metadata=_STATIC)
    num_restarts: int = dataclasses.field(metadata=_STATIC)
    random_start: bool = dataclasses.field(metadata=_STATIC)

    def __post_init__(self):
        super().__post_init__()
        _check_num_steps(self.num_steps)
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, in pixels in [0, 1], got {self.step_size}")
        if self.num_restarts < 1:
            raise ValueError(f"num_restarts must be at least 1, got {self.num_restarts}")
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                f"num_restarts={self.num_restarts} would repeat one search: set random_start=True, or num_restarts=1"
            )

    def __call__(self, classifier: Classifier, images: ArrayLike, labels: ArrayLike, key: jax.Array) -> jax.Array:
        arguments = self._prepare(classifier, images, labels, key)
        with _programs.of_call(*arguments):
            return _ascend(self, *arguments, key)

    def _start(self, key, image):
        if not self.random_start:
            return image
        if self.norm == "linf" and self.subspace is None:
            change = jax.random.uniform(key, image.shape, image.dtype, -self.epsilon, self.epsilon)
        else:
            direction_key, length_key = jax.random.split(key)
            space = self._space(image)
            z = jax.random.normal(direction_key, space.coordinates(image).shape, image.dtype)
            length = self.epsilon * jax.random.uniform(length_key, dtype=image.dtype) ** (1 / z.size)
            direction = space.embed(z)
            change = direction * (length / _NORMS[self.norm](direction))
        return self._project(image + change, image)

    def _step(self, point, image, gradient):
        if self.subspace is not None:
            gradient = self.subspace.embed(self.subspace.coordinates(gradient))
        if self.norm == "linf":
            direction = jnp.sign(gradient)
        else:
            length = _NORMS["l2"](gradient)
            direction = gradient / jnp.where(length > 0, length, 1)
        return self._project(point + self.step_size * direction, image)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DeepFool(_Bounded):
    """The attack that `deepfool` makes."""

    solver: solvers.DeepFool = dataclasses.field(metadata=_STATIC)

    def __call__(self, classifier: Classifier, images: ArrayLike, labels: ArrayLike, key: jax.Array) -> jax.Array:
        arguments = self._prepare(classifier, images, labels, key)
        with _programs.of_call(*arguments):
            return _cross_boundary(self, *arguments)

    def _perturb(self, classifier, image, label):
        search = _Search(self, image)
        restriction = restrict(classifier, image, search.space)
        at_image = _pairs.linearize_at(self.solver, classifier, image)

        def step(walk, _):
            return jax.tree.map(partial(jnp.where, search.done(walk)), walk, search.step(restriction, walk)), None

        walk = _pairs.start(search, classifier, image, search.space, at_image)
        walk = _loop(step, walk, length=self.solver.max_steps - 1)
        is_hopeless = (walk.status == solvers.Status.NON_FINITE) | (walk.status == solvers.Status.ZERO_GRADIENT)
        is_found = (walk.candidates[0] == label) & ~is_hopeless
        return jnp.where(is_found, search.result(walk).astype(image.dtype), image)


class _Walk(NamedTuple):
    """The state of a search by DeepFool."""

    z: jax.Array  # (d,) the change so far, before the overshoot
    pull: jax.Array  # (d,) the sum of the steps before the box cuts them; z itself if the box cut none
    candidates: jax.Array  # (C,) classes by falling logit, the label first; -1 if those logits are not finite
    status: jax.Array  # OUT_OF_STEPS while the search goes on


class _Search:
    """A search by DeepFool around one image, as `hmt_jax.solvers.deepfool`, but with every point in the box.

    A step goes to the nearest point of the linearised boundary within the box. Without a subspace, z is the change of
    the pixels (of the image flipped back, if the domain is "flipped"), and that point is found exactly.
    """

    def __init__(self, attack, image):
        self.attack, self.image, self.num_candidates = attack, image, attack.solver.num_candidates
        is_flipped = attack.domain == "flipped" and attack.subspace is None
        self.space: Any = _Flipped(image.shape) if is_flipped else attack._space(image)
        self.low, self.high = -jnp.inf, jnp.inf
        if attack.subspace is None and attack.domain != "unbounded":
            pixels = self.space.coordinates(image)
            self.low, self.high = -pixels, 1 - pixels

    def start(self, restriction, at_sample):
        is_labelled = solvers.has_label(at_sample.logits)
        zero = jnp.zeros_like(at_sample.normals[0])
        walk = _Walk(zero, zero, jnp.where(is_labelled, at_sample.candidates, -1), jnp.asarray(0, jnp.int32))
        return self._move(restriction, walk, at_sample.logits, at_sample.normals)

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
        # The nearest boundary that the box lets us reach; if there is none, the one that we come closest to.
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
        """The nearest point of the box at this distance along a unit normal, and the step before the box cuts it."""
        if self.attack.domain == "unbounded":
            return z + distance * unit, distance * unit
        if self.attack.subspace is None:
            pull = multiple_to_half_space(z, unit, distance, self.low, self.high) * unit
            return box(z + pull, self.low, self.high), pull
        embed, coordinates = self.space.embed, self.space.coordinates

        def to_half_space(point):  # within the subspace
            change = coordinates(point - self.image)
            return self.image + embed(change + jnp.maximum(distance - jnp.vdot(unit, change - z), 0) * unit)

        sets = (_BOXES[self.attack.domain], to_half_space)
        found = coordinates(dykstra(self.image + embed(z), sets, _NUM_PROJECTIONS) - self.image)
        return found, found - z

    def _overshot(self, z):
        return box((1 + self.attack.solver.overshoot) * z, self.low, self.high)

    def done(self, walk):
        return walk.status != solvers.Status.OUT_OF_STEPS

    def result(self, walk):
        """The image at the end of a walk, or the point on the way there that the bounds still allow."""
        z, epsilon = self._overshot(walk.z), self.attack.epsilon
        if self.attack.subspace is not None:
            return self.attack._project(self.image + self.space.embed(z), self.image)
        multiple = multiple_to_sphere(jnp.zeros_like(z), walk.pull, epsilon, self.low, self.high)
        z = jnp.where(solvers.norms_of(z) > epsilon, box(multiple * walk.pull, self.low, self.high), z)
        return self.image + self.attack._shorten(self.space.embed(z))


@dataclasses.dataclass(frozen=True)
class _Flipped:
    """The space of all images, whose coordinates are the pixels of the flipped image."""

    image_shape: tuple[int, int, int]

    def coordinates(self, image):
        return flip(image).reshape(-1)

    def embed(self, z):
        return flip(z.reshape(self.image_shape))


def pgd(
    *,
    norm: str,
    epsilon: float,
    num_steps: int = 10,
    step_size: float | None = None,
    num_restarts: int = 1,
    random_start: bool = True,
    subspace: Subspace | None = None,
    domain: str = "pixels",
) -> PGD:
    """Projected gradient ascent on the cross-entropy, within a ball around each image.

    With g the gradient of the loss at x, orthogonally projected to the subspace if there is one, and P going back to
    the bounds, a step is

      x <- P(x + step_size g / ||g||_2)   or, in the L-infinity norm,   x <- P(x + step_size sign(g)).

    The attack returns the point of the greatest loss among all points of all restarts, the image itself included: the
    loss of no sample falls. It climbs the log-odds against the label, of which the cross-entropy is the softplus; both
    have the same points and, scaled, the same gradients, but float32 does not lose those of confident classifiers.

    P goes to the ball, then to the box. For flipped images, and in a subspace, Dykstra's algorithm comes first, which
    goes to about the nearest point of the intersection, and what it leaves outside is shortened at the end.

    A random start is uniform in the ball, or in its part in the subspace, and goes through P. (In the L-infinity norm
    within a subspace of dimension d: a Gaussian direction, and a length distributed as that of a uniform point.)

    Args:
      norm: "l2", over all channels, or "linf".
      epsilon: radius of the ball, in pixels in [0, 1].
      num_steps: gradients taken in each restart.
      step_size: length of a step, in pixels; 2.5 * epsilon / num_steps if not given, as Madry et al. suggest.
      num_restarts: searches, each with a start of its own.
      random_start: whether a search starts at random; at the image if not.
      subspace: a single subspace of `hmt_jax.subspaces` that holds the perturbation; all directions if not given.
      domain: "pixels"; "flipped" for images whose frequencies are flipped; "unbounded" for no box at all, such as for
        images that are not within [0, 1] themselves.

    Returns:
      An attack. The pytree's only arrays are those of the subspace: other settings compile anew.

    Raises:
      ValueError: for settings out of range, and an unknown norm or domain.

    References:
      Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks",
      ICLR 2018, arXiv:1706.06083.

    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> attack = pgd(norm="linf", epsilon=0.1, random_start=False)
    >>> images = attack(classifier, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]), jax.random.key(0))
    >>> [round(pixel, 4) for pixel in images.ravel().tolist()]
    [0.4, 0.6, 0.5, 0.5]
    """
    if step_size is None:
        _check_num_steps(num_steps)
        step_size = 2.5 * number("epsilon", epsilon) / num_steps
    return PGD(subspace, norm, epsilon, domain, num_steps, step_size, num_restarts, random_start)


def deepfool(
    *,
    epsilon: float,
    num_steps: int = 5,
    overshoot: float = 0.02,
    num_candidates: int = 2,
    subspace: Subspace | None = None,
    domain: str = "pixels",
) -> DeepFool:
    """Each image moved over its nearest decision boundary by DeepFool, or towards it as far as the bounds allow.

    The steps are those of `hmt_jax.solvers.deepfool`, except that each goes to the nearest point of the linearised
    boundary within the box, or as near to the boundary as the box allows. If the last point is outside the L2 ball,
    the sum of the steps is scaled down and cut to the box again, so that it ends on the ball. For two classes with
    linear logits this is exact: the label changes if any image in the box within epsilon / (1 + overshoot) has the
    other label. In a subspace, points of the search may be slightly outside the box; the last one is brought within
    all bounds as in `pgd`.

    Images that the classifier gets wrong are returned unchanged, and so are those where DeepFool fails with the status
    ZERO_GRADIENT or NON_FINITE. The attack is not random: any key will do.

    Args:
      epsilon: L2 norm, over all channels, that the perturbation does not exceed, in pixels in [0, 1].
      num_steps: steps of DeepFool.
      overshoot: relative length added to the perturbation.
      num_candidates: classes to move towards, the label included. Each one but the label costs a backward pass.
      subspace: as in `pgd`.
      domain: as in `pgd`.

    Raises:
      ValueError: for settings out of range, and an unknown domain.

    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.6, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> attack = deepfool(epsilon=1.0, overshoot=0.1)
    >>> [round(pixel, 4) for pixel in attack(classifier, image, jnp.array([0]), jax.random.key(0)).ravel().tolist()]
    [0.545, 0.555, 0.5, 0.5]
    """
    _check_num_steps(num_steps)
    return DeepFool(subspace, "l2", epsilon, domain, solvers.DeepFool(num_candidates, overshoot, num_steps))


def as_argument(attack: Attack | None) -> Any:
    """The attack as an argument of compiled functions: a plain function is compiled anew, as a classifier is.

    Raises:
      TypeError: if it can't be called on (classifier, images, labels, key): `pgd` itself, for instance.
    """
    if attack is None or _can_attack(attack):
        return as_new_function(attack) if callable(attack) and jax.tree_util.all_leaves([attack]) else attack
    raise TypeError(
        "attack must be what hmt_jax.attacks.pgd(norm='l2', epsilon=1.0) returns, with its parentheses, or a function "
        f"of (classifier, images, labels, key), got {attack!r}"
    )


def _can_attack(attack) -> bool:
    if isinstance(attack, type) or not callable(attack):
        return False
    try:
        inspect.signature(attack).bind("classifier", "images", "labels", "key")
    except TypeError:
        return False
    except ValueError:  # Python knows no signature of it
        pass
    return True


def perturb(attack: Attack, classifier: Classifier, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
    """The perturbed images that an attack returns, converted to the dtype of the images.

    Raises:
      ValueError: if it returns anything but floating-point images of the same shape.
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


class RobustMetrics(NamedTuple):
    """Means over samples, with and without an attack.

    Attributes:
      accuracy: share of right labels of perturbed images, in [0, 1].
      clean_accuracy: the same of the images themselves.
      loss: cross-entropy of perturbed images, in nats.
      clean_loss: the same of the images themselves.
      energy: (R,) squared L2 norm of the perturbation's part in each subspace of a stack; None without a stack.
    """

    accuracy: float
    clean_accuracy: float
    loss: float
    clean_loss: float
    energy: np.ndarray | None


def evaluate(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike,
    attack: Attack,
    key: jax.Array,
    *,
    batch_size: int = 500,
    subspaces: Subspace | None = None,
) -> RobustMetrics:
    """Accuracy and loss under an attack over all samples, exactly: the last batch is padded, and the padding masked.

    Args:
      classifier: anything that `hmt_jax.classifiers.as_pytree` takes, in evaluation mode.
      images: (N, height, width, channels), uint8 in [0, 255] or floating point in [0, 1].
      labels: (N,) whole numbers in [0, L).
      attack: what `pgd` and `deepfool` make, another callable pytree of that kind, or a plain function.
      key: random key of the attack; each batch has one of its own.
      batch_size: samples attacked together.
      subspaces: in which to measure the perturbations: one, or a stack such as that of
        `hmt_jax.subspaces.dct_diagonal`.

    Raises:
      ValueError: for images and labels of unequal number, or none, labels that are no class, a batch size below 1,
        subspaces for other images, or an attack that does not return images of the same shape.
      TypeError: if the subspaces, the attack or the key are of another kind.

    Warns:
      PixelRangeWarning: if pixels leave [0, 1], and not because images are flipped, where the attack keeps them in it.

    >>> from hmt_jax.subspaces import dct_diagonal
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jnp.array([[0.6, 0.4, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5]]).reshape(2, 2, 2, 1)
    >>> windows = dct_diagonal((2, 2, 1), size=1, step=1)
    >>> metrics = evaluate(classifier, images, [0, 0], deepfool(epsilon=0.2), jax.random.key(0), subspaces=windows)
    >>> metrics.clean_accuracy, metrics.accuracy
    (1.0, 0.5)
    """
    if attack is None:
        raise TypeError("attack must not be None: to measure unperturbed images, use hmt_jax.training.evaluate")
    attack_argument = as_argument(attack)
    check_key(key)
    pixels, targets = _batches.check_samples(images, labels)
    _checks.check_range(pixels, attack)
    stack, num_subspaces = (None, 0) if subspaces is None else _checks.as_stack(subspaces, pixels)
    _batches.check_batch_size(batch_size)
    pytree = as_pytree(classifier)
    batches = _batches.slices(pixels, targets, min(batch_size, len(pixels)))
    sums: list[Any] = []
    with _programs.of_call(pytree, attack_argument):
        for index, batch in enumerate(batches):
            *found, num_classes = _evaluate_batch(
                num_subspaces, pytree, attack_argument, stack, batch, jax.random.fold_in(key, index)
            )
            if not sums:
                _checks.check_are_classes(targets, int(num_classes))
            sums.append(found)
    means = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64) / len(pixels), *jax.device_get(sums))
    accuracy, clean_accuracy, loss, clean_loss = map(float, means[:-1])
    return RobustMetrics(accuracy, clean_accuracy, loss, clean_loss, energy=means[-1])


@partial(_programs.jit, static_argnums=0)
def _evaluate_batch(num_subspaces, classifier, attack, stack, batch, key):
    """The fields of `RobustMetrics`, as sums over the samples of a batch that count, and the number of classes."""
    images = _batches.as_floats(batch.images)
    clean_logits = logits_of(classifier, images)
    perturbed = perturb(attack, classifier, images, batch.labels, key)

    def energy(subspace):
        energies = jax.vmap(lambda change: jnp.sum(subspace.coordinates(change) ** 2))(perturbed - images)
        return jnp.sum(energies, where=batch.is_counted)

    loss, num_correct = _batches.sum_over(logits_of(classifier, perturbed), batch)
    clean_loss, num_clean_correct = _batches.sum_over(clean_logits, batch)
    energies = None if stack is None else jax.vmap(energy, axis_size=num_subspaces)(stack)
    return num_correct, num_clean_correct, loss, clean_loss, energies, clean_logits.shape[-1]


class _Best(NamedTuple):
    """The points of the greatest log-odds so far."""

    images: jax.Array
    log_odds: jax.Array

    def or_better(self, images, log_odds):
        is_better = log_odds > self.log_odds  # never for NaN
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
        return (jax.vmap(attack._step)(points, images, gradients), best.or_better(points, values)), None

    def restart(best, points):
        points, best = _loop(step, (points, best), length=attack.num_steps)
        return best.or_better(points, log_odds(points)), None

    keys = jax.random.split(key, (attack.num_restarts, len(images)))
    starts = jax.vmap(jax.vmap(attack._start), (0, None))(keys, images)
    return _loop(restart, _Best(images, log_odds(images)), starts).images


@_programs.jit
def _cross_boundary(attack, classifier, images, labels):
    classifier, images = jax.lax.stop_gradient((classifier, images))
    return jax.vmap(partial(attack._perturb, classifier))(images, labels)


def _loop(body, carry, items=None, length=None) -> Any:
    """The last carry of a loop; written out on CPU, where XLA compiles convolutions badly inside loops."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, items, length)[0]
    # Not by scan's `unroll`, which leaves a loop around a single turn.
    for turn in range(len(items) if length is None else length):
        carry, _ = body(carry, None if items is None else items[turn])
    return carry


def _log_odds(classifier, labels, images):
    """log((1 - p) / p) for the probability p of the label, for each image: the cross-entropy is its softplus."""
    logits = logits_of(classifier, images)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jax.nn.logsumexp(logits, axis=1, where=~is_label) - jnp.sum(logits, axis=1, where=is_label)


def _check_num_steps(num_steps):
    if whole_number("num_steps", num_steps) < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
