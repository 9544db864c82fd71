"""Exact margins of small piecewise-linear networks, by a search over their linear regions from the sample outwards."""

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _piecewise
from hmt_jax.exact._least_norm import least_norm_point
from hmt_jax.solvers import Solution, Status
from hmt_jax.subspaces import Subspace

# Options of a unit that float64 can't tell apart are one: relative difference of their slopes.
_SAME_SLOPE = 1e-12
# Regions thinner than this part of a typical distance are left out: on flat images many units switch at once, and every
# set of them has such a region. Logits are continuous, and its points belong to the regions beside it just as well.
_THINNEST = 1e-8


def piecewise_linear(
    classifier: Any, image: ArrayLike, subspace: Subspace, *, reach: float = np.inf, max_regions: int = 10_000
) -> Solution:
    """The exact margin of a small network of ReLU and max-pooling, for one image in a subspace of few dimensions.

    Where every unit keeps its state the logits are affine, and the nearest point with another label solves a
    least-norm problem. Such regions are cut out unit by unit and taken up in the order of their distances from the
    origin (branch and bound, best first), so that the first such point is the nearest of all. All of it is in float64
    on the host: the margin is that of the parameters as they are, in real arithmetic.

    The number of regions within the margin grows with its d-th power: take up to 3 dimensions or so for an MLP of some
    hundred units, and lines for LeNet. In one dimension the regions end at the breakpoints along both rays.

    Args:
      classifier: `logistic`, `mlp` or `lenet` of `hmt_jax.models`.
      image: (height, width, channels).
      subspace: a single subspace.
      reach: the greatest distance looked at, in pixels; an upper bound of the margin makes the search shorter.
      max_regions: regions after which the sample is given up.

    Returns:
      A `hmt_jax.Solution` of NumPy numbers. `coordinates` are on the boundary, where the logits of both labels are
      equal; `num_steps` is the number of regions. Out of reach or of regions, the status is OUT_OF_STEPS, and `margin`
      the distance within which there is no boundary; where there is none at all, it is ZERO_GRADIENT and infinite.

    Raises:
      TypeError: for any other classifier.

    >>> import jax
    >>> from hmt_jax import models, subspaces
    >>> classifier = models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3, num_hidden=(8, 8))
    >>> plane = subspaces.random(jax.random.key(1), (4, 4, 1), dimension=2)
    >>> solution = piecewise_linear(classifier, np.full((4, 4, 1), 0.5), plane)
    >>> logits = classifier(0.5 + plane.embed(solution.coordinates.astype(np.float32))[None])[0]
    >>> bool(abs(logits[solution.label] - logits[solution.adversarial_label]) < 1e-5)
    True
    """
    image = np.asarray(image, np.float64)
    network = _piecewise.network_of(classifier, image.shape)
    network = _piecewise.around(network, image.reshape(-1))
    network = _piecewise.in_coordinates(network, _piecewise.basis_of(subspace, image.shape))
    return _search(network.layers, _piecewise.label_of(network), reach, max_regions)


class _Region(NamedTuple):
    """A polytope normals z >= offsets in which the layers before `depth` are affine, and a point of it near the origin.

    Attributes:
      weight: (units, options, d) slopes in z of the options of layer `depth`: the members of a pool, and ReLU's zero.
        The last layer has one unit, whose options are the logits.
      bias: (units, options) their values at z = 0.
      is_possible: (units, options), False for options that are below another one all over the polytope.
      normals: (F, d) unit vectors.
      offsets: (F,)
      point: (d,) inside, next to the nearest one.
    """

    depth: int
    weight: np.ndarray
    bias: np.ndarray
    is_possible: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray
    point: np.ndarray


class _Cuts(NamedTuple):
    """The half-spaces in which a rival is above the winner of its unit, from near to far."""

    region: _Region
    winner: np.ndarray  # (units,)
    rivals: np.ndarray  # (T, 2), unit and option
    normals: np.ndarray  # (T, d)
    offsets: np.ndarray  # (T,)


class _Part(NamedTuple):
    """What a region has within cut number t and out of those before it, not yet looked at."""

    cuts: _Cuts
    t: int


class _Answer(NamedTuple):
    adversarial_label: int
    point: np.ndarray


_Item = _Region | _Part | _Answer


