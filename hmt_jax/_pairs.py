"""Runs a solver over all pairs of a subspace and an image: chunk by chunk of the images, in lanes.

Logits and gradients at the unperturbed sample are the same for all subspaces, so that they are computed once for each
sample. From there every pair takes its first step; those that have not ended then go on in lanes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import _checks, _programs, lanes
from hmt_jax._numbers import promoted
from hmt_jax.classifiers import Classifier, logits_of, restrict, shape_of_logits
from hmt_jax.solvers import Solution, Solver, Status, has_label, linearize, normals_of, norms_of
from hmt_jax.subspaces import full

_LEAST_LANES, _MOST_LANES = 8, 1024
# Behind a low-pass filter, networks leave 0.6 to 1.4 times the rounding unit in windows and complements.
_ROUNDING = 4
# Steps after which a solver without `max_steps` is stopped.
_MOST_STEPS = 1000
# A point counts as having another label if at most this share of the sample's gap in logits is left: exact margins end
# at the boundary, where rounding decides, and half precision leaves that much.
_GAP_LEFT = 2e-2
# On ordinary networks, solvers overshoot by a factor of 4 at most. If a margin exceeds the diameter of the pixel box
# and the label changes within this share of the perturbation, a vanishing gradient made the step too long.
_EARLY_PART = 0.1
# How far rounding, in half precision too, takes the sum of a row of probabilities from 1.
_SUM_TOLERANCE = 1e-2


class _Limits(NamedTuple):
    """What suits a kind of device.

    Attributes:
      budget: the most bytes on each device for everything but the classifier, the images and the results. Half of them
        are for the lanes, half for a chunk of images. At least one lane and one image are taken, whatever they need.
      bytes_of_lanes: how much all lanes together should keep for the backward pass.
      bytes_of_chunk: how much the linearizations and first steps of a chunk of images should take; more if that is too
        few pairs for the lanes.
      pairs_per_lane: at the end lanes run empty one by one; with so many for each, that is a small part of the whole.
      more_at_end: lanes for bisections and the look at the end, for each one before.
    """

    budget: float
    bytes_of_lanes: float
    bytes_of_chunk: float
    pairs_per_lane: int
    more_at_end: int


# With more bytes, lanes would not fit the caches. A bisection takes one gradient at most, not one a candidate.
_ON_CPU = _Limits(2**31, 2**20, 6 * 2**20, pairs_per_lane=20, more_at_end=2)
# Copies of an item's result: in a table on the device, in the next table, which a step makes from it, in the arguments
# of the next phase, and on the host. Copies of a lane's state: before, after, its start, and the linearization.
_NUM_COPIES = 4


class AtEnd(NamedTuple):
    """What tells how near a perturbation is to a minimal one, as `hmt_jax.MarginResult` describes."""

    gap: jax.Array
    alignment: jax.Array


class Evidence(NamedTuple):
    """Signs that gradients vanish where the classifier is confident.

    Attributes:
      is_early: (R, N) whether the margin exceeds the diameter of the pixel box, but the label changes long before the
        point found.
      is_flat: (N,) whether the gradients of all candidates are exactly 0 at the image.
      is_distribution: whether the outputs at all images look like those of a softmax.
    """

    is_early: np.ndarray
    is_flat: np.ndarray
    is_distribution: bool


def linearize_at(solver: Solver, classifier: Classifier, image: jax.Array) -> Any:
    """The linearization of the logits at an image, with normals (C - 1, height, width, channels)."""
    height, width, channels = image.shape
    logits = shape_of_logits(classifier, image[None])
    origin = jnp.zeros(image.size, promoted(image.dtype, logits.dtype))
    restriction = restrict(classifier, image, full((height, width, channels)))
    at_image = linearize(restriction, origin, solver.num_candidates)
    return at_image._replace(normals=at_image.normals.reshape(-1, height, width, channels))


def start(solver: Solver, classifier: Classifier, image: jax.Array, subspace: Any, at_image: Any) -> Any:
    """The solver's state after the first step of a pair, from the linearization at the image."""
    dtype = at_image.normals.dtype
    origin = jnp.zeros(subspace.coordinates(image).shape, dtype)
    # By embed's transpose and not by `coordinates`, which are its inverse: a subspace may have any embedding.
    pull_back = jax.vjp(lambda z: image.astype(dtype) + subspace.embed(z), origin)[1]
    normals = jax.vmap(lambda normal: pull_back(normal)[0])(at_image.normals)
    # Where a subspace has no part in the logits, rounding leaves one, spread evenly over all directions of the image.
    hidden = _ROUNDING * jnp.finfo(dtype).eps * math.sqrt(origin.size / image.size) * _lengths(at_image.normals)
    is_hidden = jnp.isfinite(hidden) & (_lengths(normals) < hidden)
    normals = jnp.where(is_hidden[:, None], 0, normals)
    return solver.start(restrict(classifier, image, subspace), at_image._replace(normals=normals))


