"""The linear regions of a piecewise-linear network in a subspace, from the sample outwards."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hmt_jax._piecewise import Layer
from hmt_jax.exact._least_norm import least_norm_point
from hmt_jax.exact._search import SAME_SLOPE, Answer


class Region(NamedTuple):
    """A polytope normals z >= offsets in which the layers before `depth` are affine, and a point of it near the origin.

    Attributes:
      weight: (units, options, d) slopes in z of the options of layer `depth`: the members of a pool, and ReLU's zero.
        The last layer has one unit, whose options are the logits.
      bias: (units, options) their values at z = 0.
      is_possible: (units, options), False for options that are below another one everywhere in the polytope.
      normals: (F, d) unit vectors.
      offsets: (F,) offsets of the faces.
      point: (d,) a point inside, next to the nearest one.
    """

    depth: int
    weight: np.ndarray
    bias: np.ndarray
    is_possible: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray
    point: np.ndarray


class Cuts(NamedTuple):
    """The half-spaces in which a rival is above the winner of its unit, from near to far."""

    region: Region
    winner: np.ndarray  # (units,)
    rivals: np.ndarray  # (T, 2), unit and option
    normals: np.ndarray  # (T, d)
    offsets: np.ndarray  # (T,)


class Part(NamedTuple):
    """An unvisited part of a region: inside cut number t and outside those before it; later cuts come after it."""

    cuts: Cuts
    t: int


def whole(layers: Sequence[Layer]) -> Region:
    """The whole subspace as one region."""
    dimension = layers[0].weight.shape[-1]
    origin = np.zeros(dimension)
    return _enter(layers, 0, np.eye(dimension), origin, np.zeros((0, dimension)), np.zeros(0), origin)


def divide(
    layers: Sequence[Layer], label: int, thinnest: float, part: Region | Part
) -> Iterator[tuple[float, Region | Part | Answer]]:
    """A part without the linear region at its nearest point, and the answers in that region; with their distances.

    Regions thinner than `thinnest` are left out.
    """
    if isinstance(part, Region):
        yield from _around(layers, label, part)
    else:
        yield from _within(layers, thinnest, part)


def _around(layers, label, region) -> Iterator[tuple[float, Part]]:
    """The parts outside the linear region at a region's point, and those with other labels in it; with distances."""
    while region.depth < len(layers) - 1:
        values = np.where(region.is_possible, region.weight @ region.point + region.bias, -np.inf)
        cuts = _cut(region, values.argmax(1))
        yield from _from(cuts, 0)
        winners = np.arange(len(cuts.winner)), cuts.winner
        faces = np.concatenate([region.normals, -cuts.normals]), np.concatenate([region.offsets, -cuts.offsets])
        region = _enter(layers, region.depth + 1, region.weight[winners], region.bias[winners], *faces, region.point)
    yield from _from(_cut(region, np.array([label])), 0)


def _within(layers, thinnest, part) -> Iterator[tuple[float, Region | Part | Answer]]:
    """A part as a region or an answer with its distance, if it is not empty, and the part behind it."""
    (region, winner, rivals, normals, offsets), t = part
    yield from _from(part.cuts, t + 1)
    normals = np.concatenate([region.normals, -normals[:t], normals[t : t + 1]])
    offsets = np.concatenate([region.offsets, -offsets[:t], offsets[t : t + 1]])
    inside = _least_norm_inside(normals, offsets, thinnest)
    point = None if inside is None else least_norm_point(normals, offsets)
    if inside is None or point is None:
        return
    unit, rival = rivals[t]
    distance = float(np.linalg.norm(point))
    if region.depth == len(layers) - 1:
        yield distance, Answer(rival, point)
        return
    is_possible = region.is_possible.copy()
    is_possible[rivals[:t, 0], rivals[:t, 1]] = False
    is_possible[unit, winner[unit]] = False
    yield distance, region._replace(is_possible=is_possible, normals=normals, offsets=offsets, point=inside)


def _least_norm_inside(normals, offsets, thinnest):
    """The point of least norm that is at least `thinnest` inside all faces, or None if there is none."""
    is_opposite = normals @ normals[-1] < SAME_SLOPE - 1  # if such a face is too near, there is no point
    if np.any(offsets[is_opposite] + offsets[-1] > -2 * thinnest):
        return None
    return least_norm_point(normals, offsets + thinnest)


def _from(cuts, t) -> Iterator[tuple[float, Part]]:
    if t < len(cuts.offsets):
        yield cuts.offsets[t], Part(cuts, t)


def _cut(region, winner) -> Cuts:
    """The cuts of the possible rivals of all winners."""
    winners = np.arange(len(winner)), winner
    slopes = region.weight - region.weight[winners][:, None]
    gaps = region.bias[winners][:, None] - region.bias
    norms = np.linalg.norm(slopes, axis=2)
    is_rival = region.is_possible & (norms > SAME_SLOPE * np.linalg.norm(region.weight, axis=2).max())
    is_rival &= region.bias > -np.inf  # a class that is ruled out is never above another
    offsets = gaps[is_rival] / norms[is_rival]
    order = np.argsort(offsets)
    normals = slopes[is_rival] / norms[is_rival][:, None]
    return Cuts(region, winner, np.argwhere(is_rival)[order], normals[order], offsets[order])


def _enter(layers, depth, weight, bias, normals, offsets, point) -> Region:
    """A region at the start of a layer whose inputs are weight z + bias there."""
    layer = layers[depth]
    weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    if depth < len(layers) - 1:  # the options of ReLU
        weight, bias = np.pad(weight, ((0, 0), (0, 1), (0, 0))), np.pad(bias, ((0, 0), (0, 1)))
    return Region(depth, weight, bias, np.ones(bias.shape, bool), normals, offsets, point)
