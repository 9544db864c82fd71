"""Margins of many samples in many subspaces: the authors' results, shapes, invariances, compilations and bad input."""

import dataclasses
import functools
import math
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import hmt_jax
from hmt_jax import Status, _checks, _pairs, exact, frequency, lanes, models, solvers, subspaces
from hmt_jax.classifiers import as_pytree

SHAPE = (4, 5, 2)
NUM_PIXELS = 40
NUM_IMAGES = 7

# Batches of other sizes round otherwise, and every step of DeepFool amplifies that a little.
FLOAT64 = {"rtol": 1e-10, "atol": 0}


def tanh_logits(parameters, images):
    first, first_bias, second, second_bias = parameters
    hidden = jnp.tanh(images.reshape(len(images), -1) @ first.T + first_bias[None])
    return hidden @ second.T + second_bias[None]


def tanh_parameters(seed=0, num_classes=5, num_hidden=8):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(num_hidden, NUM_PIXELS)) / 2,
        rng.normal(size=num_hidden),
        rng.normal(size=(num_classes, num_hidden)),
        rng.normal(size=num_classes),
    )


def tanh_classifier(seed=0, dtype="float64"):
    parameters = tuple(jnp.asarray(parameter, dtype) for parameter in tanh_parameters(seed))
    return jax.tree_util.Partial(tanh_logits, parameters)


def random_images(seed=0, num_images=NUM_IMAGES, dtype="float64"):
    return np.random.default_rng(seed).uniform(size=(num_images, *SHAPE)).astype(dtype)


def diagonal():
    return subspaces.dct_diagonal(SHAPE, size=2, step=1)


@pytest.fixture(scope="module")
def measured():
    """Seven images in three windows, in float64 on all devices, with the perturbations."""
    with jax.enable_x64(True):
        return hmt_jax.measure_margins(tanh_classifier(), random_images(), diagonal(), keep_coordinates=True)


def test_what_is_made_of_parameters_is_kept_once_for_all_lanes():
    # The backward pass keeps the tiles, 3.6 MB, and nothing of an image: a lane for each tiling would leave the caches.
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(10, 30_000)), "float32")

    def logits(weights, images):
        features = images.reshape(len(images), -1) @ jnp.tile(weights, (1, 3))
        return features.reshape(len(images), 5, -1).sum(-1)

    images = np.random.default_rng(1).uniform(size=(400, 2, 5, 1)).astype("float32")
    classifier = jax.tree_util.Partial(logits, weights)
    window = subspaces.dct_window((2, 5, 1), 0, 0, 2)
    result = hmt_jax.measure_margins(classifier, images, window, max_steps=1, devices=jax.devices()[:1])
    assert result.work.num_lanes == 20  # a twentieth of the pairs, the most that there are of them


def test_a_chunk_leaves_most_of_an_accelerators_memory_free():
    num_bytes = 60_000
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": num_bytes})
    window, images = subspaces.dct_diagonal(SHAPE, size=2, step=8), np.zeros((1000, *SHAPE), "float32")
    for num_lanes in (1, 100):  # with the latter, all the images would be too few pairs
        needs = _pairs._needs_of(solvers.deepfool(), tanh_classifier(dtype="float32"), images, window)
        size = _pairs._choose_chunk_size(needs, len(images), 1, num_lanes, [device] * 8)
        # Gradients of five classes at each image, less one; and the same in the window's coordinates, and the point.
        assert 1 <= size <= num_bytes / 6 / (4 * 4 * (NUM_PIXELS + 8))


def test_the_longest_first_steps_go_on_first(monkeypatch):
    queues, solve = [], lanes.solve

    def recorded(method, data, items, **settings):
        if isinstance(method, _pairs._GoOn):
            states, queue = data[-1], [item for item in items if item >= 0]
            queues.append(np.asarray(_pairs._results(method.solver, states)[1].margin)[queue])
        return solve(method, data, items, **settings)

    monkeypatch.setattr(lanes, "solve", recorded)
    hmt_jax.measure_margins(tanh_classifier(dtype="float32"), random_images(dtype="float32"), diagonal())
    (margins,) = queues
    assert len(set(margins)) > 3
    assert (np.diff(margins) <= 0).all()


def assert_same(result, expected, columns=slice(None)):
    """The results at the columns of `expected` are those of `result`."""
    for name in ("label", "adversarial_label", "num_steps", "status"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[:, columns], err_msg=name)
    np.testing.assert_allclose(result.margin, expected.margin[:, columns], **FLOAT64)


def test_chunks_of_images_are_joined_where_they_overlap(measured, x64, monkeypatch):
    monkeypatch.setattr(_pairs, "_ON_CPU", _pairs._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    calls = []
    result = hmt_jax.measure_margins(
        tanh_classifier(),
        random_images(),
        diagonal(),
        keep_coordinates=True,
        num_lanes=9,
        devices=jax.devices()[:1],
        progress=lambda *numbers: calls.append(numbers),
    )
    # Nine lanes and three windows take three images at a time: 0 to 2, 3 to 5 and, of seven, 4 to 6.
    assert_same(result, measured)
    for name in ("gap", "alignment", "coordinates"):
        np.testing.assert_allclose(getattr(result, name), getattr(measured, name), rtol=1e-9, atol=1e-12)
    assert result.work.num_busy_lane_steps == measured.num_steps.sum() + measured.num_steps[:, 4:6].sum()
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1] == (measured.margin.size, measured.margin.size)


def test_memory_that_ran_out_at_the_end_of_a_chunk_is_not_asked_for_again(measured, x64, monkeypatch):
    monkeypatch.setattr(_pairs, "_ON_CPU", _pairs._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    init = lanes._init

    def failing_init(method, mesh, num_lanes, data, queue):
        if isinstance(getattr(method, "function", None), _pairs._LookAtEnd) and num_lanes > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return init(method, mesh, num_lanes, data, queue)

    monkeypatch.setattr(lanes, "_init", failing_init)
    with pytest.warns(UserWarning, match="^out of memory: going on with 4 lanes on each device$") as warned:
        result = hmt_jax.measure_margins(
            tanh_classifier(), random_images(), diagonal(), num_lanes=9, devices=jax.devices()[:1]
        )
    assert len(warned) == 1  # in the first of three chunks
    assert_same(result, measured)
    np.testing.assert_allclose(result.gap, measured.gap, rtol=1e-9, atol=1e-12)


def test_gap_and_alignment_are_those_of_finite_differences(measured, x64):
    parameters, windows = tanh_parameters(), diagonal()
    for r, window in enumerate(windows):
        basis = np.asarray(jax.vmap(window.embed)(jnp.eye(window.dimension))).reshape(window.dimension, -1)
        for n, image in enumerate(random_images()):
            z, label = measured.coordinates[r, n], measured.label[r, n]

            def gap(z, image=image, basis=basis, label=label):
                logits = np.asarray(tanh_logits(parameters, (image.ravel() + z @ basis)[None])[0], np.float64)
                return np.delete(logits, label).max() - logits[label]

            steps = 1e-5 * np.eye(len(z))
            normal = np.array([(gap(z + step) - gap(z - step)) / 2e-5 for step in steps])
            cosine = z @ normal / np.linalg.norm(z) / np.linalg.norm(normal)
            np.testing.assert_allclose(measured.gap[r, n], gap(z), rtol=1e-9)
            np.testing.assert_allclose(measured.alignment[r, n], cosine, rtol=1e-6)
    assert (measured.gap > 0).all()
    assert (measured.alignment < 1 - 1e-6).any()


# The authors' results: what counts is that no step takes another turn.
PARITY = {"rtol": 1e-9, "atol": 0}


@pytest.fixture(scope="module")
def lenet(reference):
    """The LeNet of the reference results with float64 statistics."""
    weights = {name.removeprefix("weights/"): reference[name] for name in reference if name.startswith("weights/")}
    with jax.enable_x64(True):
        return models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))


