"""The numbers of pairs and images at a time, chosen by the memory and the kind of the device."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from hmt_jax import _memory, _programs
from hmt_jax._checks import ImageShape
from hmt_jax._misc import promoted
from hmt_jax.classifiers import Classifier, differentiated, traced_logits_of
from hmt_jax.margins import _states
from hmt_jax.solvers import Linearization, Solver

# On a ResNet-18, a step of one gradient is a sixth faster with 16 lanes than with 8, and one of nine is not.
_LEAST_LANES, _LEAST_GRADIENTS, _MOST_LANES = 8, 16, 1024
# Copies of a pair's result: in a table on the device, in the next table, which a step makes from it, in the arguments
# of the next phase, and on the host. Copies of a lane's state: before a step, after it, at the start, and in the
# linearisation.
_NUM_COPIES = 4
# Numbers of lanes are these parts of powers of two. On a LeNet, 160 lanes are faster than 128 by a fifth.
_PARTS = (1, 1.25, 1.5)
# Images in the batch whose arrays are counted, and sines in the stand-in for a network whose gradients are counted.
# A prime, so that this axis is recognised in their shapes.
_NUM_TRIED = 131


class Sizes(NamedTuple):
    """Numbers of pairs at a time on each device, in searches and in the passes at the end, and of images in a chunk."""

    num_lanes: int
    num_lanes_at_end: int
    chunk: int


class _Limits(NamedTuple):
    """The settings for a kind of device.

    Attributes:
      budget: bytes on each device for everything except the classifier and the results: half for the lanes, half for a
        chunk of images. One lane and one image always run, even if they need more.
      bytes_of_lanes: bytes that all lanes together should keep for the backward pass, if a step takes one gradient.
      bytes_of_chunk: bytes that the linearisations and first steps of a chunk should take. The chunk is larger if it
        would have too few pairs for the lanes.
      pairs_per_lane: pairs for each lane. Towards the end lanes idle one by one; with so many pairs, that costs little.
      more_at_end: factor on the number of lanes in bisections and when end points are evaluated.
    """

    budget: float
    bytes_of_lanes: float
    bytes_of_chunk: float
    pairs_per_lane: int
    more_at_end: int


# With more bytes, lanes would not fit the caches. At the end, a pair needs one gradient, not one for each candidate.
_ON_CPU = _Limits(2**31, 1.6 * 2**20, 6 * 2**20, pairs_per_lane=20, more_at_end=2)
# The rest is for Python, JAX, compiled programs, the classifier, and other processes.
_PART_OF_MEMORY = 0.25


class _Needs(NamedTuple):
    """The memory that the parts of the work need, in bytes.

    Attributes:
      image: one image.
      linearization: the linearisation of the logits at an image.
      state: the state of the solver for one pair.
      kept: what the forward pass of one image keeps for the backward pass.
      num_candidates: not bytes, but the number of backward passes in a lane at a time, where images are linearised.
      num_gradients: not bytes, but the most gradients that a step of the solver takes at a time.
    """

    image: int
    linearization: int
    state: int
    kept: int
    num_candidates: int
    num_gradients: int

    @property
    def at_work(self) -> float:
        """Bytes of one lane that should stay in the caches during a step.

        Measured on a LeNet, 9 gradients run best with a third of the lanes that 1 gradient runs best with.
        """
        return self.kept * (3 + self.num_gradients) / 4

    @property
    def of_lane(self) -> int:
        """Bytes of one lane with gradients of all candidates. A backward pass needs about as many bytes as `kept`."""
        passes = (1 + self.num_candidates) * self.kept + 2 * self.linearization
        return passes + self.image + _NUM_COPIES * max(self.linearization, self.state)


def choose(
    solver: Solver,
    classifier: Classifier,
    subspaces: Sequence[Any],
    image_shape: ImageShape,
    dtype: Any,
    num_images: int | None,
    *,
    num_lanes: int | None,
    devices: Sequence[jax.Device],
) -> Sizes:
    """The sizes for `num_images` images, or for a stream if None.

    `subspaces` has a pair for each kind of subspace: the number of subspaces and one of them. The number of lanes suits
    the device, the network and the solver; it is smaller if there are few pairs or little memory. A chunk holds enough
    images to keep all lanes busy, and no more than the memory allows.
    """
    limits = _limits(devices)
    kinds = [subspace for _, subspace in subspaces]
    needs = _needs_of(solver, classifier, kinds, image_shape, dtype)
    num_subspaces = sum(number for number, _ in subspaces)
    if num_lanes is None:
        lanes_within = max(int(limits.bytes_of_lanes // max(needs.at_work, 1)), 1)
        power = 1 << lanes_within.bit_length() - 1
        num_lanes = max(int(part * power) for part in _PARTS if part * power <= lanes_within)
        least = max(_LEAST_LANES, _LEAST_GRADIENTS // needs.num_gradients)
        num_lanes = min(max(num_lanes, least), _MOST_LANES)
        if num_images is not None:
            num_pairs = num_subspaces * num_images
            num_lanes = min(
                num_lanes, max(num_pairs // (limits.pairs_per_lane * len(devices)), _LEAST_LANES), num_pairs
            )
        num_lanes = max(min(num_lanes, int(limits.budget / 2 // needs.of_lane)), 1)
    enough = -(-limits.pairs_per_lane * num_lanes * len(devices) // num_subspaces)
    num_bytes = needs.linearization + num_subspaces * needs.state
    most = limits.budget / 2 / (needs.image + _NUM_COPIES * num_bytes)
    chunk = int(max(min(max(limits.bytes_of_chunk / num_bytes, enough), most), 1))
    if num_images is not None:
        num_chunks = -(-num_images // chunk)
        chunk = -(-num_images // num_chunks)
    num_lanes = min(num_lanes, chunk * num_subspaces)
    return Sizes(num_lanes, min(limits.more_at_end * num_lanes, chunk * num_subspaces), chunk)


def _needs_of(solver, classifier, kinds, image_shape, dtype) -> _Needs:
    dtype = np.dtype(np.float32) if dtype == np.uint8 else jax.dtypes.canonicalize_dtype(dtype)
    tried = jax.ShapeDtypeStruct((_NUM_TRIED, *image_shape), dtype)
    kept, logits = _kept.eval_shape(classifier, tried)
    size = math.prod(image_shape)
    num_candidates = min(solver.num_candidates, logits.shape[1])
    item = promoted(dtype, logits.dtype).itemsize
    started = [_started_in(solver, kind, image_shape, dtype, logits, num_candidates) for kind in kinds]
    return _Needs(
        image=size * dtype.itemsize,
        linearization=item * (logits.shape[1] + num_candidates + (num_candidates - 1) * size),
        state=max(_num_bytes(each.out_info) for each in started),
        kept=_num_bytes_of_one(kept),
        num_candidates=num_candidates,
        num_gradients=max(_num_at_a_time(each.jaxpr) for each in started),
    )


def _started_in(solver, subspace, image_shape, dtype, logits, num_candidates) -> jax.stages.Traced:
    """The trace of `_started` in a subspace."""
    num_classes = logits.shape[1]
    coordinates = _coordinates.eval_shape(subspace, jax.ShapeDtypeStruct(image_shape, dtype))
    shapes: list[Any] = [
        jax.ShapeDtypeStruct((num_classes,), logits.dtype),
        jax.ShapeDtypeStruct((num_candidates,), jnp.int32),
        jax.ShapeDtypeStruct((num_candidates - 1, *coordinates.shape), promoted(dtype, logits.dtype)),
    ]
    return _started.trace(solver, Linearization(*shapes))


# Compiled for their traces alone, which are kept.
@jax.jit
def _coordinates(subspace, image):
    return subspace.coordinates(image)


@functools.partial(jax.jit, static_argnums=0)
def _started(solver, at_sample):
    """A solver's state after its start, and a step. The network is not traced: sines of the coordinates stand in."""

    def restriction(z):
        return at_sample.logits + jnp.sin(jnp.broadcast_to(z[:1], _NUM_TRIED)).sum().astype(at_sample.logits.dtype)

    state = solver.start(restriction, at_sample)
    solver.step(restriction, state)
    return _states.with_numbers(state)


