"""The search for one margin, given a classifier, an image, a subspace and a solver: pure functions, fit for `vmap`.

A solver decides where the search goes. This module counts the steps, decides when a search has ended, and computes
margin, labels and status.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hmt_jax._misc import promoted
from hmt_jax.classifiers import Classifier, differentiated, restrict, shape_of_logits
from hmt_jax.margins import _states
from hmt_jax.solvers import Linearization, Solution, Solver, Status, has_label, linearize, normals_of, norms_of
from hmt_jax.solvers._base import distances_of, divided, lengths_of
from hmt_jax.subspaces import Subspace, full

# The noise in normals, in rounding units: 0.6 to 1.4 was seen, in networks that do not see high frequencies.
_ROUNDING = 4
# A point counts as adversarial if its label leads by at most this share of its lead at the sample. Exact margins end at
# the boundary, where rounding decides, and rounding in half precision is as large as that.
_GAP_LEFT = 2e-2

# Gradients that are longer than this share of the greatest number are too steep: their reciprocals count as 0.
_STEEPEST = 0.25


class Run(NamedTuple):
    """The state of a search."""

    state: Any  # the solver's, with random keys as numbers
    label: jax.Array  # the label of the sample; -1 if its logits name none
    gap: jax.Array  # the difference of the two greatest logits of the sample
    num_steps: jax.Array
    status: jax.Array  # OUT_OF_STEPS while the search goes on


class End(NamedTuple):
    """The end of a search."""

    z: jax.Array  # (d,)
    adversarial_label: jax.Array
    label: jax.Array
    gap: jax.Array  # as in `Run`
    num_steps: jax.Array
    status: jax.Array


def linearize_at(num_candidates: int, classifier: Classifier, image: jax.Array) -> Linearization:
    """The linearisation of the logits at an image, with normals (C - 1, height, width, channels)."""
    logits = shape_of_logits(classifier, image[None])
    origin = jnp.zeros(image.size, promoted(image.dtype, logits.dtype))
    with differentiated(classifier, image[None]):
        at_image = linearize(restrict(classifier, image, full(image.shape)), origin, num_candidates)
    return at_image._replace(normals=at_image.normals.reshape(-1, *image.shape))


def in_subspace(image: jax.Array, subspace: Subspace, at_image: Linearization) -> Linearization:
    """The linearisation of the restriction to a subspace, with normals (C - 1, d), made from the one at the image."""
    dtype = at_image.normals.dtype
    origin = jnp.zeros(subspace.coordinates(image).shape, dtype)
    if not len(at_image.normals):
        return at_image._replace(normals=jnp.zeros((0, origin.size), dtype))
    # By the transpose of `embed`, because `coordinates` equals it only if coordinates are orthonormal.
    pull_back = jax.vjp(lambda z: image.astype(dtype) + subspace.embed(z), origin)[1]
    normals = jax.vmap(lambda normal: pull_back(normal)[0])(at_image.normals)
    # If the logits do not depend on this subspace, its normals are rounding noise, spread evenly over all pixels.
    lengths = lengths_of(at_image.normals.reshape(len(normals), -1))
    hidden = _ROUNDING * jnp.finfo(dtype).eps * math.sqrt(origin.size / image.size) * lengths
    is_hidden = jnp.isfinite(hidden) & (lengths_of(normals) < hidden)
    return at_image._replace(normals=jnp.where(is_hidden[:, None], 0, normals))


def begin(solver: Solver, classifier: Classifier, image: jax.Array, subspace: Subspace, at_image: Linearization) -> Run:
    """The search after its first step, the solver's `start`."""
    at_sample = in_subspace(image, subspace, at_image)
    state = solver.start(restrict(classifier, image, subspace), at_sample)
    logits, normals = at_sample.logits, at_sample.normals
    is_labelled = has_label(logits)
    label = jnp.where(is_labelled, at_sample.candidates[0], -1)
    status = jnp.asarray(Status.OUT_OF_STEPS, jnp.int32)
    if len(normals):
        lengths = lengths_of(normals)
        distances = distances_of((logits[label], logits[at_sample.candidates[1:]]), lengths).astype(normals.dtype)
        status = jnp.where(jnp.isfinite(distances).any(), status, Status.ZERO_GRADIENT)
        status = jnp.where((lengths < _STEEPEST * jnp.finfo(lengths.dtype).max).all(), status, Status.NON_FINITE)
    status = jnp.where(is_labelled, status, Status.NON_FINITE).astype(jnp.int32)
    greatest = jax.lax.top_k(logits.astype(promoted(logits.dtype, jnp.float32)), 2)[0]
    gap = jnp.where(is_labelled, greatest[0] - greatest[1], jnp.nan)
    run = Run(_states.with_numbers(state), label, gap, jnp.asarray(1, jnp.int32), status)
    return _ended_if_lost(solver, run)


