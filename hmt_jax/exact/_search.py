"""The search for the nearest point with another label: nearest parts are divided first, so the first point is it."""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

# Affine functions count as one if float64 can't distinguish their slopes, relative to the layer's greatest one.
SAME_SLOPE = 1e-12


class Answer(NamedTuple):
    """A point of the boundary, the nearest one in its part of the subspace."""

    adversarial_label: int
    point: np.ndarray  # (d,)


class Found(NamedTuple):
    """The nearest answer, or None if there is none within the distance."""

    distance: float
    answer: Answer | None
    num_steps: int


def nearest(
    parts: Iterable[Any],
    divide: Callable[[Any], Iterable[tuple[float, Any]]],
    *,
    reach: float,
    max_steps: int,
) -> Found:
    """The nearest answer, by branch and bound, best first.

    Args:
      parts: parts that make up the subspace.
      divide: returns a part's answers and smaller parts, each with a lower bound of its distance from the origin; for
        answers, this is the distance.
      reach: parts and answers farther away are left out.
      max_steps: number of divided parts after which the search ends.
    """
    numbers = itertools.count()  # equally distant parts are divided in turn
    queue = [(0.0, next(numbers), part) for part in parts]
    num_steps = 0
    while queue:
        distance, _, part = heapq.heappop(queue)
        if isinstance(part, Answer):
            return Found(distance, part, num_steps)
        if num_steps == max_steps:
            return Found(distance, None, num_steps)
        num_steps += 1
        for least_distance, smaller in divide(part):
            if least_distance <= reach:
                heapq.heappush(queue, (max(distance, least_distance), next(numbers), smaller))
    return Found(reach, None, num_steps)
