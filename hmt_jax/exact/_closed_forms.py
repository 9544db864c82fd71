"""Margins by formula: of linear classifiers, and of a sphere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _checks
from hmt_jax._numbers import as_array
from hmt_jax.solvers import Linearization, Restriction, Solution, Status, has_label, norms_of
from hmt_jax.subspaces import Subspace


@dataclasses.dataclass(frozen=True)
class Linear:
    """The solver that `linear` makes."""

    num_candidates = np.iinfo(np.int32).max  # all classes

    def start(self, restriction: Restriction, at_sample: Linearization) -> Solution:
        logits, candidates, normals = at_sample
        label, others = candidates[0], candidates[1:]
        norms = norms_of(normals)
        gaps = (logits[label] - logits[others]).astype(norms.dtype)
        distances = jnp.where(norms > 0, gaps / jnp.where(norms > 0, norms, 1), jnp.inf)
        nearest = jnp.argmin(distances)
        margin = distances[nearest]
        is_labelled = has_label(logits)
        is_finite = is_labelled & jnp.isfinite(norms).all()
        is_crossed = is_finite & jnp.isfinite(margin)
        unit_normal = normals[nearest] / jnp.where(norms[nearest] > 0, norms[nearest], 1)
        status = jnp.where(is_crossed, Status.CONVERGED, Status.ZERO_GRADIENT)
        return Solution(
            margin=jnp.where(is_finite, margin, jnp.nan),
            label=jnp.where(is_labelled, label, -1),
            adversarial_label=jnp.where(is_labelled, jnp.where(is_crossed, others[nearest], label), -1),
            num_steps=jnp.ones((), jnp.int32),
            status=jnp.where(is_finite, status, Status.NON_FINITE).astype(jnp.int32),
            coordinates=jnp.where(is_crossed, margin, 0) * unit_normal,
        )

    def step(self, restriction: Restriction, state: Solution) -> Solution:
        return state

    def done(self, state: Solution) -> jax.Array:
        return jnp.asarray(True)

    def result(self, state: Solution) -> Solution:
        return state


def linear() -> Linear:
    """Exact margins of classifiers whose logits are affine in the image, of any number of classes in any subspace.

    With g the restriction and y the label, the distance to the nearest of the hyperplanes between y and another class,

      min_k (g_y - g_k) / ||grad (g_k - g_y)||,

    infinite, with status ZERO_GRADIENT, if no other class can gain on y but by rounding. `coordinates` are on that
    hyperplane, where both logits are equal. Of any other classifier it is the first-order estimate, which is no bound.

    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> image = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
    >>> result = hmt_jax.measure_margins(classifier, image, hmt_jax.subspaces.full((2, 2, 1)), linear())
    >>> f"{result.margin[0, 0]:.4f}"  # (0.9 - 0.5) / sqrt(2)
    '0.2828'
    """
    return Linear()


def sphere(center: ArrayLike, radius: ArrayLike, image: ArrayLike, subspace: Subspace) -> Solution:
    """The exact margin of two logits with g_1 - g_0 = ||x - center||^2 - radius^2: label 0 in a ball, 1 outside.

    With S the subspace's basis, p = S^T (center - x) and a the distance of the center from the subspace through x, the
    boundary is a sphere of radius sqrt(radius^2 - a^2) around p. The margin is | sqrt(radius^2 - a^2) - ||p|| |, from
    inside and from outside; it is infinite, with status ZERO_GRADIENT, if a > radius.

    Pure, so that it can be compiled and mapped. Curvature, a subspace and a boundary that is never crossed in one: a
    test of any solver.

    Args:
      center: an image (height, width, channels).
      radius: in pixels.
      image: (height, width, channels).
      subspace: a single subspace.

    >>> from hmt_jax import subspaces
    >>> pixel = subspaces.from_basis(jnp.eye(2, 1), (1, 2, 1))
    >>> solution = sphere(jnp.zeros((1, 2, 1)), 5.0, jnp.array([1.0, 4.0]).reshape(1, 2, 1), pixel)
    >>> f"{solution.margin:.4f}"  # sqrt(5^2 - 4^2) - 1
    '2.0000'
    """
    arrays = (("image", image), ("center", center), ("radius", radius))
    image, center, radius = (jnp.asarray(as_array(argument, value)) for argument, value in arrays)
    _checks.check_image(image)
    offset = image - center
    inside = subspace.coordinates(offset)  # -p
    norm = norms_of(inside)
    outside = norms_of((offset - subspace.embed(inside)).reshape(-1))
    distance = norms_of(offset.reshape(-1))
    label = (distance > radius).astype(jnp.int32)
    # From inside, the sphere is always crossed, whatever rounding does to the difference.
    is_crossed = (radius >= outside) | ((label == 0) & jnp.isfinite(distance))
    # As a product of roots, because squares may overflow.
    reach = jnp.sqrt(jnp.maximum(radius - outside, 0)) * jnp.sqrt(radius + outside)
    # The difference of reach and norm, without the cancellation of two squares.
    outwards = (radius - distance) * ((radius + distance) / jnp.where(reach + norm > 0, reach + norm, 1))
    direction = jnp.where(norm > 0, inside / jnp.where(norm > 0, norm, 1), jnp.eye(1, inside.size)[0])
    return Solution(
        margin=jnp.where(is_crossed, jnp.abs(outwards), jnp.inf),
        label=label,
        adversarial_label=jnp.where(is_crossed, 1 - label, label),
        num_steps=jnp.zeros((), jnp.int32),
        status=jnp.where(is_crossed, Status.CONVERGED, Status.ZERO_GRADIENT).astype(jnp.int32),
        coordinates=jnp.where(is_crossed, outwards, 0) * direction,
    )
