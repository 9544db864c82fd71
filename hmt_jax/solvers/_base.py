"""The interface of a solver, and the linear algebra that solvers share."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from hmt_jax._checks import as_numbers, integer
from hmt_jax._misc import promoted

#: A function from coordinates z (d,) in a subspace to logits (L,).
Restriction = Callable[[jax.Array], jax.Array]


class Status(enum.IntEnum):
    """The way in which the search for a margin ended.

    >>> import numpy as np
    >>> Status(1).name, (np.array([0, 1, 0]) == Status.CONVERGED).tolist()
    ('OUT_OF_STEPS', [True, False, True])
    """

    CONVERGED = 0  #: the label changed; the margin is the distance to the point found
    OUT_OF_STEPS = 1  #: the label had not changed after the last step; the margin is the distance reached
    NON_FINITE = 2  #: logits were NaN or +infinite, or gradients not finite or too steep; the margin is NaN
    ZERO_GRADIENT = 3  #: no direction in the subspace moves the candidates' logits apart; the margin is infinite
    UNCONFIRMED = 4  #: evaluated again, the point found has the label of the sample; the margin is its distance


class Solution(NamedTuple):
    """The outcome of a search for one sample in one subspace. Every field except `coordinates` is a scalar.

    Attributes:
      margin: L2 norm of the perturbation found. `Status` says what it means if the search did not converge.
      label: the predicted label of the unperturbed sample; -1 if its logits name no label, as `has_label` says.
      adversarial_label: the label at the perturbed sample; equal to `label` if the search did not converge.
      num_steps: steps taken, including the solver's `start`.
      status: a `Status`.
      coordinates: (d,) the perturbation in the subspace's coordinates; None if they were not kept.
      gap: max over k != label of g_k - g_label at the perturbed sample, in logits; None if it was not computed.
      alignment: cosine of the angle between the perturbation and the gradient of that gap; None if `gap` is None.

    >>> solution = Solution(0.5, label=3, adversarial_label=8, num_steps=2, status=Status.CONVERGED, coordinates=None)
    >>> solution.margin if solution.status == Status.CONVERGED else math.inf
    0.5
    """

    margin: jax.Array
    label: jax.Array
    adversarial_label: jax.Array
    num_steps: jax.Array
    status: jax.Array
    coordinates: jax.Array | None
    gap: jax.Array | None = None
    alignment: jax.Array | None = None


class Point(NamedTuple):
    """The nearest adversarial point that a search has found so far, or the last point it saw if there is none yet.

    Attributes:
      z: (d,) coordinates of the point in the subspace.
      label: the label of the point, as `label_of` returns it. It is the label of the sample until an adversarial point
        is found, and -1 if the search met logits that name no label.

    >>> Point(jnp.array([3.0, 4.0]), label_of(jnp.array([0.1, 0.7]))).label.item()
    1
    """

    z: jax.Array
    label: jax.Array


class Linearization(NamedTuple):
    """The linearisation of a restriction g at the unperturbed sample, z = 0, for its most likely classes.

    Attributes:
      logits: (L,), g(0).
      candidates: (C,) classes by falling logit, the label first; C is L if there are fewer classes than asked for.
      normals: (C - 1, d) gradients of g_k - g_label in z for the other candidates k; 0 for a class that is ruled out by
        a logit of -infinity.

    >>> logits, candidates, normals = Linearization(jnp.array([0.1, 0.9]), jnp.array([1, 0]), jnp.array([[1.0, -1.0]]))
    >>> candidates[0].item()  # the label
    1
    """

    logits: jax.Array
    candidates: jax.Array
    normals: jax.Array


def linearize(function: Callable[[jax.Array], jax.Array], point: jax.Array, num_candidates: int) -> Linearization:
    """The linearisation of logits (L,) at a point of any shape, by one forward pass and C - 1 backward passes.

    Args:
      function: function from points to logits (L,).
      point: an array of any shape.
      num_candidates: the number C of candidates, including the label; at most L are taken.

    Returns:
      A `Linearization` at the point, whose normals have shape (C - 1, ...), with the axes of the point.

    >>> weights = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> at_sample = linearize(lambda z: weights @ z, jnp.array([1.0, 3.0]), num_candidates=2)
    >>> at_sample.candidates.tolist(), at_sample.normals.tolist()
    ([2, 1], [[1.0, -2.0]])
    """
    logits, pull_back = jax.vjp(function, point)
    # -0 and 0 are a tie, as for `argmax`.
    order = jnp.where(logits == 0, 0, logits)
    candidates = jax.lax.top_k(order, min(num_candidates, logits.size))[1].astype(jnp.int32)
    if num_candidates == 1:
        return Linearization(logits, candidates, jnp.zeros((0, *point.shape), point.dtype))
    return Linearization(logits, candidates, normals_of(pull_back, logits, candidates))


def has_label(logits: jax.Array) -> jax.Array:
    """Whether logits (..., L) name a label: none is NaN or +infinite, and at least one is finite.

    A logit of -infinity rules its class out, as in masked classifiers: that class is never the label.

    Args:
      logits: (..., L).

    Returns:
      (...) bool.

    >>> has_label(jnp.array([[1.0, -jnp.inf], [1.0, jnp.inf], [jnp.nan, 1.0], [-jnp.inf, -jnp.inf]])).tolist()
    [True, False, False, False]
    """
    return (logits < jnp.inf).all(-1) & (logits > -jnp.inf).any(-1)


def label_of(logits: jax.Array) -> jax.Array:
    """The label of logits (..., L): the class of the greatest logit, or -1 if they name no label, as `has_label` says.

    Args:
      logits: (..., L).

    Returns:
      (...) int32.

    >>> label_of(jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])).tolist()
    [1, -1]
    """
    return jnp.where(has_label(logits), jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)


def normals_of(pull_back: Callable, logits: jax.Array, candidates: jax.Array) -> jax.Array:
    """Gradients (C - 1, ...) of g_k - g_y, where y is the first candidate and k are the others.

    A gradient is 0 if g_k or g_y is -infinite, because no direction changes that.

    Args:
      pull_back: the pull-back of g, as `jax.vjp` returns it.
      logits: (L,) the value of g.
      candidates: (C,) classes.

    Returns:
      (C - 1, ...), with the axes of the argument of g.

    >>> weights = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> logits, pull_back = jax.vjp(lambda z: weights @ z, jnp.array([1.0, 3.0]))
    >>> normals_of(pull_back, logits, jnp.array([2, 1])).tolist()
    [[1.0, -2.0]]
    """
    label, others = candidates[0], candidates[1:]
    cotangents = jax.nn.one_hot(others, logits.size, dtype=logits.dtype)
    cotangents -= jax.nn.one_hot(label, logits.size, dtype=logits.dtype)[None]
    normals = jax.vmap(lambda cotangent: pull_back(cotangent)[0])(cotangents)
    is_ruled_out = (logits[others] == -jnp.inf) | (logits[label] == -jnp.inf)
    return jnp.where(is_ruled_out.reshape(-1, *[1] * (normals.ndim - 1)), 0, normals)


def norms_of(vectors: jax.Array) -> jax.Array:
    """L2 norms along the last axis, without overflow or underflow of the squares.

    Args:
      vectors: (..., d), floating point.

    Returns:
      (...), in the dtype of the vectors.

    >>> norms_of(jnp.array([[3e-30, 4e-30], [0.0, 0.0]])).tolist() == [jnp.float32(5e-30), 0]
    True
    """
    wide = vectors.astype(promoted(vectors.dtype, jnp.float32))
    exponent = jnp.frexp(jnp.max(jnp.abs(wide), axis=-1))[1]
    # Division by a power of two is exact. XLA multiplies by its reciprocal, which must be a normal number, too.
    scale = jnp.ldexp(jnp.ones((), wide.dtype), jnp.minimum(exponent - 1, jnp.finfo(wide.dtype).maxexp - 2))
    return (scale * jnp.linalg.norm(wide / scale[..., None], axis=-1)).astype(vectors.dtype)


def lengths_of(vectors: jax.Array) -> jax.Array:
    """L2 norms (...) of vectors (..., d) in at least float32, in which those of float16 are in range."""
    return norms_of(vectors.astype(promoted(vectors.dtype, jnp.float32)))


def divided(vectors: jax.Array, lengths: jax.Array) -> jax.Array:
    """Vectors (..., d) over lengths (...) of `lengths_of`, in the dtype of the vectors; 0 where the length is 0."""
    # In the dtype of the lengths, because XLA multiplies by the reciprocal, which may be infinite in float16.
    return (vectors.astype(lengths.dtype) / jnp.where(lengths > 0, lengths, 1)[..., None]).astype(vectors.dtype)


def distances_of(lead: tuple[jax.Array, jax.Array], lengths: jax.Array) -> jax.Array:
    """Distances to linearised boundaries: (g_y - g_k) / length, in the dtype of the lengths; infinite if that is 0.

    Args:
      lead: the logits g_y and g_k, whose difference may be out of range.
      lengths: of the gradients of g_k - g_y, from `lengths_of`.
    """
    # Halves, which are exact, have a difference that is in range.
    ahead, behind = (0.5 * logits.astype(lengths.dtype) for logits in lead)
    slopes = 0.5 * jnp.where(lengths == 0, 1, lengths)
    return jnp.where(lengths == 0, jnp.inf, (ahead - behind) / slopes)


class Solver(Protocol):
    """A solver: a hashable value with the numbers and methods that `hmt_jax.solvers` describes.

    >>> from hmt_jax import solvers
    >>> solver: Solver = solvers.DeepFool(max_steps=50)
    >>> solver.num_candidates, solver.max_steps
    (10, 50)
    """

    @property
    def num_candidates(self) -> int: ...

    @property
    def max_steps(self) -> int: ...

    def start(self, restriction: Restriction, at_sample: Linearization) -> Any: ...

    def step(self, restriction: Restriction, state: Any) -> Any: ...

    def done(self, state: Any) -> jax.Array: ...

    def point(self, state: Any) -> Point: ...


def check_settings(settings: Any) -> None:
    """Converts a solver's fields to numbers, as `as_numbers` does, and checks them.

    Raises:
      ValueError: for a value that is not a number, a count that is too small, or an overshoot that is negative or
        infinite.
    """
    as_numbers(settings)
    # Only fields, because properties are computed from settings that are not checked yet.
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if fields.get("num_candidates", 2) < 2:
        raise ValueError(
            f"num_candidates must be at least 2, the label and one other class, got {settings.num_candidates}"
        )
    overshoot: float = fields.get("overshoot", 0)
    if not 0 <= overshoot < math.inf:  # written so that NaN fails, too
        raise ValueError(f"overshoot must be finite and not negative, got {overshoot}")
    num_steps: int = fields.get("num_steps", 1)
    max_steps: int = fields.get("max_steps", num_steps)
    integer("num_steps", num_steps, at_least=1)
    integer("max_steps", max_steps, at_least=1)
    if max_steps < num_steps:
        raise ValueError(f"max_steps must be at least num_steps, got {max_steps} and {num_steps}")