def mnist_diagonal(step=1):
    windows = subspaces.dct_diagonal((28, 28, 1), size=8, step=1)
    return subspaces.stack(windows[index] for index in range(0, 21, step))


def check_parity(result, reference, group):
    np.testing.assert_array_equal(result.num_steps, reference[f"{group}/steps"])
    np.testing.assert_array_equal(result.label, reference[f"{group}/label"])
    np.testing.assert_array_equal(result.adversarial_label, reference[f"{group}/label_adv"])
    np.testing.assert_allclose(result.margin, reference[f"{group}/margin"], **PARITY)
    is_converged = reference[f"{group}/label_adv"] != reference[f"{group}/label"]
    np.testing.assert_array_equal(result.status, np.where(is_converged, Status.CONVERGED, Status.OUT_OF_STEPS))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_diagonal_agrees_with_the_authors_code(lenet, reference, x64):
    images = reference["images"][..., None] / 255
    windows = mnist_diagonal()
    result = hmt_jax.measure_margins(lenet, images, windows, keep_coordinates=True, devices=jax.devices()[:1])
    check_parity(result, reference, "diagonal_8x8_step1")
    embed = jax.vmap(lambda window, coordinates: jax.vmap(window.embed)(coordinates))
    perturbations = np.moveaxis(embed(windows, result.coordinates[:, :4]), -1, 2)
    # Relative to the perturbations, whose norms are 2 to 80: pixels near zero are differences.
    np.testing.assert_allclose(perturbations, reference["diagonal_8x8_step1/perturbation_first4"], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_diagonal_in_float32_agrees_with_the_authors_code(reference_lenet, reference):
    images = (reference["images"][..., None] / 255).astype(np.float32)
    result = hmt_jax.measure_margins(reference_lenet, images, mnist_diagonal(), devices=jax.devices()[:1])
    assert result.margin.dtype == np.float32
    expected = reference["diagonal_8x8_step1/margin"]
    # Where rounding makes an iterate take another turn, single margins may move by more.
    is_close = np.abs(result.margin - expected) <= 1e-3 * expected
    assert np.mean(is_close) >= 0.99


@pytest.mark.usefixtures("optimised")
def test_the_whole_space_agrees_with_the_authors_code(lenet, reference, x64):
    images = reference["images"][..., None] / 255
    result = hmt_jax.measure_margins(lenet, images, subspaces.full((28, 28, 1)), devices=jax.devices()[:1])
    check_parity(result, reference, "full_space")


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("candidates3", {"num_candidates": 3}),
        ("maxsteps1", {"max_steps": 1}),
        ("overshoot0.5", {"overshoot": 0.5}),
    ],
)
def test_settings_agree_with_the_authors_code(name, settings, lenet, reference, x64):
    images = reference["images"][:10, ..., None] / 255
    windows = mnist_diagonal(step=5)
    result = hmt_jax.measure_margins(lenet, images, windows, devices=jax.devices()[:1], **settings)
    check_parity(result, reference, f"diagonal_8x8_every5th_{name}")


def test_results_are_laid_out_by_subspace_and_sample(measured, x64):
    for name in ("margin", "label", "adversarial_label", "num_steps", "status"):
        field = getattr(measured, name)
        assert isinstance(field, np.ndarray)
        assert field.shape == (3, NUM_IMAGES)
    assert measured.coordinates.shape == (3, NUM_IMAGES, 8)
    assert measured.solver == solvers.deepfool()
    assert measured.precision == "highest"
    assert measured.is_converged.all()

    one_by_one = jax.vmap(hmt_jax.deepfool, in_axes=(None, 0, None))
    for r, window in enumerate(diagonal()):
        expected = one_by_one(tanh_classifier(), random_images(), window)
        assert_same(
            jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], measured), jax.tree.map(lambda x: x[None], expected)
        )
        np.testing.assert_allclose(measured.coordinates[r], expected.coordinates, rtol=0, atol=1e-10)


def test_a_single_subspace_is_a_stack_of_one(measured, x64):
    result = hmt_jax.measure_margins(tanh_classifier(), random_images(), diagonal()[1])
    assert result.coordinates is None
    assert result.margin.shape == (1, NUM_IMAGES)
    assert_same(result, jax.tree.map(lambda leaf: leaf[1:2], measured))


def test_perturbations_are_as_long_as_the_margin_and_change_the_label(measured, x64):
    for r, window in enumerate(diagonal()):
        perturbations = np.asarray(jax.vmap(window.embed)(measured.coordinates[r]))
        norms = np.linalg.norm(perturbations.reshape(NUM_IMAGES, -1), axis=1)
        np.testing.assert_allclose(norms, measured.margin[r], rtol=1e-12)
        labels = np.argmax(tanh_classifier()(random_images()), axis=1)
        perturbed_labels = np.argmax(tanh_classifier()(random_images() + perturbations), axis=1)
        np.testing.assert_array_equal(measured.label[r], labels)
        np.testing.assert_array_equal(measured.adversarial_label[r], perturbed_labels)
        assert (labels != perturbed_labels).all()


@pytest.mark.parametrize(("num_devices", "num_lanes"), [(1, 1), (1, 5), (2, 64), (8, 2)])
def test_lanes_and_devices_do_not_matter(num_devices, num_lanes, measured, x64):
    devices = jax.devices()[:num_devices]
    result = hmt_jax.measure_margins(
        tanh_classifier(), random_images(), diagonal(), devices=devices, num_lanes=num_lanes
    )
    assert_same(result, measured)
    assert result.work.num_lanes == num_lanes
    assert result.work.num_busy_lane_steps == measured.num_steps.sum()


