"""Exact margins of small piecewise-linear networks."""

import functools
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _piecewise
from hmt_jax._checks import as_array, check_image, integer
from hmt_jax._images import as_floats
from hmt_jax.exact import _rays, _regions
from hmt_jax.exact._search import Found, nearest
from hmt_jax.solvers import Solution, Status
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import check_single

# Regions thinner than this part of a typical distance are left out: on flat images many units switch at once, and every
# set of them has such a region. Logits are continuous, so its points belong to the regions beside it just as well.
_THINNEST = 1e-8


def piecewise_linear(
    classifier: Any, image: ArrayLike, subspace: Subspace, *, reach: float = np.inf, max_steps: int = 100_000
) -> Solution:
    """The exact margin of a small network of ReLU and max-pooling, for one image in a subspace of few dimensions.

    In a region where no unit switches, the logits are affine, and the nearest point with another label solves a
    least-norm problem. In one dimension, such regions are the pieces of both rays, which are walked from breakpoint to
    breakpoint. In more dimensions, they are cut out unit by unit and visited in the order of their distances (branch
    and bound, best first), so that the first point found is the nearest of all. Everything is computed in float64 on
    the host: the margin is that of the network in real arithmetic, with its parameters taken as exact.

    The number of regions within the margin grows with its d-th power: use lines for LeNet, and up to about 3 dimensions
    for an MLP of some hundred units.

    Args:
      classifier: `logistic`, `mlp` or `lenet` of `hmt_jax.models`.
      image: (height, width, channels).
      subspace: a single subspace.
      reach: the greatest distance searched, in pixels; an upper bound of the margin makes the search shorter.
      max_steps: number of pieces or parts after which the search is given up.

    Returns:
      A `hmt_jax.Solution` of NumPy numbers. `coordinates` are on the boundary, where the logits of both labels are
      equal. If the search ends at `reach` or `max_steps`, the status is OUT_OF_STEPS, and `margin` the distance within
      which there is no boundary. If there is no boundary at all, the status is ZERO_GRADIENT and the margin infinite.
      The status is NON_FINITE if a pixel is not finite.

    Raises:
      TypeError: for any other classifier.
      ValueError: if the image has the wrong shape or type, the subspace is for other images, or the reach or the number
        of steps is not positive.

    >>> import jax
    >>> from hmt_jax import models, subspaces
    >>> classifier = models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3, num_hidden=(8, 8))
    >>> plane = subspaces.random(jax.random.key(1), (4, 4, 1), dimension=2)
    >>> solution = piecewise_linear(classifier, np.full((4, 4, 1), 0.5), plane)
    >>> logits = classifier(0.5 + plane.embed(solution.coordinates.astype(np.float32))[None])[0]
    >>> bool(abs(logits[solution.label] - logits[solution.adversarial_label]) < 1e-5)
    True
    """
    if not (reach > 0 and integer("max_steps", max_steps) > 0):
        raise ValueError(f"reach and max_steps must be positive, got {reach} and {max_steps}")
    image = np.asarray(as_array("image", image))
    check_image(image)
    check_single(subspace, image.shape)
    image = as_floats(image)
    network = _piecewise.network_of(classifier, image.shape)
    basis = _piecewise.basis_of(subspace, image.shape)
    if not np.isfinite(image).all():
        return _solution(Status.NON_FINITE, -1, Found(np.nan, None, 0), basis.shape[1])
    network = _piecewise.in_coordinates(_piecewise.around(network, image.reshape(-1).astype(np.float64)), basis)
    layers, label = network.layers, _piecewise.label_of(network)
    parts: Any = _rays.both() if basis.shape[1] == 1 else [_regions.whole(layers)]
    divide: Any = _rays.walk if basis.shape[1] == 1 else _regions.divide
    thinnest = _THINNEST * _typical_distance(layers[0])
    divide = functools.partial(divide, layers, label, thinnest)
    found = nearest(parts, divide, reach=reach, max_steps=max_steps)
    status = Status.OUT_OF_STEPS if found.distance < np.inf else Status.ZERO_GRADIENT
    return _solution(Status.CONVERGED if found.answer else status, label, found, basis.shape[1])


def _solution(status, label, found, dimension) -> Solution:
    other, point = found.answer or (label, np.full(dimension, np.nan))
    numbers: list[Any] = [np.float64(found.distance), *map(np.int32, (label, other, found.num_steps, status)), point]
    return Solution(*numbers)


def _typical_distance(layer) -> float:
    """The median distance at which an option is zero; 1 if none is zero away from the origin."""
    norms = np.linalg.norm(layer.weight, axis=2)
    is_seen = (norms > 0) & (layer.bias != 0)
    return float(np.median(np.abs(layer.bias[is_seen]) / norms[is_seen])) if is_seen.any() else 1.0