def _lengths(vectors):
    """In float32 at least: in float16 those of images may be infinite."""
    rows = vectors.reshape(len(vectors), -1)
    return norms_of(rows.astype(promoted(rows.dtype, jnp.float32)))


def solve(
    solver: Solver,
    classifier: Classifier,
    images: jax.Array | np.ndarray,
    stack: Any,
    num_subspaces: int,
    *,
    known: Solution | None,
    num_bisections: int,
    precision: str,
    keep_coordinates: bool,
    num_lanes: int | None,
    devices: Sequence[jax.Device],
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[Solution, AtEnd], Evidence, lanes.Work]:
    """The solutions of all pairs, NumPy arrays with leading axes (R, N), and the work of all their steps.

    The stack holds R subspaces; the other arguments are those of `hmt_jax.measure_margins`.
    """
    needs = _needs_of(solver, classifier, images, stack)
    if num_lanes is None:
        num_lanes = _choose_num_lanes(needs, num_subspaces * len(images), devices)
    size = _choose_chunk_size(needs, len(images), num_subspaces, num_lanes, devices)
    chunks, evidence, work = [], [], lanes.Work(num_lanes, 0, 0)
    items = np.arange(num_subspaces * size)
    lanes_at_end = items.size
    # All chunks have one size, so that they share compiled code: the last may overlap the one before.
    firsts = [min(first, len(images) - size) for first in range(0, len(images), size)]
    for number, first in enumerate(firsts):
        data = (classifier, jnp.asarray(images[first : first + size]), stack)
        solution, at_images, work_of_chunk = _solve_chunk(
            solver,
            precision,
            data,
            items.size,
            num_lanes=work.num_lanes,
            devices=devices,
            progress=_progress_of_all(progress, number, items.size, num_subspaces * len(images)),
        )
        work += work_of_chunk
        # Fewer from here on where memory has run out, at the end or before.
        lanes_at_end = min(_limits(devices).more_at_end * work.num_lanes, lanes_at_end)
        if known is not None:
            rows = _rows_of(known, slice(first, first + size))
            gaps, ended = lanes.evaluate(
                _KnownGaps(precision), (*data, rows), items, num_lanes=lanes_at_end, devices=devices
            )
            lanes_at_end = ended.num_lanes
            _checks.check_known(np.asarray(gaps))
            solution = _nearer(rows, solution)
        if num_bisections:
            bisect = _Bisect(num_bisections, precision)
            solution, ended = lanes.solve(bisect, (*data, solution), items, num_lanes=lanes_at_end, devices=devices)
            lanes_at_end = ended.num_lanes
        at_end, ended = lanes.evaluate(
            _LookAtEnd(precision), (*data, solution), items, num_lanes=lanes_at_end, devices=devices
        )
        lanes_at_end = ended.num_lanes
        solution = _confirmed(solution, at_end, np.tile(_gaps(at_images.logits), num_subspaces))
        is_far = (solution.status == Status.CONVERGED) & (solution.margin > images[0].size ** 0.5)
        is_early = np.zeros(items.size, bool)
        if is_far.any():
            is_early, ended = lanes.evaluate(
                _IsEarly(precision),
                (*data, solution),
                np.where(is_far, items, -1),
                num_lanes=lanes_at_end,
                devices=devices,
            )
            lanes_at_end = ended.num_lanes
        if not keep_coordinates:
            solution = solution._replace(coordinates=None)
        found = (solution, at_end, is_early)
        chunks.append(jax.tree.map(lambda leaf: leaf.reshape(num_subspaces, size, *leaf.shape[1:]), found))
        evidence.append((_is_flat(at_images), _are_distributions(at_images.logits)))
    num_new = np.diff([0, *(first + size for first in firsts)])
    solution, at_end, is_early = jax.tree.map(lambda *leaves: _join(leaves, num_new), *chunks)
    is_flat = _join([flat[None] for flat, _ in evidence], num_new)[0]
    return (solution, at_end), Evidence(is_early, is_flat, all(one for _, one in evidence)), work