def test_the_order_of_the_images_does_not_matter(measured, x64):
    order = np.random.default_rng(1).permutation(NUM_IMAGES)
    assert_same(hmt_jax.measure_margins(tanh_classifier(), random_images()[order], diagonal()), measured, order)


def test_progress_counts_pairs(x64):
    calls = []
    hmt_jax.measure_margins(
        tanh_classifier(), random_images(), diagonal(), progress=lambda *numbers: calls.append(numbers)
    )
    assert calls[-1] == (3 * NUM_IMAGES, 3 * NUM_IMAGES)
    assert calls == sorted(calls)


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
def test_a_bad_image_disturbs_no_other(pixel, measured, x64):
    images = random_images()
    images[3, 2, 1, 0] = pixel
    result = hmt_jax.measure_margins(tanh_classifier(), images, diagonal())
    assert (result.status[:, 3] == Status.NON_FINITE).all()
    assert np.isnan(result.margin[:, 3]).all()
    assert (result.label[:, 3] == -1).all()
    others = np.arange(NUM_IMAGES) != 3
    assert_same(jax.tree.map(lambda leaf: leaf[:, others], result), measured, others)


def test_images_that_are_all_bad_have_a_status_and_no_error(x64):
    result = hmt_jax.measure_margins(tanh_classifier(), np.full((NUM_IMAGES, *SHAPE), np.nan), diagonal())
    assert (result.status == Status.NON_FINITE).all()


@pytest.mark.parametrize("is_x64_enabled", [False, True])
def test_float32_stays_float32(is_x64_enabled, measured):
    with jax.enable_x64(is_x64_enabled):
        classifier = tanh_classifier(dtype="float32")
        images = random_images(dtype="float32")
        result = hmt_jax.measure_margins(
            classifier, images, diagonal(), keep_coordinates=True, devices=jax.devices()[:1]
        )
    assert result.margin.dtype == result.coordinates.dtype == np.float32
    # Not in float64 on the way either: rounding shows, at about 1e-6 for gaps between logits that are not small.
    error = np.abs(result.margin / measured.margin - 1)
    assert 1e-9 < error.max() < 1e-3


def test_float64_stays_float64(measured):
    assert measured.margin.dtype == measured.coordinates.dtype == np.float64


def linear_logits(weights, images):
    return images.reshape(len(images), -1) @ weights


@dataclasses.dataclass(frozen=True)
class ToTheOtherClass:
    """A solver of our own: for two linear logits, one step to the boundary is the answer.

    It takes that step second, to see that solvers need not begin with anything.
    """

    num_candidates = 2

    def start(self, restriction, at_sample):
        return jnp.zeros_like(at_sample.normals[0]), jnp.asarray(-1), jnp.asarray(False)

    def step(self, restriction, state):
        z, _, _ = state
        logits, jacobian = restriction(z), jax.jacobian(restriction)(z)
        label = jnp.argmax(logits)
        normal = jacobian[1 - label] - jacobian[label]
        return (logits[label] - logits[1 - label]) * normal / jnp.vdot(normal, normal), label, jnp.asarray(True)

    def done(self, state):
        return state[2]

    def result(self, state):
        z, label, _ = state
        return solvers.Solution(
            margin=jnp.linalg.norm(z),
            label=label,
            adversarial_label=1 - label,
            num_steps=jnp.asarray(1),
            status=jnp.asarray(Status.CONVERGED),
            coordinates=z,
        )


def test_any_solver_can_be_given(x64):
    weights = np.random.default_rng(0).normal(size=(NUM_PIXELS, 2))
    classifier = jax.tree_util.Partial(linear_logits, jnp.asarray(weights))
    images = random_images()
    result = hmt_jax.measure_margins(classifier, images, subspaces.full(SHAPE), ToTheOtherClass())
    logits = images.reshape(NUM_IMAGES, -1) @ weights
    expected = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(weights[:, 0] - weights[:, 1])
    np.testing.assert_allclose(result.margin, expected[None], rtol=1e-12)
    np.testing.assert_array_equal(result.label, np.argmax(logits, axis=1)[None])
    assert result.solver == ToTheOtherClass()


class Line(NamedTuple):
    """A subspace of no class of ours."""

    direction: jax.Array

    def coordinates(self, image):
        return jnp.vdot(self.direction, image)[None]

    def embed(self, z):
        return z[0] * self.direction


def test_any_pytree_with_coordinates_and_embed_is_a_subspace(x64):
    direction = np.linalg.qr(np.random.default_rng(2).normal(size=(NUM_PIXELS, 1)))[0]
    result = hmt_jax.measure_margins(tanh_classifier(), random_images(), Line(jnp.asarray(direction.reshape(SHAPE))))
    span = subspaces.from_basis(direction, SHAPE)
    assert_same(result, hmt_jax.measure_margins(tanh_classifier(), random_images(), span))


def test_all_products_are_in_the_given_precision():
    """Of LeNet, whose layers have backward passes of their own."""
    classifier = as_pytree(models.create("lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10))
    window, image, solver = subspaces.dct_window((28, 28, 1), 0, 0, 2), jnp.zeros((28, 28, 1)), solvers.deepfool()
    stack = jax.tree.map(lambda leaf: leaf[None], window)
    at_image, state = _pairs._first_pair.eval_shape(solver, classifier, image, window)

    def zeros(tree):
        return jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), tree)

    data = (classifier, image[None], stack)
    solution = jax.eval_shape(solver.result, state)
    go_on = _pairs._GoOn(solver, "highest")
    programs = [
        jax.make_jaxpr(_pairs._Linearize(solver, "highest"))(data[:2], 0),
        jax.make_jaxpr(lambda data: go_on.step(data, 0, go_on.start(data, 0)))((*data, zeros(state))),
        jax.make_jaxpr(_pairs._LookAtEnd("highest"))((*data, zeros(solution)), 0),
        jax.make_jaxpr(lambda image: hmt_jax.deepfool(classifier, image, window))(image),
    ]
    bisect = _pairs._Bisect(2, "highest")
    passes_forward = [
        jax.make_jaxpr(_pairs._Start(solver, "highest"))((*data, zeros(at_image)), 0),
        jax.make_jaxpr(_pairs._KnownGaps("highest"))((*data, zeros(solution)), 0),
        jax.make_jaxpr(lambda data: bisect.step(data, 0, bisect.start(data, 0)))((*data, zeros(solution))),
    ]
    for least, some in ((11, programs), (3, passes_forward)):
        for program in some:
            precisions = list(_precisions(program.jaxpr))
            assert len(precisions) >= least
            assert set(precisions) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize(
    "function",
    [
        frequency.flip,
        subspaces.dct_window((4, 5, 2), 0, 0, 2).coordinates,
        subspaces.from_basis(np.eye(40, 3), (4, 5, 2)).coordinates,
    ],
    ids=["flip", "window", "basis"],
)
def test_features_are_in_the_highest_precision(function):
    precisions = list(_precisions(jax.make_jaxpr(function)(jnp.zeros(SHAPE)).jaxpr))
    assert precisions
    assert set(precisions) == {(jax.lax.Precision.HIGHEST,) * 2}


