"""The closed form of the margin of a spherical boundary."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from hmt_jax._checks import as_array, check_image
from hmt_jax._images import as_floats
from hmt_jax.solvers import Solution, Status, norms_of
from hmt_jax.subspaces import Subspace


def sphere(center: ArrayLike, radius: ArrayLike, image: ArrayLike, subspace: Subspace) -> Solution:
    """The exact margin of two logits with g_1 - g_0 = ||x - center||^2 - radius^2: label 0 in a ball, 1 outside.

    With S the subspace's basis, p = S^T (center - x) and a the distance of the center from the subspace through x, the
    boundary is a sphere of radius sqrt(radius^2 - a^2) around p. The margin is | sqrt(radius^2 - a^2) - ||p|| |, from
    inside and from outside; it is infinite, with status ZERO_GRADIENT, if a > radius.

    The function is pure, so that it can be compiled and mapped. It tests any solver on curvature, on subspaces and on
    boundaries that are never crossed.

    Args:
      center: an image (height, width, channels).
      radius: radius of the ball, in pixels.
      image: (height, width, channels).
      subspace: a single subspace.

    Returns:
      A `hmt_jax.Solution` of JAX arrays.

    Raises:
      ValueError: if the image has the wrong shape or type.

    >>> from hmt_jax import subspaces
    >>> pixel = subspaces.from_basis(jnp.eye(2, 1), (1, 2, 1))
    >>> solution = sphere(jnp.zeros((1, 2, 1)), 5.0, jnp.array([1.0, 4.0]).reshape(1, 2, 1), pixel)
    >>> f"{solution.margin:.4f}"  # sqrt(5^2 - 4^2) - 1
    '2.0000'
    """
    arrays = (("image", image), ("center", center), ("radius", radius))
    image, center, radius = (jnp.asarray(as_array(argument, value)) for argument, value in arrays)
    check_image(image)
    image, center = as_floats(image), as_floats(center)
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