def _rows_of(solution: Solution, images: slice) -> Solution:
    """Solutions (R, N) of some of the images, one row for each pair."""
    return jax.tree.map(lambda leaf: leaf[:, images].reshape(-1, *leaf.shape[2:]), solution)


def _nearer(known: Solution, found: Solution) -> Solution:
    """For each pair the solution with the smaller margin, of those that have one, for the label that was found."""
    margins = [np.where(each.status == Status.CONVERGED, each.margin, np.inf) for each in (known, found)]
    is_known_nearer = (margins[0] < margins[1]) & (known.label == found.label)

    def select(known, found):
        return np.where(is_known_nearer.reshape(-1, *[1] * (found.ndim - 1)), known, found).astype(found.dtype)

    return jax.tree.map(select, known, found)


def _confirmed(solution: Any, at_end: AtEnd, gaps: np.ndarray) -> Solution:
    """The solutions of pairs (P,), with status UNCONFIRMED where the point found, evaluated again, keeps the label.

    That happens if the classifier has a state of its own or draws at random, or if two logits are equal to rounding.
    """
    is_confirmed = at_end.gap >= -_GAP_LEFT * gaps  # never for NaN
    is_lost = (solution.status == Status.CONVERGED) & ~is_confirmed
    return solution._replace(
        status=np.where(is_lost, Status.UNCONFIRMED, solution.status).astype(solution.status.dtype),
        adversarial_label=np.where(is_lost, solution.label, solution.adversarial_label),
    )