def _search(layers, label, reach, max_regions) -> Solution:
    dimension = layers[0].weight.shape[-1]
    origin = np.zeros(dimension)
    whole = _enter(layers, 0, np.eye(dimension), origin, np.zeros((0, dimension)), np.zeros(0), origin)
    thinnest = _THINNEST * _typical_distance(layers[0])
    numbers = itertools.count()  # what is equally far away is taken up in turn
    queue: list[tuple[float, int, _Item]] = [(0.0, next(numbers), whole)]
    num_regions = 0
    while queue:
        distance, _, item = heapq.heappop(queue)
        if isinstance(item, _Answer):
            return _solution(distance, label, num_regions, Status.CONVERGED, item.adversarial_label, item.point)
        if isinstance(item, _Region):
            if num_regions == max_regions:
                return _solution(distance, label, num_regions, Status.OUT_OF_STEPS, label, np.full(dimension, np.nan))
            num_regions += 1
            successors = _divide(layers, label, item, reach)
        else:
            successors = _look_at(layers, item, thinnest)
        for least_distance, successor in successors:
            if least_distance <= reach:
                heapq.heappush(queue, (max(distance, least_distance), next(numbers), successor))
    status = Status.OUT_OF_STEPS if reach < np.inf else Status.ZERO_GRADIENT
    return _solution(reach, label, num_regions, status, label, np.full(dimension, np.nan))


def _solution(margin, label, num_regions, status, adversarial_label, point) -> Solution:
    numbers: Any = (np.float64(margin), *map(np.int32, (label, adversarial_label, num_regions, status)), point)
    return Solution(*numbers)


def _divide(layers, label, region, reach) -> Iterator[tuple[float, _Item]]:
    """All of a region but the linear one around its nearest point; of that one the parts with other labels."""
    while True:
        is_last = region.depth == len(layers) - 1
        values = np.where(region.is_possible, region.weight @ region.point + region.bias, -np.inf)
        cuts = _cut(region, np.array([label]) if is_last else values.argmax(1), reach)
        yield from _first_from(cuts, 0)
        if is_last:
            return
        winners = np.arange(len(cuts.winner)), cuts.winner
        region = _enter(
            layers,
            region.depth + 1,
            region.weight[winners],
            region.bias[winners],
            np.concatenate([region.normals, -cuts.normals]),
            np.concatenate([region.offsets, -cuts.offsets]),
            region.point,
        )


def _look_at(layers, part, thinnest) -> Iterator[tuple[float, _Item]]:
    """A part as a region with its distance, if it is not empty, and the part behind it."""
    (region, winner, rivals, normals, offsets), t = part
    yield from _first_from(part.cuts, t + 1)
    normals = np.concatenate([region.normals, -normals[:t], normals[t : t + 1]])
    offsets = np.concatenate([region.offsets, -offsets[:t], offsets[t : t + 1]])
    is_opposite = normals @ normals[-1] < _SAME_SLOPE - 1
    if np.any(offsets[is_opposite] + offsets[-1] > -2 * thinnest):
        return
    inside, point = least_norm_point(normals, offsets + thinnest), least_norm_point(normals, offsets)
    if inside is None or point is None:
        return
    unit, rival = rivals[t]
    if region.depth == len(layers) - 1:
        yield float(np.linalg.norm(point)), _Answer(rival, point)
        return
    is_possible = region.is_possible.copy()
    is_possible[rivals[:t, 0], rivals[:t, 1]] = False
    is_possible[unit, winner[unit]] = False
    yield (
        float(np.linalg.norm(point)),
        region._replace(is_possible=is_possible, normals=normals, offsets=offsets, point=inside),
    )


def _first_from(cuts, t) -> Iterator[tuple[float, _Item]]:
    if t < len(cuts.offsets):
        yield cuts.offsets[t], _Part(cuts, t)


def _cut(region, winner, reach) -> _Cuts:
    """The cuts of the rivals of all winners that reach the ball around the origin."""
    winners = np.arange(len(winner)), winner
    slopes = region.weight - region.weight[winners][:, None]
    gaps = region.bias - region.bias[winners][:, None]
    norms = np.linalg.norm(slopes, axis=2)
    is_rival = region.is_possible & (norms > _SAME_SLOPE * np.linalg.norm(region.weight, axis=2).max(1, keepdims=True))
    offsets = -gaps[is_rival] / norms[is_rival]
    order = np.argsort(offsets)[: np.sum(offsets <= reach)]
    normals = slopes[is_rival] / norms[is_rival][:, None]
    return _Cuts(region, winner, np.argwhere(is_rival)[order], normals[order], offsets[order])


def _typical_distance(layer) -> float:
    """The median distance at which an option is zero."""
    norms = np.linalg.norm(layer.weight, axis=2)
    is_seen = (norms > 0) & (layer.bias != 0)
    return float(np.median(np.abs(layer.bias[is_seen]) / norms[is_seen])) if is_seen.any() else 0.0


def _enter(layers, depth, weight, bias, normals, offsets, point) -> _Region:
    """A region at the start of a layer whose inputs are weight z + bias there."""
    layer = layers[depth]
    weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    if depth < len(layers) - 1:  # the options of ReLU
        weight, bias = np.pad(weight, ((0, 0), (0, 1), (0, 0))), np.pad(bias, ((0, 0), (0, 1)))
    return _Region(depth, weight, bias, np.ones(bias.shape, bool), normals, offsets, point)