def _num_at_a_time(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """The most evaluations or gradients that `_started` takes at a time: copies of the sines in one array."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    numbers = [1]
    for equation in jaxpr.eqns:
        shapes = [getattr(out.aval, "shape", ()) for out in equation.outvars]
        numbers += [math.prod(shape) // _NUM_TRIED for shape in shapes if _NUM_TRIED in shape]
        inner = jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, Jaxpr | ClosedJaxpr))
        numbers += [_num_at_a_time(each) for each in inner if isinstance(each, Jaxpr | ClosedJaxpr)]
    return max(numbers)


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _num_bytes_of_one(tree) -> int:
    """Bytes for each image of the batch. Arrays without an axis of images are parameters, and do not count."""
    of_images = [leaf for leaf in jax.tree.leaves(tree) if any(length % _NUM_TRIED == 0 for length in leaf.shape)]
    return _num_bytes(of_images) // _NUM_TRIED


def _limits(devices) -> _Limits:
    if devices[0].platform == "cpu":  # all CPU devices share one memory
        budget = min(_ON_CPU.budget, _PART_OF_MEMORY * _memory.limit())
        return _ON_CPU._replace(budget=budget / len(devices))
    memory = (devices[0].memory_stats() or {"bytes_limit": 8 * 2**30})["bytes_limit"]
    # Nine gradients and what they start from, each with about as much in flight, take half of the memory. More pairs
    # for each lane, because there may be hundreds of lanes, and half of the pairs may end with their first step. No
    # more lanes at the end, because XLA tunes convolutions anew for every shape.
    return _Limits(memory, memory / 8, memory / 24, pairs_per_lane=50, more_at_end=1)


@_programs.jit
def _kept(classifier, images):
    """Arrays that the backward pass keeps, and the logits. No closure, so networks of one architecture share it."""
    with differentiated(classifier, images):
        logits, pull_back = jax.vjp(jax.vmap(lambda image: traced_logits_of(classifier, image[None])[0]), images)
    return pull_back, logits
