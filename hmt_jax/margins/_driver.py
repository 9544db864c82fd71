"""A solver run over all pairs of a subspace and an image, one chunk of images at a time, in lanes.

Logits and gradients at the unperturbed sample are the same for all subspaces, so they are computed once for each image.
From there every pair takes its first step. Pairs that have not ended then continue in lanes. At last, all end points
are evaluated once more.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import lanes
from hmt_jax._images import as_floats
from hmt_jax._misc import take
from hmt_jax.classifiers import Classifier, restrict
from hmt_jax.margins import _pair
from hmt_jax.solvers import Linearization, Solution, Solver, Status, has_label, norms_of
from hmt_jax.subspaces._groups import Group

# On ordinary networks, solvers overshoot by a factor of 4 at most. If a margin exceeds the diameter of the pixel box
# and the label changes within this share of the perturbation, a vanishing gradient made the step too long.
_EARLY_PART = 0.1


class Pairs(NamedTuple):
    """All pairs of R subspaces of one structure and N images: item r N + n is image n in subspace r."""

    classifier: Classifier
    images: Any  # (N, height, width, channels), uint8 or floating point
    subspaces: Any  # leaves (R, ...)
    rows: Any  # leaves (R N, ...), or (N, ...) for linearisations

    def image(self, item: jax.Array) -> jax.Array:
        return as_floats(self.images[item % len(self.images)])

    def pair(self, item: jax.Array) -> tuple[Classifier, jax.Array, Any]:
        return self.classifier, self.image(item), take(self.subspaces, item // len(self.images))


class Lanes(NamedTuple):
    """The devices that pairs run on, and the number of pairs at a time on each; it falls once memory has run out."""

    devices: Sequence[jax.Device]
    num_lanes: int
    num_lanes_at_end: int

    def after(self, work: lanes.Work) -> "Lanes":
        return self._replace(
            num_lanes=work.num_lanes,
            num_lanes_at_end=max(self.num_lanes_at_end * work.num_lanes // self.num_lanes, 1),
        )


@dataclasses.dataclass(frozen=True)
class _Linearize:
    num_candidates: int

    def __call__(self, pairs: Pairs, item):
        return _pair.linearize_at(self.num_candidates, pairs.classifier, pairs.image(item))


@dataclasses.dataclass(frozen=True)
class _Begin:
    solver: Solver

    def __call__(self, pairs: Pairs, item):
        run = _pair.begin(self.solver, *pairs.pair(item), take(pairs.rows, item % len(pairs.images)))
        return run, _pair.is_done(self.solver, run), _pair.end(self.solver, run)


@dataclasses.dataclass(frozen=True)
class _Continue:
    """A `lanes.Method` that continues searches that have begun."""

    solver: Solver

    def start(self, pairs: Pairs, item):
        return take(pairs.rows, item)

    def step(self, pairs: Pairs, item, run):
        return _pair.advance(self.solver, *pairs.pair(item), run)

    def done(self, run):
        return _pair.is_done(self.solver, run)

    def result(self, run):
        return _pair.end(self.solver, run)


def _diagnose(pairs: Pairs, item):
    # The coordinates are known on the host.
    return _pair.diagnose(*pairs.pair(item), take(pairs.rows, item))._replace(coordinates=None)


def _is_early(pairs: Pairs, item):
    """Whether the label changes long before the end of the perturbation."""
    z, label = take(pairs.rows, item)
    classifier, image, subspace = pairs.pair(item)
    # At most the diameter of the pixel box: beyond it, a saturated classifier may have the first label again.
    part = jnp.minimum(_EARLY_PART, image.size**0.5 / norms_of(z))
    logits = restrict(classifier, image, subspace)(part.astype(z.dtype) * z)
    return has_label(logits) & (jnp.argmax(logits) != label)


def linearize(
    num_candidates: int, classifier: Classifier, images: jax.Array, num_images: int, where: Lanes
) -> tuple[Linearization, Lanes, lanes.Work]:
    """The linearisations at all images (N, ...), zeros for padding; the lanes to use from now on; and the work done."""
    at_images, work = lanes.evaluate(
        _Linearize(num_candidates),
        Pairs(classifier, images, None, None),
        np.where(np.arange(len(images)) >= len(images) - num_images, np.arange(len(images)), -1),
        num_lanes=where.num_lanes,
        devices=where.devices,
    )
    return at_images, where.after(work), work


def search(
    solver: Solver,
    classifier: Classifier,
    images: jax.Array,
    group: Group,
    at_images: Linearization,
    items: np.ndarray,
    where: Lanes,
    ahead: "Ahead",
    progress: Callable[[int], None],
) -> tuple[_pair.End, Lanes, lanes.Work]:
    """The ends (P, ...) of the searches of a group's pairs, the lanes to use from now on, and the work done.

    `progress` is called with the number of pairs of the group whose search has ended.
    """
    pairs = Pairs(classifier, images, group.members, at_images)
    settings: dict[str, Any] = {"devices": where.devices}
    ahead.wait_for(f"begin {group.places}")
    (runs, is_done, ends), work = lanes.evaluate(_Begin(solver), pairs, items, num_lanes=where.num_lanes, **settings)
    where = where.after(work)
    going_on = np.flatnonzero(~is_done & (items >= 0))
    num_done = int(np.sum(items >= 0)) - len(going_on)
    progress(num_done)
    if not len(going_on):
        return ends, where, work
    # Pairs with the longest first step go first: they tend to take the most steps, and lanes would idle at the end.
    lengths = np.linalg.norm(ends.z[going_on].astype(np.float32), axis=1)
    queue = np.full(len(items), -1)
    queue[: len(going_on)] = going_on[np.argsort(-lengths, kind="stable")]
    ahead.wait_for(f"continue {group.places}")
    rest, later = lanes.solve(
        _Continue(solver),
        pairs._replace(rows=runs),
        queue,
        num_lanes=where.num_lanes,
        progress=lambda num_solved, _: progress(num_done + num_solved),
        **settings,
    )
    is_new = queue >= 0
    jax.tree.map(lambda leaf, new: leaf.__setitem__(queue[is_new], new[is_new]), ends, rest)
    return ends, where.after(later), work + later


def diagnose(
    classifier: Classifier,
    images: jax.Array,
    group: Group,
    ends: _pair.End,
    items: np.ndarray,
    where: Lanes,
) -> tuple[Solution, np.ndarray, Lanes]:
    """The solutions (P, ...) at the ends of searches, whether gradients vanished on the way, and the lanes to use."""
    pairs = Pairs(classifier, images, group.members, ends)
    settings: dict[str, Any] = {"devices": where.devices}
    solution, work = lanes.evaluate(_diagnose, pairs, items, num_lanes=where.num_lanes_at_end, **settings)
    where = where._replace(num_lanes_at_end=work.num_lanes)
    is_far = (
        (items >= 0) & (solution.status == Status.CONVERGED) & (solution.margin > math.prod(images.shape[1:]) ** 0.5)
    )
    is_early = np.zeros(len(items), bool)
    if is_far.any():
        pairs = pairs._replace(rows=(ends.z, ends.label))
        is_early, work = lanes.evaluate(
            _is_early, pairs, np.where(is_far, items, -1), num_lanes=where.num_lanes_at_end, **settings
        )
        where = where._replace(num_lanes_at_end=work.num_lanes)
    return solution._replace(coordinates=ends.z), is_early, where


def items_of(group: Group, num_images: int, num_counted: int) -> np.ndarray:
    """The items of a group's pairs, -1 for images that are padding."""
    items = np.arange(len(group.places) * num_images)
    return np.where(items % num_images >= num_images - num_counted, items, -1)


