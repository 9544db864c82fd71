"""Exact margins of piecewise-linear networks on a line: both rays from the sample, from breakpoint to breakpoint."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hmt_jax._piecewise import Layer
from hmt_jax.exact._search import SAME_SLOPE, Answer


class Ray(NamedTuple):
    """The rest of a ray, from its start on."""

    sign: float  # of its coordinate
    start: float  # a distance from the sample


def both() -> list[Ray]:
    """The two rays from the sample."""
    return [Ray(1.0, 0.0), Ray(-1.0, 0.0)]


def walk(layers: Sequence[Layer], label: int, thinnest: float, ray: Ray) -> Iterator[tuple[float, Ray | Answer]]:
    """The crossing in the piece at a ray's start, else the ray behind that piece, if either exists; with its distance.

    Pieces shorter than `thinnest` are passed over: on flat images many units switch at once.
    """
    *hidden, last = layers
    here = ray.start + thinnest
    units = np.array([[ray.sign, ray.sign * here]])
    to_end = np.inf
    for layer in hidden:
        options = np.pad(_options(layer, units), ((0, 0), (0, 1), (0, 0)))  # the last one is ReLU's zero
        units = options[np.arange(len(options)), options[..., 1].argmax(1)]
        to_end = min(to_end, _until_above(options, units[:, None]).min())
    logits = _options(last, units)[0]
    to_others = _until_above(np.delete(logits, label, axis=0), logits[label])
    to_crossing, end = to_others.min(initial=np.inf), here + to_end
    if to_crossing <= to_end and to_crossing < np.inf:
        distance = max(here + to_crossing, ray.start)
        rival = int(to_others.argmin())
        yield distance, Answer(rival + (rival >= label), np.array([ray.sign * distance]))
    elif end < np.inf:
        yield end, Ray(ray.sign, end)


def _options(layer, units):
    """Options' slopes along the ray and values here (units, options, 2), from those of the units before (inputs, 2)."""
    options = layer.weight @ units
    options[..., 1] += layer.bias
    return options


def _until_above(others, winner):
    """Distances from here at which others rise above the winner; 0 or less for those that are above it already."""
    gains, leads = others[..., 0] - winner[..., 0], winner[..., 1] - others[..., 1]
    is_faster = gains > SAME_SLOPE * np.abs(others[..., 0]).max(initial=0)
    return np.where(is_faster, leads / np.where(is_faster, gains, 1), np.where(leads < 0, 0, np.inf))