def advance(solver: Solver, classifier: Classifier, image: jax.Array, subspace: Subspace, run: Run) -> Run:
    """The search after one more step."""
    before = _states.with_keys(run.state)
    after = solver.step(restrict(classifier, image, subspace), before)
    _states.check_same_types(solver, before, after)
    state = _states.with_numbers(after)
    # A solver whose state has not changed has no direction to go in.
    is_same = jax.tree.map(lambda old, new: (old == new).all(), run.state, state)
    is_still = jax.tree.reduce(jnp.logical_and, is_same, jnp.asarray(True))
    status = jnp.where(is_still & ~_is_found(solver, run), Status.ZERO_GRADIENT, run.status).astype(jnp.int32)
    run = Run(state, run.label, run.gap, run.num_steps + 1, status)
    return _ended_if_lost(solver, run)


def is_done(solver: Solver, run: Run) -> jax.Array:
    """Whether a search has ended: the solver is done or out of steps, or there is no way to go on."""
    is_ended = (run.status != Status.OUT_OF_STEPS) | (run.num_steps >= solver.max_steps)
    return is_ended | _states.done(solver, run.state)


def end(solver: Solver, run: Run) -> End:
    """The end of a search, from its last state."""
    point = _states.point(solver, run.state)
    is_found = (run.status == Status.OUT_OF_STEPS) & (point.label != run.label)
    return End(
        z=point.z,
        adversarial_label=jnp.where(is_found, point.label, run.label),
        label=run.label,
        gap=run.gap,
        num_steps=run.num_steps,
        status=jnp.where(is_found, Status.CONVERGED, run.status).astype(jnp.int32),
    )


def diagnose(classifier: Classifier, image: jax.Array, subspace: Subspace, end: End) -> Solution:
    """The solution at the end of a search, from one more evaluation of the point found.

    The status is UNCONFIRMED if the point now has the label of the sample. That happens if the classifier changes
    between calls or is random, or if two logits are equal up to rounding.
    """
    logits, pull_back = jax.vjp(restrict(classifier, image, subspace), end.z)
    is_label = jnp.arange(logits.size, dtype=end.label.dtype) == end.label
    others = jnp.where(is_label, -jnp.inf, logits)
    towards = jnp.stack([end.label, jnp.argmax(others).astype(end.label.dtype)])
    (normal,) = normals_of(pull_back, logits, towards)
    gap = logits[towards[1]] - logits[towards[0]]
    # Normalised first: the product of a long perturbation and a steep gradient may overflow.
    vectors = jnp.stack([normal, end.z.astype(normal.dtype)])
    lengths = lengths_of(vectors)
    alignment = jnp.where((lengths > 0).all(), jnp.vdot(*divided(vectors, lengths)), jnp.nan)

    margin, is_labelled = norms_of(end.z), has_label(logits)
    is_lost = (end.status == Status.CONVERGED) & (gap < -_GAP_LEFT * end.gap)
    status = jnp.where(is_lost, Status.UNCONFIRMED, end.status)
    # An infinite distance is an overflow, and no margin.
    status = jnp.where((end.status == Status.CONVERGED) & jnp.isinf(margin), Status.ZERO_GRADIENT, status)
    has_ended_at_nan = (status != Status.ZERO_GRADIENT) & ~is_labelled
    status = jnp.where(has_ended_at_nan, Status.NON_FINITE, status).astype(jnp.int32)
    margin = jnp.where(status == Status.ZERO_GRADIENT, jnp.inf, margin)
    margin = jnp.where(status == Status.NON_FINITE, jnp.nan, margin)
    is_point = jnp.isfinite(margin) & is_labelled
    return Solution(
        margin=margin,
        label=end.label,
        adversarial_label=jnp.where(status == Status.CONVERGED, end.adversarial_label, end.label),
        num_steps=end.num_steps,
        status=status,
        coordinates=end.z,
        gap=jnp.where(is_point, gap, jnp.nan),
        alignment=jnp.where(is_point, alignment, jnp.nan),
    )


def solve(solver: Solver, classifier: Classifier, image: jax.Array, subspace: Subspace) -> Solution:
    """The solution for one pair, from the first step to the last."""
    at_image = linearize_at(solver.num_candidates, classifier, image)
    run = jax.lax.while_loop(
        lambda run: ~is_done(solver, run),
        lambda run: advance(solver, classifier, image, subspace, run),
        begin(solver, classifier, image, subspace, at_image),
    )
    return diagnose(classifier, image, subspace, end(solver, run))


def _is_found(solver, run) -> jax.Array:
    return _states.point(solver, run.state).label != run.label


def _ended_if_lost(solver, run) -> Run:
    """The search, with status NON_FINITE if the solver met logits that name no label, or its point is NaN."""
    point = _states.point(solver, run.state)
    is_lost = (run.status == Status.OUT_OF_STEPS) & ((point.label == -1) | jnp.isnan(point.z).any())
    return run._replace(status=jnp.where(is_lost, Status.NON_FINITE, run.status).astype(jnp.int32))