def _gaps(logits: np.ndarray) -> np.ndarray:
    """The greatest of logits (N, L) less the next, in float32 at least."""
    second, first = np.partition(logits.astype(promoted(logits.dtype, np.float32)), -2, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # of logits that name no label
        return first - second


def _is_flat(at_images) -> np.ndarray:
    """Whether, at each image, no direction moves the label and another class apart, leaving out ruled-out classes."""
    normals = at_images.normals.reshape(len(at_images.logits), -1)
    return ~normals.any(axis=1) & np.isfinite(_gaps(at_images.logits))


def _are_distributions(logits: np.ndarray) -> bool:
    """Whether all logits (N, L) that name a label are at least 0 and sum to 1, as the outputs of a softmax do."""
    rows = logits[np.asarray(has_label(jnp.asarray(logits)))].astype(float)
    return bool(rows.size and (rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def _solve_chunk(
    solver, precision, data, num_pairs, *, num_lanes, devices, progress
) -> tuple[Solution, Any, lanes.Work]:
    settings: dict[str, Any] = {"devices": devices}
    at_images, work = lanes.evaluate(
        _Linearize(solver, precision), data[:2], np.arange(len(data[1])), num_lanes=num_lanes, **settings
    )
    data = (*data, at_images)
    states, first_steps = lanes.evaluate(
        _Start(solver, precision), data, np.arange(num_pairs), num_lanes=work.num_lanes, **settings
    )
    is_done, solution = jax.tree.map(np.array, _results(solver, states))
    going_on = np.flatnonzero(~is_done)
    num_done = num_pairs - len(going_on)
    if not len(going_on):
        if progress is not None:
            progress(num_pairs, num_pairs)
        return solution, at_images, first_steps
    # From the longest first step on, which tend to take the most of them: they are not to begin when lanes run empty.
    going_on = going_on[np.argsort(-solution.margin[going_on], kind="stable")]
    items = np.full(num_pairs, -1)
    items[: len(going_on)] = going_on
    rest, later_steps = lanes.solve(
        _GoOn(solver, precision),
        (*data[:3], states),
        items,
        num_lanes=first_steps.num_lanes,
        progress=progress and (lambda num_solved, _: progress(num_done + num_solved, num_pairs)),
        **settings,
    )
    jax.tree.map(lambda leaf, new: leaf.__setitem__(going_on, new[: len(going_on)]), solution, rest)
    return solution, at_images, first_steps + later_steps


@dataclasses.dataclass(frozen=True)
class _Linearize:
    """Item n is image n."""

    solver: Solver
    precision: str

    def __call__(self, data, item):
        classifier, images = data
        with jax.default_matmul_precision(self.precision):
            return linearize_at(self.solver, classifier, images[item])


@dataclasses.dataclass(frozen=True)
class _Start:
    """Item r N + n is image n in subspace r."""

    solver: Solver
    precision: str

    def __call__(self, data, item):
        at_image = jax.tree.map(lambda leaf: leaf[item % len(data[1])], data[3])
        with jax.default_matmul_precision(self.precision):
            classifier, image, subspace = _pair(data, item)
            return _unwrapped(start(self.solver, classifier, image, subspace, at_image))


@dataclasses.dataclass(frozen=True)
class _KnownGaps:
    """Item r N + n is by how much image n has not the known label, and has it still at the known point in subspace r.

    The third number is their scale: how far the logits of the label and of the runners-up at both points are from
    their mean. NaN where nothing is known.
    """

    precision: str

    def __call__(self, data, item):
        solution = jax.tree.map(lambda leaf: leaf[item], data[3])
        z = jnp.stack([jnp.zeros_like(solution.coordinates), solution.coordinates])
        with jax.default_matmul_precision(self.precision):
            logits = jax.vmap(restrict(*_pair(data, item)))(z)
        others = jnp.where(jnp.arange(logits.shape[1], dtype=solution.label.dtype) == solution.label, -jnp.inf, logits)
        gaps = others.max(1) - logits[:, solution.label]
        rivals = logits[:, jnp.append(jnp.argmax(others, axis=1), solution.label)]
        scale = jnp.abs(rivals - rivals.mean(1, keepdims=True)).max()
        return jnp.where(solution.status == Status.CONVERGED, jnp.stack([gaps[0], -gaps[1], scale]), jnp.nan)


class _Bisection(NamedTuple):
    solution: Solution
    inside: jax.Array  # parts of the way to the point found: the greatest where the label is unchanged,
    outside: jax.Array  # and the least where it has changed
    num_steps: jax.Array


@dataclasses.dataclass(frozen=True)
class _Bisect:
    """A `lanes.Method` that halves the way between the sample and the point found, one forward pass each."""

    num_bisections: int
    precision: str

    def start(self, data, item):
        solution = jax.tree.map(lambda leaf: leaf[item], data[3])
        whole = jnp.ones_like(solution.margin)
        return _Bisection(solution, jnp.zeros_like(whole), whole, jnp.zeros((), jnp.int32))

    def step(self, data, item, state):
        solution, inside, outside, num_steps = state
        middle = (inside + outside) / 2
        with jax.default_matmul_precision(self.precision):
            logits = restrict(*_pair(data, item))(middle * solution.coordinates)
        label = jnp.argmax(logits).astype(jnp.int32)
        is_changed = has_label(logits) & (label != solution.label)
        adversarial_label = jnp.where(is_changed, label, solution.adversarial_label)
        return _Bisection(
            solution._replace(adversarial_label=adversarial_label),
            jnp.where(is_changed, inside, middle),
            jnp.where(is_changed, middle, outside),
            num_steps + 1,
        )

    def done(self, state):
        return (state.num_steps >= self.num_bisections) | (state.solution.status != Status.CONVERGED)

    def result(self, state):
        solution, part = state.solution, state.outside
        return solution._replace(margin=part * solution.margin, coordinates=part * solution.coordinates)


@dataclasses.dataclass(frozen=True)
class _LookAtEnd:
    """Item r N + n is image n in subspace r, at the perturbation that was found."""

    precision: str

    def __call__(self, data, item):
        solution = jax.tree.map(lambda leaf: leaf[item], data[3])
        with jax.default_matmul_precision(self.precision):
            logits, pull_back = jax.vjp(restrict(*_pair(data, item)), solution.coordinates)
            others = jnp.where(jnp.arange(logits.size, dtype=solution.label.dtype) == solution.label, -jnp.inf, logits)
            towards = jnp.stack([solution.label, jnp.argmax(others)])
            (normal,) = normals_of(pull_back, logits, towards)
            vectors = jnp.stack([normal, solution.coordinates.astype(normal.dtype)])
            # Normalised first: the product of a long perturbation and a steep gradient may overflow.
            alignment = jnp.vdot(*(vectors / norms_of(vectors)[:, None]))
        is_point = jnp.isfinite(solution.margin) & has_label(logits)
        gap = logits[towards[1]] - logits[towards[0]]
        return AtEnd(jnp.where(is_point, gap, jnp.nan), jnp.where(is_point, alignment, jnp.nan))


@dataclasses.dataclass(frozen=True)
class _GoOn:
    """A `lanes.Method` that goes on from the states after the first steps, and stops a solver that is never done."""

    solver: Solver
    precision: str

    def start(self, data, item):
        return jax.tree.map(lambda leaf: leaf[item], data[3]), jnp.zeros((), jnp.int32)

    def step(self, data, item, state):
        before, num_steps = state
        with jax.default_matmul_precision(self.precision):
            after = self.solver.step(restrict(*_pair(data, item)), _wrapped(before))
        _check_same_types(self.solver, _wrapped(before), after)
        return _unwrapped(after), num_steps + 1

    def done(self, state):
        state, num_steps = state
        is_done, _ = _answer(self.solver, state)
        return is_done | (num_steps >= getattr(self.solver, "max_steps", _MOST_STEPS))

    def result(self, state):
        is_done, solution = _answer(self.solver, state[0])
        return solution._replace(
            status=jnp.where(is_done, solution.status, Status.OUT_OF_STEPS).astype(jnp.int32),
            adversarial_label=jnp.where(is_done, solution.adversarial_label, solution.label),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Key:
    """A random key as an array of numbers, because NumPy can't hold keys."""

    data: jax.Array
    kind: str = dataclasses.field(metadata={"static": True})


def _unwrapped(state):
    """A solver's state with its random keys turned into arrays of numbers."""

    def numbers(leaf):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _Key(jax.random.key_data(leaf), str(jax.random.key_impl(leaf)))
        return leaf

    return jax.tree.map(numbers, state)


def _wrapped(state):
    """The state with its random keys, as the solver takes it: the inverse of `_unwrapped`."""
    return jax.tree.map(
        lambda leaf: jax.random.wrap_key_data(leaf.data, impl=leaf.kind) if isinstance(leaf, _Key) else leaf,
        state,
        is_leaf=lambda leaf: isinstance(leaf, _Key),
    )


def _answer(solver, state) -> tuple[jax.Array, Solution]:
    """Whether a solver is done with a state, and its solution there, of the types that the driver expects."""
    state, name = _wrapped(state), type(solver).__name__
    is_done, solution = jnp.asarray(solver.done(state)), solver.result(state)
    if is_done.shape or is_done.dtype != bool:
        raise TypeError(f"done of {name} must return a single bool, got {is_done.dtype}{list(is_done.shape)}")
    if not isinstance(solution, Solution):
        raise TypeError(f"result of {name} must return a hmt_jax.Solution, got {type(solution).__name__}")
    kinds = {"margin": jnp.floating, "label": jnp.integer, "adversarial_label": jnp.integer, "status": jnp.integer}
    for field, kind in kinds.items():
        value = jnp.asarray(getattr(solution, field))
        if value.shape or not jnp.issubdtype(value.dtype, kind):
            raise TypeError(
                f"result of {name} must have a single {'number' if kind is jnp.floating else 'whole number'} as "
                f"{field}, got {value.dtype}{list(value.shape)}"
            )
    return is_done, solution


def _check_same_types(solver, before, after):
    name = type(solver).__name__
    structures = [str(jax.tree.structure(state)) for state in (before, after)]
    if structures[0] != structures[1]:
        raise TypeError(
            f"step of {name} must return a state of the structure that start returns, {structures[0]}, got "
            f"{structures[1]}"
        )
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        types = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(jnp.asarray, (old, new))]
        if types[0] != types[1]:
            raise TypeError(
                f"step of {name} must keep the shapes and dtypes of its state, but state{jax.tree_util.keystr(path)} "
                f"is {types[0]} after start and {types[1]} after step: make it the same in both"
            )


@dataclasses.dataclass(frozen=True)
class _IsEarly:
    """Item r N + n is whether image n changes its label long before the end of the perturbation found in subspace r."""

    precision: str

    def __call__(self, data, item):
        solution = jax.tree.map(lambda leaf: leaf[item], data[3])
        with jax.default_matmul_precision(self.precision):
            # At most the diameter of the pixel box: beyond it, a saturated classifier may have the first label again.
            part = jnp.minimum(_EARLY_PART, data[1][0].size ** 0.5 / solution.margin)
            logits = restrict(*_pair(data, item))(part.astype(solution.margin.dtype) * solution.coordinates)
        return has_label(logits) & (jnp.argmax(logits) != solution.label)


def _pair(data, item):
    classifier, images, stack = data[:3]
    return classifier, images[item % len(images)], jax.tree.map(lambda leaf: leaf[item // len(images)], stack)


@functools.partial(_programs.jit, static_argnums=0)
def _results(solver, states):
    return jax.vmap(functools.partial(_answer, solver))(states)


def _progress_of_all(progress, number, num_pairs_of_chunk, num_pairs):
    """The progress of one chunk told as that of all, where none goes backwards."""
    if progress is None:
        return None
    before = number * num_pairs_of_chunk
    return lambda num_solved, _: progress(min(before + num_solved, num_pairs), num_pairs)


def _join(leaves, num_new):
    """Chunks joined along the axis of the images; what overlaps is taken once."""
    return np.concatenate([leaf[:, leaf.shape[1] - count :] for leaf, count in zip(leaves, num_new, strict=True)], 1)


class _Needs(NamedTuple):
    """The memory that parts of the work need, in bytes.

    Attributes:
      image: an image.
      linearization: the linearization of the logits at an image.
      state: the state of the solver for one pair.
      kept: what the forward pass of one image keeps for the backward pass.
      num_candidates: not bytes, but the number of backward passes that a lane does at a time.
    """

    image: int
    linearization: int
    state: int
    kept: int
    num_candidates: int

    @property
    def of_lane(self) -> int:
        """Bytes of one lane, with gradients of all candidates; each backward pass needs about as much as is kept."""
        passes = (1 + self.num_candidates) * self.kept + 2 * self.linearization
        return passes + self.image + _NUM_COPIES * max(self.linearization, self.state)


def _needs_of(solver, classifier, images, stack) -> _Needs:
    image, subspace = jnp.asarray(images[0]), jax.tree.map(lambda leaf: leaf[0], stack)
    at_image, state = _first_pair.eval_shape(solver, classifier, image, subspace)

    def kept(num_images):
        return _num_bytes(_kept.eval_shape(classifier, jax.ShapeDtypeStruct((num_images, *image.shape), image.dtype)))

    # The difference leaves out the parameters, and what is computed from them alone: these are kept once for all lanes.
    return _Needs(
        image=image.nbytes,
        linearization=_num_bytes(at_image),
        state=_num_bytes(state),
        kept=kept(2) - kept(1),
        num_candidates=len(at_image.candidates),
    )


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _choose_num_lanes(needs, num_pairs, devices) -> int:
    """The number of lanes: a power of two that suits device and network, or less for few pairs or little memory."""
    limits = _limits(devices)
    lanes_within = int(limits.bytes_of_lanes // max(needs.kept, 1))
    num_suitable = min(max(1 << max(lanes_within, 1).bit_length() - 1, _LEAST_LANES), _MOST_LANES)
    num_lanes = min(num_suitable, max(num_pairs // (limits.pairs_per_lane * len(devices)), _LEAST_LANES), num_pairs)
    return max(min(num_lanes, int(limits.budget / 2 // needs.of_lane)), 1)


def _choose_chunk_size(needs, num_images, num_subspaces, num_lanes, devices) -> int:
    """The number of images in a chunk: enough to keep all lanes busy, and no more than the memory allows."""
    limits = _limits(devices)
    enough = -(-limits.pairs_per_lane * num_lanes * len(devices) // num_subspaces)
    num_bytes = needs.linearization + num_subspaces * needs.state
    most = limits.budget / 2 / (needs.image + _NUM_COPIES * num_bytes)
    size = max(min(max(limits.bytes_of_chunk / num_bytes, enough), most), 1)
    num_chunks = -(-num_images // int(size))
    return -(-num_images // num_chunks)


@functools.partial(_programs.jit, static_argnums=0)  # traces are kept: all networks of one architecture share one
def _first_pair(solver, classifier, image, subspace):
    at_image = linearize_at(solver, classifier, image)
    return at_image, _unwrapped(start(solver, classifier, image, subspace, at_image))


def _limits(devices) -> _Limits:
    if devices[0].platform == "cpu":  # where all devices share one memory
        return _ON_CPU._replace(budget=_ON_CPU.budget / len(devices))
    memory = (devices[0].memory_stats() or {"bytes_limit": 8 * 2**30})["bytes_limit"]
    # Ten backward passes at a time have about as much in flight each, and half is to spare.
    share = memory / 24
    # More pairs for each of what may be hundreds of lanes, for half of the pairs can end with their first step; and no
    # more lanes at the end, for XLA tunes every shape of a convolution anew.
    return _Limits(memory, share, share, pairs_per_lane=50, more_at_end=1)


@_programs.jit
def _kept(classifier, images):
    """What the backward pass keeps. No closure, so that networks of one architecture share a trace."""
    return jax.vjp(jax.vmap(lambda image: logits_of(classifier, image[None])), images)[1]