class Ahead:
    """Programs that threads compile while the next programs are traced, which makes the first call faster.

    Only on CPU: on accelerators, programs are tuned by running them, and nothing else may run meanwhile.
    """

    def __init__(self, solver: Solver, classifier: Classifier, images: Any, groups: Sequence[Group], where: Lanes):
        self._waiting: dict[str, concurrent.futures.Future] = {}
        if where.devices[0].platform != "cpu":
            return
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="hmt_jax-compile")
        few: dict[str, Any] = {"devices": where.devices, "num_lanes": where.num_lanes}
        pairs = Pairs(classifier, images, None, None)
        at_images = self._compile("linearize", lanes.lower_evaluate(_Linearize(solver.num_candidates), pairs, **few))
        for group in groups:
            num_pairs = len(group.places) * len(images)
            pairs = Pairs(classifier, images, group.members, _resized(at_images, len(images)))
            begun = self._compile(f"begin {group.places}", lanes.lower_evaluate(_Begin(solver), pairs, **few))
            runs, _, ends = _resized(begun, num_pairs)
            if solver.max_steps > 1:
                pairs = pairs._replace(rows=runs)
                self._compile(f"continue {group.places}", lanes.lower_solve(_Continue(solver), pairs, num_pairs, **few))
            pairs = pairs._replace(rows=ends)
            few_at_end = few | {"num_lanes": where.num_lanes_at_end}
            self._compile(f"diagnose {group.places}", lanes.lower_evaluate(_diagnose, pairs, **few_at_end))
        self._threads.shutdown(wait=False)

    def _compile(self, name: str, lowered: jax.stages.Lowered) -> Any:
        self._waiting[name] = self._threads.submit(lowered.compile)
        return lowered.out_info

    def wait_for(self, name: str) -> None:
        """Waits until a program has been compiled. If that failed, the call that runs the program raises the error."""
        if name in self._waiting:
            concurrent.futures.wait([self._waiting.pop(name)])


def _resized(tree, length: int):
    """The shapes and dtypes of a tree, with `length` as the first axis of every leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype), tree)