def _precisions(jaxpr):
    """Those of all products and convolutions in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from _precisions(inner)


@pytest.mark.parametrize(("settings", "expected"), [({}, "highest"), ({"precision": "default"}, "default")])
def test_the_classifier_runs_in_the_precision_that_is_recorded(settings, expected):
    precisions = []

    def classifier(images):
        precisions.append(jax.config.jax_default_matmul_precision)
        return linear_logits(np.eye(NUM_PIXELS, 3, dtype=np.float32), images)

    images = random_images(dtype="float32")
    result = hmt_jax.measure_margins(classifier, images, diagonal(), devices=jax.devices()[:1], **settings)
    assert result.precision == expected
    # Where only shapes are asked for, no precision is set.
    assert expected in precisions
    assert set(precisions) <= {None, expected}


# How often the body of a classifier was traced.
TRACES = []


def counted_logits(weights, images):
    TRACES.append(images.shape)
    return linear_logits(weights, images)


def test_all_windows_and_networks_of_a_kind_share_one_compilation():
    def measure(seed, window):
        rng = np.random.default_rng(seed)
        weights = jnp.asarray(rng.normal(size=(784, 10)), jnp.float32)
        images = rng.uniform(size=(2, 28, 28, 1)).astype(np.float32)
        classifier = jax.tree_util.Partial(counted_logits, weights)
        return hmt_jax.measure_margins(classifier, images, window, devices=jax.devices()[:1]).margin

    windows = subspaces.dct_diagonal((28, 28, 1), size=8, step=1)
    first = measure(0, windows[0])
    num_traces = len(TRACES)
    assert num_traces > 0
    margins = [measure(0, window) for window in windows]
    assert len(TRACES) == num_traces
    # Data all the same: nothing of the first window or network was baked in.
    np.testing.assert_array_equal(margins[0], first)
    assert len({margin.tobytes() for margin in margins}) == 21
    other = measure(1, windows[0])
    assert len(TRACES) == num_traces
    assert not np.isclose(other, first).any()


def test_networks_of_one_architecture_share_one_compilation(monkeypatch):
    num_traces = 0
    call = models.LeNet.__call__

    def counted(self, images):
        nonlocal num_traces
        num_traces += 1
        return call(self, images)

    monkeypatch.setattr(models.LeNet, "__call__", counted)
    image_shape = (12, 12, 1)
    images = np.random.default_rng(0).uniform(size=(2, *image_shape)).astype(np.float32)
    margins, counts = [], []
    for seed in range(2):
        network = models.create("lenet", jax.random.key(seed), image_shape=image_shape, num_classes=3)
        result = hmt_jax.measure_margins(
            network, images, subspaces.full(image_shape), devices=jax.devices()[:1], max_steps=3
        )
        margins.append(result.margin)
        counts.append(num_traces)
    assert counts[0] > 0
    assert counts[0] == counts[1]
    assert not np.isclose(margins[0], margins[1]).any()


def test_compilations_are_not_shared_between_functions():
    images = random_images(dtype="float32")

    def make(scale):
        offset = jnp.array([scale, 0.0])
        return lambda images: images.reshape(len(images), -1)[:, :2] + offset[None]

    def measure(scale):
        return hmt_jax.measure_margins(make(scale), images, subspaces.full(SHAPE), devices=jax.devices()[:1]).margin[0]

    near, far = measure(2.0), measure(4.0)
    pixels = images.reshape(NUM_IMAGES, -1)
    for margins, scale in ((near, 2), (far, 4)):
        expected = 1.02 * (pixels[:, 0] + scale - pixels[:, 1]) / np.sqrt(2)
        np.testing.assert_allclose(margins, expected, rtol=1e-5)


def two_logits(images):
    """Half a pixel against another one."""
    pixels = images.reshape(len(images), -1)
    return jnp.stack([pixels[:, 0] / 2, pixels[:, 1]], axis=1)


def measure_two(images, **settings):
    subspace = subspaces.full(images.shape[1:])
    return hmt_jax.measure_margins(two_logits, images, subspace, devices=jax.devices()[:1], **settings)


def boundary_images(num_images=4):
    """Images that use all of [0, 1]."""
    images = random_images(num_images=num_images, dtype="float32")
    images[:, 0, 0, 0], images[:, 3, 4, 1] = 0, 1
    return images


@pytest.mark.parametrize(
    ("transform", "lowest", "highest"),
    [
        (lambda images: 255 * images, "0", "255"),
        (lambda images: (images - 0.5) / 0.25, "-2", "2"),
        (lambda images: images - 0.01, r"-0\.01", r"0\.99"),
        (lambda images: 2 * frequency.flip(images), r"-[0-9.]+", r"[0-9.]+"),
    ],
    ids=["8-bit", "normalised", "slightly dark", "flipped and stretched"],
)
def test_pixels_out_of_range_give_a_warning(transform, lowest, highest):
    with pytest.warns(
        hmt_jax.PixelRangeWarning,
        match=rf"^pixels of 4 of 4 images leave \[0, 1\], from {lowest} to {highest}, and flipping their frequencies "
        r"does not explain it; give images before normalisation, or silence hmt_jax\.PixelRangeWarning if they are "
        "meant to be so$",
    ) as warned:
        result = measure_two(transform(boundary_images()))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert result.is_converged.all()


def test_only_images_out_of_range_are_counted():
    images = boundary_images()
    images[1] *= 3
    images[2, 0, 0, 0] = np.nan
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"pixels of 1 of 4 images leave \[0, 1\], from 0 to 3, "):
        measure_two(images)


@pytest.mark.parametrize("flipped", [[0, 1, 2, 3], [1, 2], []])
def test_images_and_flipped_images_give_no_warning(flipped):
    images = boundary_images()
    images[flipped] = frequency.flip(images)[np.array(flipped, int)]
    assert len(flipped) == np.sum((images.min(axis=(1, 2, 3)) < 0) | (images.max(axis=(1, 2, 3)) > 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_two(images).is_converged.all()


def test_the_warning_can_be_silenced_by_its_category():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", hmt_jax.PixelRangeWarning)
        assert measure_two(255 * boundary_images()).is_converged.all()


def test_pairs_without_a_margin_can_be_made_an_error(measured, x64):
    measured.raise_unless_converged()
    result = hmt_jax.measure_margins(tanh_classifier(), random_images(), diagonal(), max_steps=1)
    missing = np.argwhere(measured.num_steps > 1).tolist()
    assert len(missing) > 5
    first = ", ".join(rf"\({r}, {n}\) OUT_OF_STEPS" for r, n in missing[:5])
    with pytest.raises(
        ValueError,
        match=rf"^{len(missing)} of 21 \(subspace, sample\) pairs have no margin; the first: {first}$",
    ):
        result.raise_unless_converged()


def test_solver_and_settings_exclude_each_other():
    with pytest.raises(
        TypeError,
        match=r"give either solver or max_steps, overshoot, which belong to solvers\.deepfool",
    ):
        measure_two(boundary_images(), solver=solvers.deepfool(), max_steps=3, overshoot=0.1)


def test_unknown_settings_are_refused():
    message = (
        "^measure_margins has no argument num_steps; its arguments are classifier, images, subspaces, solver, known, "
    )
    with pytest.raises(TypeError, match=message + ".*, num_candidates, overshoot, max_steps$"):
        measure_two(boundary_images(), num_steps=3)


@pytest.mark.parametrize("solver", [solvers.tight, "tight"])
def test_what_is_no_solver_is_refused(solver):
    with pytest.raises(
        TypeError, match=r"^solver must be a solver such as hmt_jax\.solvers\.tight\('fast'\), with its p"
    ):
        measure_two(boundary_images(), solver=solver)


def test_known_margins_are_checked():
    images = boundary_images()
    known = measure_two(images)
    with pytest.raises(
        ValueError, match="known was measured without coordinates: measure it with keep_coordinates=True"
    ):
        measure_two(images, known=known)
    with pytest.raises(
        ValueError, match="known must hold margins of the same pairs, 1 subspaces and 3 images, got 1 and 4"
    ):
        measure_two(images[:3], known=known)

    with pytest.raises(TypeError, match="known must be a MarginResult, what measure_margins gives, got <class 'int'>"):
        measure_two(images, known=3)


def test_known_margins_are_checked_beside_a_class_that_is_ruled_out():
    images, whole = boundary_images(), subspaces.full((4, 5, 2))

    def ruled_out(bias, images):
        logits = two_logits(images) + jnp.array([[0.0, bias]])
        return jnp.append(logits, jnp.full((len(images), 1), -1e9), axis=1)

    classifiers = [functools.partial(ruled_out, bias) for bias in (0.0, 1.0)]
    known = hmt_jax.measure_margins(classifiers[0], images, whole, exact.linear(), keep_coordinates=True)
    with pytest.raises(ValueError, match="do not change what this classifier says of these images: measure them"):
        hmt_jax.measure_margins(classifiers[1], images, whole, known=known)
    again = hmt_jax.measure_margins(classifiers[0], images, whole, known=known)
    np.testing.assert_array_equal(again.margin, np.minimum(known.margin, again.margin))


def test_known_margins_are_of_the_same_classifier_and_images():
    images = boundary_images()
    known = measure_two(images, keep_coordinates=True)
    again = measure_two(images, known=known, solver=exact.linear())
    assert (again.margin <= known.margin).all()

    def farther(images):
        return two_logits(images) + jnp.array([[0.0, 1.0]])

    whole = subspaces.full((4, 5, 2))
    for classifier, changed in ((two_logits, images[::-1]), (farther, images)):
        with pytest.raises(ValueError, match="do not change what this classifier says of these images: measure them"):
            hmt_jax.measure_margins(classifier, changed, whole, known=known)


@pytest.mark.parametrize("solver", [exact.linear(), solvers.deepfool(overshoot=0.0)], ids=["exact", "DeepFool"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_known_points_on_the_boundary_of_two_classes_are_right(solver, offset):
    """All logits are equal there but for rounding, and zero if they are (0, logit)."""

    def binary(images):
        logit = images[:, :, :, 0].mean((1, 2)) - 0.5
        return jnp.stack([offset + 0 * logit, offset + logit], axis=1)

    images, whole = random_images(num_images=20, dtype="float32"), subspaces.full((4, 5, 2))
    known = hmt_jax.measure_margins(binary, images, whole, solver, num_bisections=20, keep_coordinates=True)
    again = hmt_jax.measure_margins(binary, images, whole, known=known)
    np.testing.assert_array_equal(again.margin, np.minimum(known.margin, again.margin))
    with pytest.raises(ValueError, match="do not change what this classifier says of these images: measure them"):
        hmt_jax.measure_margins(binary, images[::-1], whole, known=known)


def test_known_margins_count_for_the_label_that_is_found():
    """Of logits that are equal but for rounding, another precision may have chosen the other one."""
    images = boundary_images()
    images[0, 0, 0] = 0.802, 0.4  # logits of 0.401 and 0.4; those of the other images are tenths apart
    found = measure_two(images, keep_coordinates=True)
    assert found.label.tolist() == [[0, 1, 1, 1]]
    arrays = {name: getattr(found, name).copy() for name in ("label", "adversarial_label", "margin", "coordinates")}
    for name, value in (("label", 1), ("adversarial_label", 0), ("margin", 0), ("coordinates", 0)):
        arrays[name][0, 0] = value
    again = measure_two(images, known=dataclasses.replace(found, **arrays))
    np.testing.assert_array_equal(again.label, found.label)
    np.testing.assert_array_equal(again.margin, found.margin)


def test_known_margins_are_of_subspaces_of_the_same_dimension():
    images = boundary_images()
    lines, planes = (subspaces.random(jax.random.key(0), (4, 5, 2), dimension) for dimension in (1, 2))
    known = hmt_jax.measure_margins(two_logits, images, lines, keep_coordinates=True)
    with pytest.raises(ValueError, match="known must hold margins in the same subspaces, of dimension 2, got 1"):
        hmt_jax.measure_margins(two_logits, images, planes, known=known)


def test_probabilities_for_logits_give_a_warning():
    images, whole = boundary_images(), subspaces.full((4, 5, 2))
    with pytest.warns(
        UserWarning, match="^the classifier seems to return probabilities: .*; return logits, before the softmax"
    ) as warned:
        hmt_jax.measure_margins(lambda images: jax.nn.softmax(two_logits(images)), images, whole)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hmt_jax.measure_margins(lambda images: jax.nn.log_softmax(two_logits(images)), images, whole)


def test_margins_of_vanishing_gradients_give_a_warning():
    """The outputs are sigmoids: the boundary is that of their arguments, less than a pixel away."""
    with pytest.warns(
        UserWarning,
        match="^4 of 4 margins are longer than the diameter of the pixel box, though the label changes within a tenth "
        "of the perturbation: gradients vanish where .*; return logits, before the softmax or sigmoid$",
    ) as warned:
        found = hmt_jax.measure_margins(functools.partial(three_sigmoids, 40), both_labels(), subspaces.full((4, 5, 2)))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert (found.margin > 40**0.5).all()


def test_gradients_of_zero_where_labels_differ_give_a_warning():
    with pytest.warns(UserWarning, match="^the outputs of the classifier have no gradient at 4 of 4 images: gradients"):
        found = hmt_jax.measure_margins(
            functools.partial(three_sigmoids, 1e4), both_labels(), subspaces.full((4, 5, 2))
        )
    assert (found.status == Status.ZERO_GRADIENT).all()


def three_sigmoids(scale, images):
    return jax.nn.sigmoid(scale * jnp.append(two_logits(images) - 0.2, jnp.full((len(images), 1), 0.05), axis=1))


def both_labels():
    """Images on both sides of the boundary of `two_logits`, far from it."""
    images = boundary_images()
    images[:, 0, 0] = [[1, 0.05], [0.05, 0.6], [0.9, 0.02], [0.05, 0.7]]
    return images


def test_long_margins_of_classifiers_that_are_not_saturated_give_no_warning():
    """Ten times as long as the diameter of the pixel box, since the logits are that far apart."""
    found = hmt_jax.measure_margins(
        lambda images: two_logits(images) + jnp.array([[0.0, 100.0]]), both_labels(), subspaces.full((4, 5, 2))
    )
    assert found.is_converged.all()
    assert (found.margin > 10 * 40**0.5).all()


def test_a_label_change_that_is_not_found_again_is_no_margin():
    """The classifier differs in every trace: the boundary has moved away when the point found is evaluated again."""
    traces = []

    def with_a_state(images):
        traces.append(images.shape)
        return two_logits(images) + jnp.array([[0.0, 1.0 * len(traces)]])

    found = hmt_jax.measure_margins(with_a_state, boundary_images(), subspaces.full((4, 5, 2)))
    assert (found.status == Status.UNCONFIRMED).all()
    assert (found.gap < 0).all()
    np.testing.assert_array_equal(found.adversarial_label, found.label)
    assert np.isinf(hmt_jax.statistics.censored_margins(found)).all()
    with pytest.raises(ValueError, match=r"4 of 4 .* the first: \(0, 0\) UNCONFIRMED"):
        found.raise_unless_converged()


def test_a_class_that_is_ruled_out_changes_no_margin():
    """In all passes it is as if the class were not there; a single class has no boundary."""

    def with_a_third(images):
        return jnp.insert(two_logits(images), 1, -jnp.inf, axis=1)

    images, whole = both_labels(), subspaces.full((4, 5, 2))
    settings = {"num_bisections": 3, "keep_coordinates": True}
    expected = hmt_jax.measure_margins(two_logits, images, whole, **settings)
    found = hmt_jax.measure_margins(with_a_third, images, whole, **settings)
    again = hmt_jax.measure_margins(with_a_third, images, whole, exact.linear(), known=found)
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.gap, expected.gap)
    np.testing.assert_array_equal(found.label, 2 * expected.label)
    distances = np.abs(np.diff(two_logits(images), axis=1).ravel()) / np.sqrt(0.5**2 + 1)
    np.testing.assert_allclose(again.margin, distances[None], rtol=1e-5)


def test_a_class_that_is_ruled_out_is_no_fault_in_accuracy_and_loss():
    logits = np.array([[2.0, -np.inf, 1.0], [0.0, 3.0, -np.inf], [np.nan, 0, 1], [np.inf, 0, 1]], np.float32)

    def classifier(images):
        return jnp.asarray(logits)[images[:, 0, 0, 0].astype(jnp.int32)]

    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    found = hmt_jax.training.evaluate(classifier, images[:2], np.array([0, 0]))
    # The cross-entropies are log(1 + e^-1) and log(1 + e^3).
    np.testing.assert_allclose([found.accuracy, found.loss], [0.5, (np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 2])
    assert hmt_jax.training.evaluate(classifier, images[2:], np.array([0, 0])).accuracy == 0


@dataclasses.dataclass(frozen=True)
class Endless:
    """A solver of our own that goes on for ever, by a random number a step."""

    num_candidates: int = 2
    change: Callable = lambda state: state

    def start(self, restriction, at_sample):
        z = jnp.zeros_like(at_sample.normals[0])
        return {"z": z, "key": jax.random.key(0), "num_steps": jnp.int32(0), "label": at_sample.candidates[0]}

    def step(self, restriction, state):
        noise = jax.random.uniform(jax.random.fold_in(state["key"], state["num_steps"]))
        return self.change(state | {"z": state["z"].at[0].add(noise), "num_steps": state["num_steps"] + 1})

    def done(self, state):
        return False

    def result(self, state):
        z, label = state["z"], state["label"]
        return solvers.Solution(z[0], label, 1 - label, state["num_steps"], Status.CONVERGED, z)


@dataclasses.dataclass(frozen=True)
class NeverDone(Endless):
    max_steps: int = 7


def test_a_solver_that_is_never_done_is_stopped_and_may_hold_a_random_key():
    found = measure_two(boundary_images(), solver=NeverDone())
    assert (found.status == Status.OUT_OF_STEPS).all()
    assert (found.num_steps == 7).all()
    np.testing.assert_array_equal(found.adversarial_label, found.label)
    numbers = [jax.random.uniform(jax.random.fold_in(jax.random.key(0), step)) for step in range(7)]
    np.testing.assert_allclose(found.margin, np.full((1, 4), sum(numbers)), rtol=1e-6)


def test_a_solver_without_a_number_of_steps_is_stopped_as_well():
    found = measure_two(boundary_images(1), solver=Endless())
    assert found.status[0, 0] == Status.OUT_OF_STEPS
    assert found.num_steps[0, 0] == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"z": state["z"].astype(jnp.float16)},
            r"^step of NeverDone must keep the shapes and dtypes of its state, but state\['z'\] is float32\[40\] after "
            r"start and float16\[40\] after step: make it the same in both",
        ),
        (
            lambda state: state | {"more": 0},
            "^step of NeverDone must return a state of the structure that start returns, .*, got ",
        ),
    ],
    ids=["dtype", "structure"],
)
def test_a_state_keeps_its_types(change, message):
    with pytest.raises(TypeError, match=message):
        measure_two(boundary_images(), solver=NeverDone(change=change))


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("done", lambda found: jnp.zeros(1, bool), r"done of NeverDone must return a single bool, got bool\[1\]"),
        ("done", lambda found: 0.5, r"done of NeverDone must return a single bool, got float32\[\]"),
        ("result", lambda found: tuple(found), "result of NeverDone must return a hmt_jax.Solution, got tuple"),
        ("result", lambda found: found._replace(margin=1), "must have a single number as margin, got int32"),
        ("result", lambda found: found._replace(status=0.0), "must have a single whole number as status, got float32"),
    ],
)
def test_answers_of_a_solver_have_the_types_that_are_expected(method, answer, message):
    class Wrong(NeverDone):
        pass

    Wrong.__name__ = "NeverDone"
    right = getattr(NeverDone, method)
    setattr(Wrong, method, lambda self, state: answer(right(self, state)))
    with pytest.raises(TypeError, match=message):
        measure_two(boundary_images(), solver=Wrong())


def test_what_a_solver_lacks_is_named():
    class Half:
        num_candidates = 2

        def start(self, restriction, at_sample):
            return at_sample.logits

    with pytest.raises(
        TypeError, match=r"^solver Half has no step, done, result: a solver has num_candidates, start, "
    ):
        measure_two(boundary_images(), solver=Half())

    class Thawed(Endless):
        __hash__ = None

    with pytest.raises(TypeError, match=r"^solver Thawed must be hashable: decorate its class with dataclasses"):
        measure_two(boundary_images(), solver=Thawed())


@pytest.mark.parametrize("num_lanes", [None, 2])
@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (lambda images: (two_logits(images), images), r"^classifier must give one array, .*, got tuple: wrap it in a"),
        (lambda images: {"logits": two_logits(images)}, r"^classifier must give one array, .*, got dict: wrap it in a"),
        (
            lambda images: images.reshape(len(images), -1) @ np.ones((3, 2), np.float32),
            r"^classifier can't be applied to images of shape \(N, 4, 5, 2\): dot_general .*",
        ),
    ],
    ids=["tuple", "dict", "other shape"],
)
def test_what_a_classifier_gives_is_checked(classifier, message, num_lanes):
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(classifier, boundary_images(), subspaces.full((4, 5, 2)), num_lanes=num_lanes)


def test_subspaces_that_are_no_pytrees_are_refused():
    class Whole:
        def coordinates(self, image):
            return image.ravel()

        def embed(self, z):
            return z.reshape(4, 5, 2)

    with pytest.raises(TypeError, match="a subspace must be a pytree, but Whole is not registered as one: decorate"):
        hmt_jax.measure_margins(two_logits, boundary_images(), Whole())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 1}, "num_candidates must be at least 2"),
        ({"overshoot": -1}, "overshoot must be finite and not negative"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"num_lanes": 0}, "num_lanes must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        measure_two(boundary_images(), **settings)


@pytest.mark.parametrize("shape", [(4, 5), SHAPE, (1, 2, 4, 5, 2)])
def test_the_rank_of_the_images_is_checked(shape):
    with pytest.raises(
        ValueError,
        match=r"images must have shape \(N, height, width, channels\), got \(.*\); add the channel axis of grey images "
        r"with images\[\.\.\., None\], and the batch axis of one image with image\[None\]",
    ):
        hmt_jax.measure_margins(two_logits, np.zeros(shape, np.float32), subspaces.full(SHAPE))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"images is empty, with shape \(0, 4, 5, 2\): give at least one image"):
        measure_two(boundary_images(num_images=0))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_images_must_be_floating_point(dtype):
    with pytest.raises(
        ValueError, match=rf"images must be floating point in \[0, 1\], got {dtype}; divide 8-bit images by 255"
    ):
        measure_two(boundary_images().astype(dtype))


@pytest.mark.parametrize("image_shape", [(4, 5, 3), (5, 4, 2)])
@pytest.mark.parametrize("make", [subspaces.full, lambda shape: subspaces.dct_diagonal(shape, 2, 1)])
def test_subspaces_must_be_for_the_shape_of_the_images(image_shape, make):
    with pytest.raises(
        ValueError,
        match=rf"the subspaces are for images of shape \({', '.join(map(str, image_shape))}\), but images have shape "
        r"\(4, 5, 2\) after the batch axis; make the subspaces for that shape",
    ):
        hmt_jax.measure_margins(two_logits, boundary_images(), make(image_shape))


@pytest.mark.parametrize(
    "make",
    [lambda: [subspaces.full(SHAPE)], lambda: np.eye(NUM_PIXELS, dtype=np.float32), lambda: None],
    ids=["list", "array", "None"],
)
def test_what_is_no_subspace_is_refused(make):
    with pytest.raises(
        TypeError,
        match=r"subspaces must be one subspace or a stack of hmt_jax\.subspaces, got <class '.*'>; "
        r"hmt_jax\.subspaces\.stack joins several of one kind",
    ):
        hmt_jax.measure_margins(two_logits, boundary_images(), make())


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (
            lambda images: two_logits(images)[0],
            r"must map images \(N, height, width, channels\) to logits \(N, L\); for N = 1 it returned \(2,\)",
        ),
        (lambda images: two_logits(images).T, r"for N = 1 it returned \(2, 1\)"),
        (
            lambda images: two_logits(images)[:, :1],
            r"classifier has one class only, so that no label can change; return two logits for a binary classifier, "
            r"such as \(0, logit\)",
        ),
        (
            lambda images: two_logits(images).round().astype(jnp.int32),
            "classifier must return logits in floating point, before any argmax, got int32",
        ),
    ],
    ids=["no batch axis", "transposed", "one class", "integers"],
)
def test_logits_are_checked(classifier, message):
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(classifier, boundary_images(), subspaces.full(SHAPE))
    with pytest.raises(ValueError, match=message):
        hmt_jax.deepfool(classifier, boundary_images()[0], subspaces.full(SHAPE))


def test_gradients_that_are_never_finite_give_a_warning():
    with pytest.warns(UserWarning, match="the logits of images are finite, but every search met NaN or infinite"):
        found = hmt_jax.measure_margins(
            lambda images: two_logits(images) + jnp.sqrt(0 * images.sum((1, 2, 3)))[:, None],
            boundary_images(),
            subspaces.full(SHAPE),
        )
    assert (found.status == Status.NON_FINITE).all()
    assert (found.label >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_classifier_that_is_never_finite_is_an_error(value):
    images = boundary_images()
    images[2, 0, 0, 0] = np.nan
    with pytest.raises(
        ValueError,
        match="classifier gives NaN or infinite logits for every one of 3 finite images: check its parameters and its "
        "normalisation",
    ):
        hmt_jax.measure_margins(
            lambda images: two_logits(images) + value, images, subspaces.full(SHAPE), devices=jax.devices()[:1]
        )


@pytest.mark.parametrize("classifier", [None, "lenet", np.eye(3)])
def test_a_classifier_must_be_callable(classifier):
    with pytest.raises(
        TypeError,
        match=r"classifier must be callable on images \(N, height, width, channels\), got <class '.*'>",
    ):
        hmt_jax.measure_margins(classifier, boundary_images(), subspaces.full(SHAPE))
    with pytest.raises(TypeError, match="classifier must be callable"):
        hmt_jax.deepfool(classifier, boundary_images()[0], subspaces.full(SHAPE))


def test_there_must_be_a_device():
    with pytest.raises(ValueError, match="devices is empty: give at least one, or None for all local devices"):
        hmt_jax.measure_margins(
            tanh_classifier(dtype="float32"), random_images(dtype="float32"), diagonal(), devices=[]
        )


def windows_of_an_mlp():
    classifier = models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3)
    images = np.random.default_rng(1).uniform(size=(9, 4, 4, 1)).astype(np.float32)
    return classifier, images, subspaces.dct_diagonal((4, 4, 1), size=2, step=1)


def test_known_margins_go_to_their_pairs_in_every_chunk(monkeypatch):
    arguments = windows_of_an_mlp()
    known = hmt_jax.measure_margins(*arguments, keep_coordinates=True)
    weak = solvers.fmn(num_steps=1, max_steps=1)
    expected = hmt_jax.measure_margins(*arguments, weak, known=known)
    monkeypatch.setattr(_pairs, "_ON_CPU", _pairs._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    found = hmt_jax.measure_margins(*arguments, weak, known=known, num_lanes=9, devices=jax.devices()[:1])
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-5)


def test_known_results_without_a_margin_do_not_count():
    arguments = windows_of_an_mlp()
    known = hmt_jax.measure_margins(*arguments, max_steps=1, overshoot=0.0, keep_coordinates=True)
    assert known.is_converged.any()
    assert not known.is_converged.all()
    alone = hmt_jax.measure_margins(*arguments)
    joined = hmt_jax.measure_margins(*arguments, known=known)
    expected = np.fmin(np.where(known.is_converged, known.margin, np.inf), alone.margin)
    np.testing.assert_allclose(joined.margin, expected, rtol=1e-5)
    np.testing.assert_array_equal(joined.is_converged, known.is_converged | alone.is_converged)
    np.testing.assert_array_equal(joined.adversarial_label != joined.label, joined.is_converged)


def test_the_number_of_bisections_is_recorded():
    assert measure_two(boundary_images(), num_bisections=2).num_bisections == 2


def test_without_a_point_there_is_no_gap():
    pixel = subspaces.from_basis(np.eye(40, 1), (4, 5, 2))  # which the logits don't see
    seen = jnp.eye(40, 2, -1)
    found = hmt_jax.measure_margins(lambda images: images.reshape(len(images), -1) @ seen, boundary_images(), pixel)
    assert (found.status == Status.ZERO_GRADIENT).all()
    assert np.isnan(found.gap).all()
    assert np.isnan(found.alignment).all()


def test_every_image_counts_for_the_range():
    images = np.full((1030, *SHAPE), 0.5, np.float32)
    images[-1] = 3
    with pytest.warns(hmt_jax.PixelRangeWarning, match="pixels of 1 of 1030"):
        _checks.check_images(images)


def linear_head(image_shape, num_classes):
    weights = np.zeros((math.prod(image_shape), num_classes), "float32")
    return jax.tree_util.Partial(lambda weights, images: images.reshape(len(images), -1) @ weights, weights)


@pytest.mark.parametrize("num_images", [50, 500, 50_000])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_memory_on_cpu_stays_within_a_budget(num_images, num_devices):
    image_shape, num_classes, devices = (224, 224, 3), 10, jax.devices()[:num_devices]
    windows = subspaces.dct_diagonal(image_shape, size=8, step=24)
    images = np.broadcast_to(np.float32(0), (num_images, *image_shape))
    needs = _pairs._needs_of(solvers.deepfool(), linear_head(image_shape, num_classes), images, windows)
    num_lanes = _pairs._choose_num_lanes(needs, windows.num_stacked * num_images, devices)
    size = _pairs._choose_chunk_size(needs, num_images, windows.num_stacked, num_lanes, devices)
    # Gradients of nine classes: of each image of a chunk on the host, as an argument, as a result and as the next one;
    # of each lane before and after a step, where it starts, and in the backward pass.
    gradients = 4 * (num_classes - 1) * math.prod(image_shape)
    assert num_devices * 4 * gradients * (size + num_lanes) <= 2**31
    assert 1 <= num_lanes <= num_images
    assert num_devices * 4 * gradients * (2 * size + 2 * num_lanes) > 2**30  # and makes use of it


def test_one_image_and_one_lane_are_taken_whatever_they_need():
    image_shape, devices = (3000, 3000, 3), jax.devices()[:1]
    window, images = subspaces.dct_diagonal(image_shape, size=2, step=2998), np.zeros((1, *image_shape), "float32")
    needs = _pairs._needs_of(solvers.deepfool(), linear_head(image_shape, 10), images, window)
    assert _pairs._choose_num_lanes(needs, 200, devices) == 1
    assert _pairs._choose_chunk_size(needs, 100, 2, 1, devices) == 1


def test_the_budget_takes_nothing_from_small_networks():
    image_shape, devices = (28, 28, 1), jax.devices()[:1]
    lenet = models.create("lenet", jax.random.key(0), image_shape=image_shape, num_classes=10)
    windows, images = subspaces.dct_diagonal(image_shape, size=8, step=1), np.zeros((1, *image_shape), "float32")
    needs = _pairs._needs_of(solvers.deepfool(), as_pytree(lenet), images, windows)
    limits = _pairs._limits(devices)
    num_lanes = _pairs._choose_num_lanes(needs, 21 * 10_000, devices)
    size = _pairs._choose_chunk_size(needs, 10_000, 21, num_lanes, devices)
    # A mebibyte of what backward passes keep, in a power of two; six of linearizations and states, or 20 pairs a lane.
    assert limits.bytes_of_lanes / 2 < num_lanes * needs.kept <= limits.bytes_of_lanes == 2**20
    enough = max(6 * 2**20 // (needs.linearization + 21 * needs.state), -(-20 * num_lanes // 21))
    assert size == -(-10_000 // -(-10_000 // enough))


def test_progress_must_be_a_function():
    """It is checked before anything is compiled, since a call of it comes after that."""
    message = "progress must be a function of the numbers of finished pairs and of all pairs, or None, got True"
    classifier = tanh_classifier(dtype="float32")
    with pytest.raises(TypeError, match=message):
        hmt_jax.measure_margins(classifier, random_images(dtype="float32"), diagonal(), progress=True)
