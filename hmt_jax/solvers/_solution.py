"""What every solver takes and gives."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Restriction = Callable[[jax.Array], jax.Array]


class Status(enum.IntEnum):
    """How the search for a margin ended."""

    CONVERGED = 0  #: the label changed; the margin is that of the point found
    OUT_OF_STEPS = 1  #: the label had not changed after the last step; the margin is the distance reached
    NON_FINITE = 2  #: logits or gradients were NaN or infinite; the margin is NaN
    ZERO_GRADIENT = 3  #: no direction in the subspace moves the logits apart; the margin is infinite


class Solution(NamedTuple):
    """Answer of a solver for one sample in one subspace. Every field but `coordinates` is a scalar.

    Attributes:
      margin: L2 norm of the perturbation found; `Status` says what it means where the search did not converge.
      label: the predicted label of the unperturbed sample; -1 if its logits are not finite.
      adversarial_label: the label at the perturbed sample; equal to `label` where the search did not converge.
      num_steps: steps taken.
      status: a `Status`.
      coordinates: the perturbation in the subspace's coordinates, (d,); None where they are not kept.
    """

    margin: jax.Array
    label: jax.Array
    adversarial_label: jax.Array
    num_steps: jax.Array
    status: jax.Array
    coordinates: jax.Array | None


class Solver(Protocol):
    """A hashable value with the four methods that `hmt_jax.solvers` describes."""

    def start(self, restriction: Restriction, origin: jax.Array) -> Any: ...

    def step(self, restriction: Restriction, state: Any) -> Any: ...

    def done(self, state: Any) -> jax.Array: ...

    def result(self, state: Any) -> Solution: ...
