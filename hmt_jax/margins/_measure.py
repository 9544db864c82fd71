"""Margins of many images in many subspaces, at once or chunk by chunk, and of one image in one subspace."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hmt_jax import _programs
from hmt_jax._checks import as_array, check_callback, check_image
from hmt_jax._images import Chunk, ImageSource, as_floats, checked_for_range
from hmt_jax.classifiers import Classifier, as_pytree
from hmt_jax.margins import _driver, _pair, _states
from hmt_jax.margins._plan import Plan
from hmt_jax.margins._result import MarginResult
from hmt_jax.margins._signs import Signs, report, signs_of
from hmt_jax.solvers import Solution, Solver, tight
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import check_fits


def measure_margins(
    classifier: Classifier,
    images: ArrayLike | ImageSource | Iterable[Any],
    subspaces: Subspace | Sequence[Subspace],
    solver: Solver = tight("quick"),  # noqa: B008 - immutable
    *,
    keep_coordinates: bool = False,
    precision: str = "highest",
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MarginResult:
    """Margins of every image in every subspace: norms of the smallest perturbations inside it that change the label.

    All pairs of a subspace and an image run through the same few compiled programs, as many at a time as suit the
    device. Networks of one architecture and subspaces of one kind share these programs. Images are copied to the device
    chunk by chunk. Computation is in the precision of the images and the parameters; JAX rounds float64 to float32
    unless its option `jax_enable_x64` is set.

    The number of pairs and the number of images at a time are chosen to fit a memory budget. On CPU, it is 2 GiB beside
    the classifier and the result, at most a quarter of the memory that the process may use, or more if a single pair
    needs more. On accelerators, it is all memory that JAX may use. If memory runs out nevertheless, the number of pairs
    is halved, with a warning.

    Args:
      classifier: callable pytree from images (N, height, width, channels) in [0, 1] to logits (N, L): a Flax module,
        an Equinox module, a `jax.tree_util.Partial` or a plain function. It includes the normalisation of its inputs.
        A plain function is compiled anew in every call; `jax.tree_util.Partial(function, parameters)` is compiled once.
      images: (N, height, width, channels): an array or a memory map; a source, which returns each image by its number,
        as an `image_folder` or a dataset of PyTorch does, and which several threads read; or an iterable of batches,
        such as an epoch of a data loader. Labels beside images are ignored. Pixels are uint8, or floating point in
        [0, 1] before any flip of frequencies. An image with NaN or infinite pixels gets status NON_FINITE and does not
        affect other images.
      subspaces: one subspace, or a list of subspaces of any kinds and dimensions.
      solver: a solver of `hmt_jax.solvers`; `tight("quick")` if not given. The paper's is `DeepFool()`.
      keep_coordinates: whether the result holds the perturbations, as coordinates in their subspaces.
      precision: precision of float32 matrix products and convolutions, as in `jax.default_matmul_precision`. By
        default, accelerators round inputs to fewer bits, and margins depend on differences of logits near zero.
      batch_size: pairs that advance together on each device; twice as many on CPU when end points are evaluated. It is
        chosen for the device if not given.
      devices: where to run; all local devices if not given.
      progress: called every few steps with the number of finished pairs and the number of all pairs. For an iterable,
        the latter counts the images that have been read so far.

    Returns:
      A `MarginResult` with axes (R, N), in the order of the subspaces and the images.

    Raises:
      ValueError: for images or logits of the wrong shape or type; no images; a subspace for images of another shape, or
        whose coordinates are not orthonormal; or a classifier whose logits are NaN or infinite for every image.
      TypeError: for a classifier that can't be called, or a solver or subspace of the wrong kind.

    Warns:
      PixelRangeWarning: for the first chunk of images with pixels outside [0, 1] that flipped frequencies do not
        explain.
      UserWarning: if gradients vanish where the classifier is confident, as gradients of probabilities do; if every
        search met NaN or infinite numbers; or if memory runs out and fewer pairs advance together.

    >>> from hmt_jax import subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(16, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    >>> result = measure_margins(classifier, images, subspaces.dct_diagonal((4, 4, 1), size=2, step=1))
    >>> result.margin.shape, bool(result.is_converged.all())
    ((3, 5), True)
    """
    check_callback("progress", progress, "the numbers of finished pairs and of all pairs")
    plan = Plan(classifier, images, subspaces, solver, precision=precision, batch_size=batch_size, devices=devices)
    return MarginResult.concatenate(_results(plan, keep_coordinates, progress))


def measure_in_chunks(
    classifier: Classifier,
    images: ArrayLike | ImageSource | Iterable[Any],
    subspaces: Subspace | Sequence[Subspace],
    solver: Solver = tight("quick"),  # noqa: B008 - immutable
    *,
    keep_coordinates: bool = False,
    precision: str = "highest",
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[MarginResult]:
    """An iterator of the results of `measure_margins` for one chunk of images after another.

    Each result is yielded as soon as its chunk has been measured. All chunks share compiled programs, and memory does
    not grow with the number of images. Arguments are checked at once, before the first chunk is measured.

    Args:
      classifier, images, subspaces, solver, keep_coordinates, precision, batch_size, devices: as for `measure_margins`.

    Returns:
      An iterator of results, in the order of the images. `MarginResult.concatenate` joins them.

    Raises:
      ValueError, TypeError: as `measure_margins`. The error for logits that are NaN or infinite for every image is
        raised after the last chunk.

    Warns:
      As `measure_margins`. Warnings about the classifier come after the last chunk.

    >>> from hmt_jax import subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(16, 2))
    >>> batches = [jax.random.uniform(jax.random.key(seed), (5, 4, 4, 1)) for seed in range(3)]
    >>> results = measure_in_chunks(classifier, batches, subspaces.full((4, 4, 1)))
    >>> sum(result.margin.shape[1] for result in results)
    15
    """
    plan = Plan(classifier, images, subspaces, solver, precision=precision, batch_size=batch_size, devices=devices)
    return _results(plan, keep_coordinates, None)


def measure_margin(
    classifier: Classifier,
    image: ArrayLike,
    subspace: Subspace,
    solver: Solver = tight("quick"),  # noqa: B008 - immutable
) -> Solution:
    """The margin of one image in one subspace, as a pure function that can be compiled and mapped.

    `measure_margins` is faster for many images or subspaces.

    Args:
      classifier: callable pytree from images (N, height, width, channels) to logits (N, L).
      image: (height, width, channels), uint8, or floating point in [0, 1].
      subspace: a subspace of `hmt_jax.subspaces`, or any pytree with `coordinates` and `embed`. Its coordinates must be
        orthonormal. That is not checked here, because the subspace may be an argument of compiled code.
      solver: as for `measure_margins`.

    Returns:
      A `hmt_jax.Solution`, whose `coordinates` are the perturbation in the subspace.

    Raises:
      ValueError: for an image or logits of the wrong shape or type.
      TypeError: for a classifier that can't be called, or a solver or subspace of the wrong kind.

    >>> from hmt_jax import subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(2, 2, 1)
    >>> solution = measure_margin(classifier, image, subspaces.full((2, 2, 1)))
    >>> f"{solution.margin:.4f}"  # (0.9 - 0.5) / sqrt(2)
    '0.2828'
    """
    _states.check_solver(solver)
    image = jnp.asarray(as_array("image", image))
    check_image(image)
    check_fits(subspace, image.shape)
    pytree = as_pytree(classifier)
    with _programs.of_call(pytree):
        return _solve_one(solver, pytree, image, subspace)


@functools.partial(_programs.jit, static_argnums=0)
def _solve_one(solver, classifier, image, subspace):
    with jax.default_matmul_precision("highest"):
        return _pair.solve(solver, classifier, as_floats(image), subspace)


def _results(plan: Plan, keep_coordinates, progress) -> Iterator[MarginResult]:
    signs, num_seen = Signs(), 0
    try:
        for chunk in checked_for_range(plan.chunks()):
            with plan.in_use():
                result, signs_of_chunk = measure_chunk(
                    plan, chunk, keep_coordinates, _of_all(progress, plan, num_seen, chunk)
                )
            signs, num_seen = signs.plus(signs_of_chunk), num_seen + chunk.num_images
            yield result
            del chunk  # before the next one is read
        report(signs)
    finally:
        plan.programs.drop()


def measure_chunk(plan: Plan, chunk: Chunk, keep_coordinates, progress) -> tuple[MarginResult, Signs]:
    """The result of a chunk, and the signs in it, in a context of `plan.in_use`.

    `progress` is called with the number of finished pairs of the chunk.
    """
    solver, classifier, images = plan.solver, plan.classifier, plan.on_devices(chunk)
    if plan.ahead is None:
        plan.ahead = _driver.Ahead(solver, classifier, images, plan.groups, plan.where)
    plan.ahead.wait_for("linearize")
    at_images, plan.where, work = _driver.linearize(
        solver.num_candidates, classifier, images, chunk.num_images, plan.where
    )
    solutions, num_early, num_ended = [], 0, 0
    for group in plan.groups:
        items = _driver.items_of(group, len(images), chunk.num_images)
        ends, plan.where, work_of_group = _driver.search(
            solver,
            classifier,
            images,
            group,
            at_images,
            items,
            plan.where,
            plan.ahead,
            functools.partial(_later, progress, num_ended),
        )
        plan.ahead.wait_for(f"diagnose {group.places}")
        solution, is_early, plan.where = _driver.diagnose(classifier, images, group, ends, items, plan.where)
        solutions.append(solution)
        work += work_of_group
        num_early += int(is_early.sum())
        num_ended += len(group.places) * chunk.num_images
    result = plan.result_of(solutions, chunk.num_images, repr(solver), work, keep_coordinates=keep_coordinates)
    return result, signs_of(chunk.own, at_images, result, num_early)


def _of_all(progress, plan: Plan, num_seen, chunk) -> Callable[[int], None]:
    """A callback that turns the progress within a chunk into the progress over all images."""
    if progress is None:
        return lambda number: None
    num_subspaces = len(plan.subspaces)
    num_images = plan.images.num_images or num_seen + chunk.num_images
    return lambda number: progress(num_subspaces * num_seen + int(number), num_subspaces * num_images)


def _later(progress, before: int, number: int) -> None:
    """Reports the pairs of earlier groups together with those of this group."""
    progress(before + number)
