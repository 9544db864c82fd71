"""Margins of a classifier: one sample in one subspace, or many samples in many subspaces."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _checks, _devices, _pairs, _programs, lanes
from hmt_jax._numbers import as_array, whole_number
from hmt_jax.classifiers import Classifier, as_pytree, restrict
from hmt_jax.solvers import DeepFool, Solution, Solver, Status
from hmt_jax.subspaces import Subspace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MarginResult:
    """Margins of N samples in R subspaces. Every array has leading axes (R, N); R = 1 for a single subspace.

    Attributes:
      margin: L2 norm of the smallest perturbation found, in pixels in [0, 1], over all channels. Where `status` is
        not converged it is no margin: the distance reached, NaN, or infinity, as `hmt_jax.Status` says.
      label: the predicted label of the sample, right or wrong; -1 if its logits name none: one is NaN or +infinite, or
        all are -infinite.
      adversarial_label: the label at the perturbed sample; equal to `label` where the search did not converge.
      num_steps: steps that the solver took.
      status: a `hmt_jax.Status` for each pair.
      gap: max over k != label of g_k - g_label at the perturbed sample, in logits: negative before the boundary,
        positive beyond it. NaN where there is no point.
      alignment: cosine of the angle between the perturbation and the gradient of that gap in the subspace, which is
        the boundary's normal if the gap is small. 1 at a minimal perturbation; any less, and a smaller one is near.
      coordinates: (R, N, d) perturbations in the coordinates of their subspaces, if they were asked for.
      solver: the solver that was run.
      precision: the precision of matrix products in the classifier.
      work: the lanes and their use.
      num_bisections: how often the way to the point that the solver found was halved.
    """

    margin: np.ndarray
    label: np.ndarray
    adversarial_label: np.ndarray
    num_steps: np.ndarray
    status: np.ndarray
    gap: np.ndarray
    alignment: np.ndarray
    coordinates: np.ndarray | None
    solver: Solver = dataclasses.field(metadata={"static": True})
    precision: str = dataclasses.field(metadata={"static": True})
    work: lanes.Work = dataclasses.field(metadata={"static": True})
    num_bisections: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def is_converged(self) -> np.ndarray:
        """Which pairs have a margin."""
        return self.status == Status.CONVERGED

    def raise_unless_converged(self) -> None:
        """Raises a ValueError that names the first pairs without a margin, if there are any."""
        missing = np.argwhere(~self.is_converged)
        if len(missing):
            first = ", ".join(f"({r}, {n}) {Status(self.status[r, n]).name}" for r, n in missing[:5].tolist())
            raise ValueError(
                f"{len(missing)} of {self.status.size} (subspace, sample) pairs have no margin; the first: {first}"
            )


def deepfool(
    classifier: Classifier,
    image: ArrayLike,
    subspace: Subspace,
    *,
    num_candidates: int = 10,
    overshoot: float = 0.02,
    max_steps: int = 100,
) -> Solution:
    """DeepFool for one image in one subspace; pure, so that it can be compiled and mapped.

    `measure_margins` is faster for many images or subspaces; `hmt_jax.solvers.deepfool` describes the steps.

    Args:
      classifier: callable pytree from images (N, height, width, channels) to logits (N, L).
      image: (height, width, channels), with pixels in [0, 1].
      subspace: a single subspace of `hmt_jax.subspaces`, or any pytree with `coordinates` and `embed`, which must be
        orthonormal: here, where it may be an argument of compiled code, that is not checked.
      num_candidates: classes to move towards, the label included.
      overshoot: relative length added to every iterate before the label is checked, and to the result.
      max_steps: steps after which the sample is given up.

    Returns:
      A `hmt_jax.Solution`, whose `coordinates` are the perturbation in the subspace.

    Raises:
      ValueError: for an image or logits of the wrong shape, or settings out of range.

    >>> from hmt_jax import subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(2, 2, 1)
    >>> solution = deepfool(classifier, image, subspaces.full((2, 2, 1)))
    >>> f"{solution.margin:.4f}"  # (1 + 0.02) * (0.9 - 0.5) / sqrt(2)
    '0.2885'
    """
    image = jnp.asarray(as_array("image", image))
    _checks.check_image(image)
    solver = DeepFool(num_candidates, overshoot, max_steps)
    pytree = as_pytree(classifier)
    with _programs.of_call(pytree):
        return _solve_one(solver, pytree, image, subspace)


def measure_margins(
    classifier: Classifier,
    images: ArrayLike,
    subspaces: Subspace,
    solver: Solver | None = None,
    *,
    known: MarginResult | None = None,
    num_bisections: int = 0,
    keep_coordinates: bool = False,
    precision: str = "highest",
    num_lanes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **deepfool_settings: Any,
) -> MarginResult:
    """Margins of every image in every subspace: the smallest perturbations inside it that change the label.

    All pairs of a subspace and an image run through one compiled program, in as many lanes as fit the device; networks
    of one architecture and stacks of one kind share it. Computation is in the precision of images and parameters; JAX
    rounds float64 ones to float32 unless its option `jax_enable_x64` is set.

    The numbers of lanes, and of images worked on at a time, are chosen to fit a memory budget: on CPU 2 GiB beside the
    classifier, the images and the result, or more if a single image and lane need more; on accelerators, all that JAX
    may use. If memory runs out nevertheless, the number of lanes is halved, with a warning.

    Args:
      classifier: callable pytree from images (N, height, width, channels) in [0, 1] to logits (N, L): a Flax module,
        an Equinox module, a `jax.tree_util.Partial`, a plain function. Normalisation belongs to it. A plain function
        is compiled anew in every call; `jax.tree_util.Partial(function, parameters)` is compiled once.
      images: (N, height, width, channels), floating point in [0, 1], or such images flipped. A sample with a NaN or
        an infinite pixel gets status NON_FINITE and disturbs no other.
      subspaces: one subspace, or a stack such as `hmt_jax.subspaces.dct_diagonal` gives.
      solver: a solver of `hmt_jax.solvers`; DeepFool as in the paper if not given.
      known: margins of the same pairs and the same classifier that were measured before with `keep_coordinates=True`,
        such as by another solver. The smaller of the two perturbations is kept, so no margin grows. Each known one
        is checked first, at two forward passes.
      num_bisections: how often to halve, at the end, the way from the sample to the point that the solver found, at one
        forward pass each. The margin is that of the end with another label, and not above the solver's.
      keep_coordinates: whether the result holds the perturbations, as coordinates in their subspaces.
      precision: of float32 matrix products and convolutions, as `jax.default_matmul_precision` names them.
        Accelerators round inputs to fewer bits by default, and margins are differences of logits near zero.
      num_lanes: pairs advanced together on each device, on CPU twice as many in the passes at the end; chosen for the
        device if not given.
      devices: where to run; all local devices if not given.
      progress: called with the numbers of finished pairs and of all pairs, every few steps.
      **deepfool_settings: `num_candidates`, `overshoot`, `max_steps`: short for `solver=deepfool(...)`.

    Returns:
      A `MarginResult` with axes (R, N).

    Raises:
      ValueError: for images or logits of the wrong shape or type, no images at all, a subspace for other images or
        with coordinates that are not orthonormal, a classifier whose logits are NaN or infinite for every image, or
        known perturbations that do not change what this classifier says.
      TypeError: for a classifier that can't be called, a solver that is none, or settings besides a solver.

    Warns:
      PixelRangeWarning: if pixels leave [0, 1] and are not those of flipped images.
      UserWarning: if gradients vanish where the classifier is confident, as those of probabilities do; or if every
        search met NaN or infinite numbers.

    >>> from hmt_jax import subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(16, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    >>> result = measure_margins(classifier, images, subspaces.dct_diagonal((4, 4, 1), size=2, step=1))
    >>> result.margin.shape, bool(result.is_converged.all())
    ((3, 5), True)
    """
    _checks.check_callback("progress", progress, "the numbers of finished pairs and of all pairs")
    solver = _solver_of(solver, deepfool_settings)
    if whole_number("num_bisections", num_bisections) < 0:
        raise ValueError(f"num_bisections must not be negative, got {num_bisections}")
    # Those of NumPy stay on the host: a device is given a chunk at a time.
    images = as_array("images", images)
    _checks.check_images(images)
    stack, num_subspaces = _checks.as_stack(subspaces, images)
    first = jax.tree.map(lambda leaf: leaf[0], stack)
    pytree = as_pytree(classifier)
    known_solution = _solution_of(known, (num_subspaces, len(images), *_shape_of_coordinates(first, images)))
    with _programs.of_call(pytree):
        (solution, at_end), evidence, work = _pairs.solve(
            solver,
            pytree,
            images,
            stack,
            num_subspaces,
            known=known_solution,
            num_bisections=num_bisections,
            precision=precision,
            keep_coordinates=keep_coordinates,
            num_lanes=num_lanes,
            devices=_devices.as_list(devices),
            progress=progress,
        )
    result = MarginResult(
        **solution._asdict(),
        **at_end._asdict(),
        solver=solver,
        num_bisections=num_bisections,
        precision=precision,
        work=work,
    )
    _checks.check_were_finite(result, images)
    _checks.warn_of_saturation(result, evidence)
    return result


@functools.partial(_programs.jit, static_argnums=0)
def _solve_one(solver, classifier, image, subspace):
    with jax.default_matmul_precision("highest"):
        restriction = restrict(classifier, image, subspace)
        state = jax.lax.while_loop(
            lambda state: ~solver.done(state),
            lambda state: solver.step(restriction, state),
            _pairs.start(solver, classifier, image, subspace, _pairs.linearize_at(solver, classifier, image)),
        )
        return solver.result(state)


def _solver_of(solver, settings):
    """The solver that is given, or DeepFool with settings."""
    known = [field.name for field in dataclasses.fields(DeepFool)]
    if unknown := [name for name in settings if name not in known]:
        own = [
            name for name, one in inspect.signature(measure_margins).parameters.items() if one.kind != one.VAR_KEYWORD
        ]
        raise TypeError(
            f"measure_margins has no argument {', '.join(unknown)}; its arguments are {', '.join([*own, *known])}"
        )
    if solver is None:
        return DeepFool(**settings)
    if settings:
        raise TypeError(f"give either solver or {', '.join(settings)}, which belong to solvers.deepfool")
    methods = ("num_candidates", "start", "step", "done", "result")
    missing = [name for name in methods if not hasattr(solver, name)]
    if isinstance(solver, type) or len(missing) == len(methods):
        raise TypeError(
            f"solver must be a solver such as hmt_jax.solvers.tight('fast'), with its parentheses, got {solver!r}"
        )
    if missing:
        raise TypeError(
            f"solver {type(solver).__name__} has no {', '.join(missing)}: a solver has {', '.join(methods)}, as "
            "hmt_jax.solvers describes"
        )
    if getattr(solver, "__hash__", None) is None:
        raise TypeError(
            f"solver {type(solver).__name__} must be hashable: decorate its class with "
            "dataclasses.dataclass(frozen=True)"
        )
    return solver


def _solution_of(result, shape):
    """What a result says of all its pairs, as a solver's answer; None for None."""
    if result is None:
        return None
    if not isinstance(result, MarginResult):
        raise TypeError(f"known must be a MarginResult, what measure_margins gives, got {type(result)}")
    if result.margin.shape != shape[:2]:
        raise ValueError(
            f"known must hold margins of the same pairs, {shape[0]} subspaces and {shape[1]} images, got "
            f"{result.margin.shape[0]} and {result.margin.shape[1]}"
        )
    if result.coordinates is None:
        raise ValueError("known was measured without coordinates: measure it with keep_coordinates=True")
    if result.coordinates.shape != shape:
        raise ValueError(
            f"known must hold margins in the same subspaces, of dimension {shape[2]}, got {result.coordinates.shape[2]}"
        )
    return Solution(*(getattr(result, field) for field in Solution._fields))


def _shape_of_coordinates(subspace, images):
    return jax.eval_shape(subspace.coordinates, jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)).shape
