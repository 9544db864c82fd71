"""How many pairs and images are worked on at a time: what suits the device, within its memory."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import NUM_PIXELS, SHAPE, diagonal
from helpers import random_images, random_network, solve_all, tanh_classifier

import hmt_jax
from hmt_jax import lanes, solvers, subspaces
from hmt_jax.classifiers import as_pytree
from hmt_jax.margins import _sizes

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."


class InTwoLoops(solvers.DDN):
    """Takes two gradients at a time in each of three at a time, compiled and in a loop."""

    def step(self, restriction, search):
        points = jnp.zeros((5, 3, 2, search.z.size))
        jax.lax.map(jax.jit(jax.vmap(jax.vmap(lambda z: jax.vjp(restriction, z)[1](search.unmoved)))), points)
        return super().step(restriction, search)


def choose(
    classifier, windows, num_images, image_shape=SHAPE, *, num_lanes=None, devices=None, dtype="float32", solver=None
):
    return _sizes.choose(
        solver or solvers.DeepFool(),
        classifier,
        [(len(windows), windows[0])],
        image_shape,
        np.dtype(dtype),
        num_images,
        num_lanes=num_lanes,
        devices=devices or jax.devices()[:1],
    )


def linear_head(image_shape, num_classes):
    weights = np.zeros((math.prod(image_shape), num_classes), "float32")
    return jax.tree_util.Partial(lambda weights, images: images.reshape(len(images), -1) @ weights, weights)


def test_what_is_made_of_parameters_is_kept_once_for_all_lanes():
    # The backward pass keeps the tiles, 120 kB, and nothing of an image: with tiles for each, 8 lanes are a mebibyte.
    weights = np.random.default_rng(0).normal(size=(10, 1_000)).astype("float32")

    def logits(weights, images):
        features = images.reshape(len(images), -1) @ jnp.tile(weights, (1, 3))
        return features.reshape(len(images), 5, -1).sum(-1)

    images = random_images(400, 2, 5, 1, dtype="float32")
    result = hmt_jax.measure_margins(
        jax.tree_util.Partial(logits, weights),
        images,
        subspaces.dct_window((2, 5, 1), 0, 0, 2),
        solvers.DeepFool(max_steps=1),
        devices=jax.devices()[:1],
    )
    assert result.work.num_lanes == 20  # a twentieth of the pairs, the most that there are of them


def test_a_chunk_leaves_most_of_an_accelerators_memory_free():
    num_bytes = 60_000
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": num_bytes})
    window, classifier = subspaces.dct_window(SHAPE, 0, 0, 2), tanh_classifier(dtype="float32")
    for num_lanes in (1, 100):  # with the latter, all the images would be too few pairs
        for num_images in (1000, None):
            sizes = choose(classifier, [window], num_images, num_lanes=num_lanes, devices=[device] * 8)
            # Gradients of five classes but one at each image; and the same in the window's coordinates, and the point.
            assert 1 <= sizes.chunk <= num_bytes / 6 / (4 * 4 * (NUM_PIXELS + 8))


@pytest.mark.parametrize("num_images", [50, 500, 50_000, None])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_memory_on_cpu_stays_within_a_budget(num_images, num_devices):
    image_shape, num_classes, devices = (224, 224, 3), 10, jax.devices()[:num_devices]
    windows = subspaces.dct_diagonal(image_shape, size=8, step=24)
    classifier = linear_head(image_shape, num_classes)
    sizes = choose(classifier, windows, num_images, image_shape, devices=devices)
    # Gradients of nine classes: of each image of a chunk on the host, as an argument, as a result and as the next one;
    # of each lane before and after a step, where it starts, and in the backward pass.
    gradients = 4 * (num_classes - 1) * math.prod(image_shape)
    assert num_devices * 4 * gradients * (sizes.chunk + sizes.num_lanes) <= 2**31
    assert 1 <= sizes.num_lanes <= (num_images or np.inf)
    assert num_devices * 4 * gradients * (2 * sizes.chunk + 2 * sizes.num_lanes) > 2**30  # and makes use of it
    # 8-bit images are floats when they are worked on, and those of float64 are not without the option.
    for dtype in ("uint8", "float64"):
        assert choose(classifier, windows, num_images, image_shape, devices=devices, dtype=dtype) == sizes


def test_one_image_and_one_lane_are_taken_whatever_they_need():
    image_shape = (3000, 3000, 3)
    windows = subspaces.dct_diagonal(image_shape, size=2, step=2998)
    sizes = choose(linear_head(image_shape, 10), windows, 100, image_shape)
    assert (sizes.num_lanes, sizes.chunk) == (1, 1)
    assert sizes.num_lanes_at_end in (1, 2)


def test_the_budget_takes_nothing_from_small_networks():
    image_shape = (28, 28, 1)
    lenet = as_pytree(random_network("lenet", image_shape, mean=[0.5], std=[0.5], num_classes=10))
    windows = subspaces.dct_diagonal(image_shape, size=8, step=1)
    needs = _sizes._needs_of(solvers.DeepFool(), lenet, windows[:1], image_shape, np.dtype("float32"))
    limits = _sizes._limits(jax.devices()[:1])
    sizes = choose(lenet, windows, 10_000, image_shape)
    # Lanes rounded down by a quarter at the most; six mebibytes of linearizations and states, or 20 pairs a lane.
    assert sizes.num_lanes * needs.at_work <= limits.bytes_of_lanes < sizes.num_lanes * needs.at_work / 0.75
    enough = max(6 * 2**20 // (needs.linearization + 21 * needs.state), -(-20 * sizes.num_lanes // 21))
    assert sizes.chunk == -(-10_000 // -(-10_000 // enough))
    assert sizes.num_lanes_at_end == 2 * sizes.num_lanes
    # The end of a stream is not known: its chunks are as large as is enough.
    assert choose(lenet, windows, None, image_shape) == sizes._replace(chunk=enough)


def test_a_small_limit_of_memory_is_kept(monkeypatch):
    """As of a container: a quarter of it is for the pairs and the images, and half of that for either."""
    image_shape = (224, 224, 3)
    windows = subspaces.dct_diagonal(image_shape, size=16, step=16)
    needs = _sizes._needs_of(
        solvers.DeepFool(), linear_head(image_shape, 10), windows[:1], image_shape, np.dtype("float32")
    )
    before = choose(linear_head(image_shape, 10), windows, 10_000, image_shape)
    monkeypatch.setattr("hmt_jax._memory.limit", lambda: 2.0**29)
    after = choose(linear_head(image_shape, 10), windows, 10_000, image_shape)
    assert after.num_lanes * needs.of_lane <= 2**26 < before.num_lanes * needs.of_lane
    assert after.chunk * (needs.image + 4 * (needs.linearization + len(windows) * needs.state)) <= 2**26
    assert after.num_lanes >= 1


@pytest.mark.parametrize(
    ("solver", "num_gradients"),
    [
        (solvers.DeepFool(), 4),  # of five classes but one
        (solvers.DeepFool(num_candidates=3), 2),
        (solvers.SuperDeepFool(), 4),
        (solvers.tight("quick"), 1),
        (solvers.tight("normal"), 1),
        (solvers.DDN(), 1),
        (solvers.ClosestPoint(), 1),
        (InTwoLoops(), 6),
    ],
)
def test_gradients_that_a_step_takes_at_a_time_are_counted(solver, num_gradients):
    needs = _sizes._needs_of(solver, tanh_classifier(), diagonal()[:1], SHAPE, np.dtype("float32"))
    assert needs.num_gradients == num_gradients


def test_a_solver_of_one_gradient_has_more_lanes_than_one_of_nine():
    image_shape = (28, 28, 1)
    lenet = as_pytree(random_network("lenet", image_shape, mean=[0.5], std=[0.5], num_classes=10))
    windows = subspaces.dct_diagonal(image_shape, size=8, step=1)
    of_nine, of_one = (
        choose(lenet, windows, 10_000, image_shape, solver=solver) for solver in (solvers.DeepFool(), solvers.DDN())
    )
    assert of_one.num_lanes == pytest.approx(3 * of_nine.num_lanes, rel=1 / 3)  # both are rounded


@pytest.mark.slow
@pytest.mark.parametrize(("is_at_the_end", "num_lanes"), [(False, 4), (True, 9)])
def test_memory_that_ran_out_is_not_asked_for_again(is_at_the_end, num_lanes, monkeypatch):
    """Neither in later chunks nor, if it ran out before, in the last look, the only pass that makes a `Solution`."""
    monkeypatch.setattr(_sizes, "_ON_CPU", _sizes._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    evaluate, num_failures = lanes._evaluate, 0

    def failing_evaluate(function, mesh, data, items):
        nonlocal num_failures
        if len(items) > 4 and (not is_at_the_end or isinstance(jax.eval_shape(function, data, 0), hmt_jax.Solution)):
            num_failures += 1
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
        return evaluate(function, mesh, data, items)

    failing_evaluate.lower = evaluate.lower
    monkeypatch.setattr(lanes, "_evaluate", failing_evaluate)
    images = random_images(7, *SHAPE, seed=7, dtype="float32")
    with pytest.warns(UserWarning, match=r"^out of memory: going on with 4 lanes on each device$") as warned:
        result = hmt_jax.measure_margins(
            tanh_classifier(), images, diagonal(), solvers.DeepFool(), batch_size=9, devices=jax.devices()[:1]
        )
    assert len(warned) == num_failures == 1  # in the first of three chunks
    assert warned[0].filename == __file__
    assert result.work.num_lanes == num_lanes
    for r, window in enumerate(diagonal()):
        alone = solve_all(tanh_classifier(), images, window)
        np.testing.assert_allclose(result.margin[r], alone.margin, rtol=1e-4)
        np.testing.assert_allclose(result.gap[r], alone.gap, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(result.status[r], alone.status)
