"""Margins that bisection makes smaller."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import lanes
from hmt_jax._checks import integer
from hmt_jax._images import Chunk, ImageSource
from hmt_jax._misc import promoted, take
from hmt_jax.classifiers import Classifier, restrict
from hmt_jax.margins import _driver
from hmt_jax.margins._driver import Pairs
from hmt_jax.margins._pair import End
from hmt_jax.margins._plan import Plan
from hmt_jax.margins._result import MarginResult
from hmt_jax.solvers import DeepFool, Solution, Status, label_of
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import dimension_of
from hmt_jax.subspaces._groups import Group

# Rounding of differences of logits at a boundary, in half precision, relative to the logits.
_GAP_TOLERANCE = 2e-2


def bisect(
    classifier: Classifier,
    images: ArrayLike | ImageSource | Iterable[Any],
    subspaces: Subspace | Sequence[Subspace],
    result: MarginResult,
    *,
    num_steps: int = 10,
    precision: str = "highest",
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> MarginResult:
    """The result with smaller margins, by bisection between each image and the perturbed image that was found.

    The new perturbation is the end of the last interval where the label has changed, so no margin grows. Each halving
    costs one forward pass for each pair.

    Args:
      classifier: the classifier that was measured.
      images: the images that were measured, in the same order.
      subspaces: the subspaces that were measured, in the same order.
      result: their margins, measured with `keep_coordinates=True`.
      num_steps: number of halvings. The new margin exceeds the distance at which the label changes in this direction by
        at most 2^-num_steps of the old margin.
      precision, batch_size, devices: as for `measure_margins`.

    Returns:
      A `MarginResult` with coordinates. Pairs without a margin are unchanged.

    Raises:
      ValueError: for a result without coordinates, a result of other pairs, or perturbations that do not change the
        labels that this classifier gives these images; and as `measure_margins`.
      TypeError: for a result that is no `MarginResult`, and as `measure_margins`.

    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> whole = hmt_jax.subspaces.full((2, 2, 1))
    >>> solver = hmt_jax.solvers.DeepFool()
    >>> result = hmt_jax.measure_margins(classifier, image, whole, solver, keep_coordinates=True)
    >>> closer = bisect(classifier, image, whole, result)
    >>> f"{result.margin[0, 0]:.4f} {closer.margin[0, 0]:.4f}"  # (0.9 - 0.5) / sqrt(2) = 0.2828
    '0.2885 0.2829'
    """
    num_steps = integer("num_steps", num_steps, at_least=0)
    # The plan is that of a solver which needs as much memory as a bisection.
    solver = DeepFool(num_candidates=2)
    plan = Plan(classifier, images, subspaces, solver, precision=precision, batch_size=batch_size, devices=devices)
    _check_fits(result, plan)
    parts, num_seen = [], 0
    try:
        for chunk in plan.chunks():
            if num_seen + chunk.num_images <= result.margin.shape[1]:
                with plan.in_use():
                    parts.append(_bisect_chunk(plan, chunk, _columns(result, num_seen, chunk.num_images), num_steps))
            num_seen += chunk.num_images
    finally:
        plan.programs.drop()
    if num_seen != result.margin.shape[1]:
        raise ValueError(f"result holds margins of {result.margin.shape[1]} images, but images holds {num_seen}")
    bisected = MarginResult.concatenate(parts)
    return dataclasses.replace(bisected, work=result.work + bisected.work)


class _Bisection(NamedTuple):
    z: jax.Array  # (d,) the point found
    label: jax.Array
    adversarial_label: jax.Array
    inside: jax.Array  # greatest known share of the way to the point at which the label is unchanged
    outside: jax.Array  # least known share of the way at which the label has changed
    num_steps: jax.Array


@dataclasses.dataclass(frozen=True)
class _Bisect:
    """A `lanes.Method` that bisects between the sample and the point found. A step is one forward pass."""

    num_steps: int

    def start(self, pairs: Pairs, item):
        z, label, adversarial_label = take(pairs.rows, item)
        whole = jnp.ones((), z.dtype)
        return _Bisection(z, label, adversarial_label, jnp.zeros_like(whole), whole, jnp.zeros((), jnp.int32))

    def step(self, pairs: Pairs, item, state):
        middle = (state.inside + state.outside) / 2
        label = label_of(restrict(*pairs.pair(item))(middle * state.z))
        is_changed = (label >= 0) & (label != state.label)
        return state._replace(
            adversarial_label=jnp.where(is_changed, label, state.adversarial_label),
            inside=jnp.where(is_changed, state.inside, middle),
            outside=jnp.where(is_changed, middle, state.outside),
            num_steps=state.num_steps + 1,
        )

    def done(self, state):
        return state.num_steps >= self.num_steps

    def result(self, state):
        return state.outside * state.z, state.adversarial_label


def _known_gaps(pairs: Pairs, item):
    """The gaps at the sample and at the point found, (3,) with their scale.

    The first is negative if the sample has the known label, and the second if the point has another label. The scale is
    how far the logits of the label and of the runner-up at either point are from their mean, at most.
    """
    z, label, _ = take(pairs.rows, item)
    logits = jax.vmap(restrict(*pairs.pair(item)))(jnp.stack([jnp.zeros_like(z), z]))
    others = jnp.where(jnp.arange(logits.shape[1], dtype=label.dtype) == label, -jnp.inf, logits)
    gaps = others.max(1) - logits[:, label]
    rivals = logits[:, jnp.append(jnp.argmax(others, axis=1), label)]
    scale = jnp.abs(rivals - rivals.mean(1, keepdims=True)).max()
    return jnp.stack([gaps[0], -gaps[1], scale]).astype(promoted(gaps.dtype, jnp.float32))


def _bisect_chunk(plan: Plan, chunk: Chunk, known: MarginResult, num_steps: int) -> MarginResult:
    # Rows of padding are skipped later, so any column will do.
    columns = np.maximum(np.arange(chunk.num_images - len(chunk.images), chunk.num_images), 0)
    images, work, solutions = plan.on_devices(chunk), lanes.Work(plan.where.num_lanes, 0, 0), []
    for group in plan.groups:
        solution = _solution_of(known, group, columns)
        items = _driver.items_of(group, len(columns), chunk.num_images)
        items = np.where(solution.status == Status.CONVERGED, items, -1)
        if (items >= 0).any():
            solution, work_of_group = _bisect_group(plan, images, group, solution, items, num_steps)
            work += work_of_group
        solutions.append(solution)
    return plan.result_of(solutions, chunk.num_images, known.solver, work, keep_coordinates=True)


def _solution_of(known: MarginResult, group: Group, columns) -> Solution:
    """The known solutions (P, ...) of a group."""
    names = [name for name in Solution._fields if name != "coordinates"]
    arrays: dict[str, Any] = {name: getattr(known, name)[group.places][:, columns].reshape(-1) for name in names}
    coordinates = known.coordinates or []
    arrays["coordinates"] = np.concatenate([coordinates[place][columns] for place in group.places])
    return Solution(**arrays)


def _bisect_group(plan: Plan, images: jax.Array, group: Group, before: Solution, items, num_steps):
    """The solutions (P, ...) of a group, bisected for the items at or above zero, and the work done."""
    settings: dict[str, Any] = {"devices": plan.where.devices, "num_lanes": plan.where.num_lanes_at_end}
    rows = (before.coordinates, before.label, before.adversarial_label)
    pairs = Pairs(plan.classifier, images, group.members, rows)
    gaps, work = lanes.evaluate(_known_gaps, pairs, items, **settings)
    _check_known(gaps[items >= 0])
    (z, adversarial_label), work_of_steps = lanes.solve(_Bisect(num_steps), pairs, items, **settings)
    ends = End(z, adversarial_label, before.label, -gaps[:, 0], before.num_steps, before.status)
    after, _, plan.where = _driver.diagnose(plan.classifier, images, group, ends, items, plan.where)
    is_bisected = items >= 0

    def select(new, old):
        return np.where(is_bisected.reshape(-1, *[1] * (new.ndim - 1)), new, old).astype(old.dtype)

    return jax.tree.map(select, after, before), work + work_of_steps


def _check_known(gaps) -> None:
    """Raises ValueError unless the gaps (P, 3) of `_known_gaps` show that labels and points fit the classifier."""
    # Near a boundary logits differ by rounding alone, perhaps in a lower precision. The median scale counts as well,
    # because the logits of a single pair may be near zero.
    room = _GAP_TOLERANCE * np.maximum(gaps[:, 2], np.median(gaps[:, 2]))
    is_wrong = ~(np.max(gaps[:, :2], axis=1) <= room)
    if is_wrong.any():
        raise ValueError(
            f"the perturbations of {is_wrong.sum()} of {is_wrong.size} pairs in result do not change what this "
            "classifier says of these images: measure them with this classifier, on the same images in the same order"
        )


def _check_fits(result, plan: Plan) -> None:
    if not isinstance(result, MarginResult):
        raise TypeError(f"result must be a MarginResult of measure_margins, got {type(result).__name__}")
    if result.coordinates is None:
        raise ValueError("result was measured without coordinates: measure it with keep_coordinates=True")
    dimensions = [dimension_of(subspace, plan.images.image_shape) for subspace in plan.subspaces]
    found = [rows.shape[1] for rows in result.coordinates]
    if found != dimensions:
        raise ValueError(f"result must hold margins in the same subspaces, of dimensions {dimensions}, got {found}")
    num_images = plan.images.num_images
    if num_images not in (None, result.margin.shape[1]):
        raise ValueError(f"result holds margins of {result.margin.shape[1]} images, but images holds {num_images}")


def _columns(result: MarginResult, first: int, number: int) -> MarginResult:
    """The margins of `number` images from `first` on."""
    columns = slice(first, first + number)
    arrays: dict[str, Any] = {
        field.name: value[:, columns]
        for field in dataclasses.fields(result)
        if isinstance(value := getattr(result, field.name), np.ndarray)
    }
    return dataclasses.replace(result, **arrays, coordinates=[rows[columns] for rows in result.coordinates or []])
