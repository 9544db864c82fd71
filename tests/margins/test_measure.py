"""Margins of many images in many subspaces: what each pair has, whatever is measured beside it, and how."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import (
    ARRAYS,
    SHAPE,
    WHOLE_NUMBERS,
    assert_same,
    diagonal,
    images_of_two_classes,
    two_classes,
)
from helpers import (
    Line,
    linear_logits,
    random_basis,
    random_images,
    random_network,
    slow_except,
    solve_all,
    tanh_classifier,
    tanh_logits,
    tanh_parameters,
    with_parameters,
)
from jax.extend.core import jaxprs_in_params

import hmt_jax
from hmt_jax import Status, frequency, lanes, models, solvers, subspaces

NUM_IMAGES = 7
IMAGES = random_images(NUM_IMAGES, *SHAPE)


@pytest.fixture(scope="module")
def measured():
    """Seven images in three windows, in float64 on all devices, with the perturbations."""
    with jax.enable_x64(True):
        return hmt_jax.measure_margins(tanh_classifier(), IMAGES, diagonal(), solvers.DeepFool(), keep_coordinates=True)


def measure_tanh(images=IMAGES, solver=solvers.DeepFool(), **settings):  # noqa: B008 - immutable
    return hmt_jax.measure_margins(tanh_classifier(), images, diagonal(), solver, **settings)


# The arrays of a result


def test_results_are_laid_out_by_subspace_and_image(measured):
    for name in ARRAYS:
        field = getattr(measured, name)
        assert isinstance(field, np.ndarray)
        assert field.shape == (3, NUM_IMAGES)
        assert field.dtype == ("int32" if name in WHOLE_NUMBERS else "float64")
    assert [(rows.shape, rows.dtype) for rows in measured.coordinates] == [((NUM_IMAGES, 8), "float64")] * 3
    assert measured.solver == repr(solvers.DeepFool())
    assert measured.precision == "highest"
    assert measured.is_converged.all()


def test_one_margin_at_a_time_is_the_same_compiled_and_mapped(measured, x64):
    """Over images and subspaces at once; the margins of a single pair, neither compiled nor mapped, too."""
    windows = jax.tree.map(lambda *leaves: np.stack(leaves), *diagonal())
    measure = functools.partial(hmt_jax.measure_margin, solver=solvers.DeepFool())
    over_images = jax.vmap(measure, in_axes=(None, 0, None))
    solutions = jax.jit(jax.vmap(over_images, in_axes=(None, None, 0)))(tanh_classifier(), IMAGES, windows)
    assert_same(solutions, measured)
    for name in ("gap", "alignment", "coordinates"):
        np.testing.assert_allclose(getattr(solutions, name), getattr(measured, name), rtol=1e-9, atol=1e-12)
    alone = hmt_jax.measure_margin(tanh_classifier(), IMAGES[2], diagonal()[1], solvers.DeepFool())
    assert isinstance(alone, hmt_jax.Solution)
    np.testing.assert_allclose(alone.margin, measured.margin[1, 2], rtol=1e-10)
    assert alone.coordinates.shape == (8,)


def test_perturbations_are_as_long_as_the_margin_and_change_the_label(measured, x64):
    for r, window in enumerate(diagonal()):
        perturbations = np.asarray(jax.vmap(window.embed)(measured.coordinates[r]))
        norms = np.linalg.norm(perturbations.reshape(NUM_IMAGES, -1), axis=1)
        np.testing.assert_allclose(norms, measured.margin[r], rtol=1e-12)
        labels = np.argmax(tanh_classifier()(IMAGES), axis=1)
        perturbed_labels = np.argmax(tanh_classifier()(IMAGES + perturbations), axis=1)
        np.testing.assert_array_equal(measured.label[r], labels)
        np.testing.assert_array_equal(measured.adversarial_label[r], perturbed_labels)
        assert (labels != perturbed_labels).all()


def test_gap_and_alignment_are_those_of_finite_differences(measured, x64):
    parameters = tanh_parameters()
    for r, window in enumerate(diagonal()):
        basis = np.asarray(jax.vmap(window.embed)(jnp.eye(window.dimension))).reshape(window.dimension, -1)
        for n, image in enumerate(IMAGES):
            z, label = measured.coordinates[r][n], measured.label[r, n]

            def gaps(points, image=image, basis=basis, label=label):
                logits = np.asarray(tanh_logits(parameters, image.ravel()[None] + points @ basis), np.float64)
                return np.delete(logits, label, axis=1).max(1) - logits[:, label]

            steps = 1e-5 * np.eye(len(z))
            normal = (gaps(z + steps) - gaps(z - steps)) / 2e-5
            cosine = z @ normal / np.linalg.norm(z) / np.linalg.norm(normal)
            np.testing.assert_allclose(measured.gap[r, n], gaps(z[None])[0], rtol=1e-9)
            np.testing.assert_allclose(measured.alignment[r, n], cosine, rtol=1e-6)
    assert (measured.gap > 0).all()
    assert (measured.alignment < 1 - 1e-6).any()


@pytest.mark.slow
def test_without_a_point_there_is_no_gap():
    pixel = subspaces.from_basis(np.eye(40, 1, -2), SHAPE)  # which the logits don't see
    found = hmt_jax.measure_margins(two_classes(), images_of_two_classes(), pixel, solvers.DeepFool())
    assert (found.status == Status.ZERO_GRADIENT).all()
    assert np.isinf(found.margin).all()
    assert np.isnan(found.gap).all()
    assert np.isnan(found.alignment).all()


# Lists of subspaces


@pytest.mark.slow
def test_subspaces_of_all_kinds_and_dimensions_are_measured_in_the_order_given(x64):
    """Each row is that of its subspace alone, without lanes; a class of one's own may be among them."""
    direction, settings = random_basis(40, 1), {"devices": jax.devices()[:1], "batch_size": 4}
    window, _, last = diagonal()
    mixed = [
        window,
        subspaces.from_basis(random_basis(40, 3), SHAPE),
        last,
        Line(jnp.asarray(direction.reshape(SHAPE))),
    ]
    images = IMAGES[:4]
    result = hmt_jax.measure_margins(
        tanh_classifier(), images, mixed, solvers.DeepFool(), keep_coordinates=True, **settings
    )
    assert result.margin.shape == (4, 4)
    assert [rows.shape for rows in result.coordinates] == [(4, 8), (4, 3), (4, 8), (4, 1)]
    assert len(set(result.margin.ravel().tolist())) == 16
    for r, subspace in enumerate(mixed):
        is_own = isinstance(subspace, Line)
        alone = solve_all(tanh_classifier(), images, subspaces.from_basis(direction, SHAPE) if is_own else subspace)
        assert_same(jax.tree.map(lambda leaf: leaf[None], alone), result, slice(r, r + 1))
        np.testing.assert_allclose(alone.coordinates, result.coordinates[r], rtol=1e-9, atol=1e-12)

    without = hmt_jax.measure_margins(tanh_classifier(), images, tuple(mixed[::-1]), solvers.DeepFool(), **settings)
    assert without.coordinates is None
    assert_same(without, result, slice(None, None, -1))


def test_a_single_subspace_is_a_list_of_one(measured, x64):
    result = hmt_jax.measure_margins(tanh_classifier(), IMAGES, diagonal()[1], solvers.DeepFool())
    assert result.margin.shape == (1, NUM_IMAGES)
    assert_same(result, measured, slice(1, 2))


# Batches, devices, and other images


@pytest.mark.slow
@pytest.mark.parametrize(("num_devices", "batch_size"), slow_except([(1, 1), (2, 64), (8, 2)], (8, 2)))
def test_batches_and_devices_do_not_matter(num_devices, batch_size, measured, x64):
    result = measure_tanh(devices=jax.devices()[:num_devices], batch_size=batch_size)
    assert_same(result, measured)
    assert result.work.num_lanes == min(batch_size, result.margin.size)


def test_the_order_of_the_images_does_not_matter(measured, x64):
    order = np.random.default_rng(1).permutation(NUM_IMAGES)
    assert_same(measure_tanh(IMAGES[order]), measured, columns=order)


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
def test_a_bad_image_disturbs_no_other(pixel, measured, x64):
    images = IMAGES.copy()
    images[3, 2, 1, 0] = pixel
    result = measure_tanh(images)
    assert (result.status[:, 3] == Status.NON_FINITE).all()
    assert np.isnan(result.margin[:, 3]).all()
    assert (result.label[:, 3] == -1).all()
    assert (result.adversarial_label[:, 3] == -1).all()
    others = np.arange(NUM_IMAGES) != 3
    for name in WHOLE_NUMBERS:
        np.testing.assert_array_equal(getattr(result, name)[:, others], getattr(measured, name)[:, others])
    np.testing.assert_allclose(result.margin[:, others], measured.margin[:, others], rtol=1e-10)


def test_images_that_are_all_bad_have_a_status_and_no_error(x64):
    assert (measure_tanh(np.full_like(IMAGES, np.nan)).status == Status.NON_FINITE).all()


# Steps


def test_progress_counts_pairs_and_work_counts_steps(measured, x64):
    calls = []
    result = measure_tanh(progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (3 * NUM_IMAGES, 3 * NUM_IMAGES)
    assert calls == sorted(calls)
    assert_same(result, measured)
    # A step a pair, and one for the linearization at each image.
    assert result.work.num_busy_lane_steps == measured.num_steps.sum() + NUM_IMAGES


def test_searches_stop_after_their_steps_and_the_longest_first_steps_go_on_first(measured, monkeypatch, x64):
    first_steps = measure_tanh(solver=solvers.DeepFool(max_steps=1))
    is_longer = measured.num_steps > 1
    np.testing.assert_array_equal(first_steps.status, np.where(is_longer, Status.OUT_OF_STEPS, Status.CONVERGED))
    np.testing.assert_array_equal(first_steps.num_steps, 1)
    missing = np.argwhere(is_longer).tolist()
    assert len(missing) > 5
    first = ", ".join(rf"\({r}, {n}\) OUT_OF_STEPS" for r, n in missing[:5])
    with pytest.raises(
        ValueError, match=rf"^{len(missing)} of 21 \(subspace, sample\) pairs have no margin; the first: {first}$"
    ):
        first_steps.raise_unless_converged()
    measured.raise_unless_converged()

    queues, solve = [], lanes.solve

    def recorded(method, data, items, **settings):
        queues.append(np.asarray(items)[np.asarray(items) >= 0])
        return solve(method, data, items, **settings)

    monkeypatch.setattr(lanes, "solve", recorded)
    measure_tanh()
    (queue,) = queues
    assert sorted(queue) == np.flatnonzero(is_longer).tolist()
    lengths = first_steps.margin.ravel()[queue]
    assert len(set(lengths)) > 3
    # Where two are equal but for rounding, either may be first.
    assert (np.diff(lengths) <= 1e-6 * lengths[:-1]).all()


# Precision


@pytest.mark.parametrize("is_x64_enabled", slow_except([False, True], True))
def test_float32_stays_float32(is_x64_enabled, measured):
    with jax.enable_x64(is_x64_enabled):
        result = hmt_jax.measure_margins(
            tanh_classifier(dtype="float32"),
            IMAGES.astype("float32"),
            diagonal(),
            solvers.DeepFool(),
            keep_coordinates=True,
            devices=jax.devices()[:1],
        )
    assert result.margin.dtype == "float32"
    assert {rows.dtype for rows in result.coordinates} == {np.dtype("float32")}
    # Not in float64 on the way either: rounding shows, at about 1e-6 for gaps between logits that are not small.
    error = np.abs(result.margin / measured.margin - 1)
    assert 1e-9 < error.max() < 1e-3


@pytest.mark.slow
def test_all_products_are_in_the_highest_precision(monkeypatch):
    """Also those of LeNet, whose layers have backward passes of their own, of a single margin, and of a bisection.

    Nothing is compiled or run: every program of the lanes is traced, and answers with zeros.
    """
    programs = []

    def trace(function, data, items):
        program, answer = jax.make_jaxpr(function, return_shape=True)(data, 0)
        programs.append(program)
        zeros = jax.tree.map(lambda leaf: np.zeros((len(items), *leaf.shape), leaf.dtype), answer)
        return zeros, lanes.Work(1, 1, 1)

    def trace_steps(method, data, items, **settings):
        return trace(lambda data, item: method.result(method.step(data, item, method.start(data, item))), data, items)

    monkeypatch.setattr(lanes, "evaluate", lambda function, data, items, **settings: trace(function, data, items))
    monkeypatch.setattr(lanes, "solve", trace_steps)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: None)
    shape = (12, 12, 1)
    classifier = random_network("lenet", shape, mean=[0.5], std=[0.5])
    window, images = subspaces.dct_window(shape, 0, 0, 2), random_images(1, *shape, dtype="float32")
    result = hmt_jax.measure_margins(classifier, images, window, solvers.DeepFool(), keep_coordinates=True)
    hmt_jax.bisect(classifier, images, window, result)
    programs.append(
        jax.make_jaxpr(lambda image: hmt_jax.measure_margin(classifier, image, window, solvers.DeepFool()))(images[0])
    )
    # The passes forward have three products, and those forward and backward eleven.
    forward, both = 3, 11
    num_products = [both, forward, both, both, forward, forward, both, 3 * both + forward]
    for least, program in zip(num_products, programs, strict=True):
        precisions = list(_precisions(program.jaxpr))
        assert len(precisions) >= least
        assert set(precisions) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize(
    "function",
    [
        frequency.flip,
        subspaces.dct_window(SHAPE, 0, 0, 2).coordinates,
        subspaces.from_basis(np.eye(40, 3), SHAPE).coordinates,
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


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "expected"), [({}, "highest"), ({"precision": "default"}, "default")])
def test_the_classifier_runs_in_the_precision_that_is_recorded(settings, expected):
    precisions = []

    def classifier(images):
        precisions.append(jax.config.jax_default_matmul_precision)
        return two_classes()(images)

    result = hmt_jax.measure_margins(
        classifier,
        images_of_two_classes(),
        subspaces.full(SHAPE),
        solvers.DeepFool(),
        devices=jax.devices()[:1],
        **settings,
    )
    assert result.precision == expected
    assert precisions
    assert set(precisions) == {expected}
    assert jax.config.jax_default_matmul_precision is None  # as it was


# Compilations


# How often the body of a classifier was traced.
TRACES = []


def counted_logits(parameters, images):
    TRACES.append(images.shape)
    return linear_logits(parameters, images)


@pytest.mark.slow
def test_all_windows_and_networks_of_a_kind_share_one_compilation():
    shape = (12, 12, 1)

    def measure(seed, window):
        rng = np.random.default_rng(seed)
        parameters = rng.normal(size=(10, math.prod(shape))), rng.normal(size=10)
        classifier = with_parameters(counted_logits, parameters, "float32")
        images = rng.uniform(size=(2, *shape)).astype(np.float32)
        return hmt_jax.measure_margins(classifier, images, window, solvers.DeepFool(), devices=jax.devices()[:1]).margin

    windows = subspaces.dct_diagonal(shape, size=4, step=1)
    first = measure(0, windows[0])
    num_traces = len(TRACES)
    assert num_traces > 0
    margins = [measure(0, window) for window in windows]
    assert len(TRACES) == num_traces
    # Data all the same: nothing of the first window or network was baked in.
    np.testing.assert_array_equal(margins[0], first)
    assert len({margin.tobytes() for margin in margins}) == len(windows) == 9
    other = measure(1, windows[0])
    assert len(TRACES) == num_traces
    assert not np.isclose(other, first).any()


@pytest.mark.slow
def test_networks_of_one_architecture_share_one_compilation(monkeypatch):
    """Those of LeNet, whose layers have backward passes of their own."""
    num_traces = 0
    call = models.LeNet.__call__

    def counted(self, images):
        nonlocal num_traces
        num_traces += 1
        return call(self, images)

    monkeypatch.setattr(models.LeNet, "__call__", counted)
    shape = (12, 12, 1)
    images, line = random_images(2, *shape, dtype="float32"), subspaces.dct_window(shape, 0, 0, 1)
    margins, counts = [], []
    for seed in range(2):
        network = random_network("lenet", shape, seed=seed, mean=[0.5], std=[0.5])
        margins.append(
            hmt_jax.measure_margins(network, images, line, solvers.DeepFool(), devices=jax.devices()[:1]).margin
        )
        counts.append(num_traces)
    assert counts[0] > 0
    assert counts[0] == counts[1]
    assert not np.isclose(margins[0], margins[1]).any()


def test_compilations_are_not_shared_between_functions():
    images = random_images(3, 1, 2, 1, dtype="float32")

    def make(scale):
        offset = jnp.array([scale, 0.0])
        return lambda images: images.reshape(len(images), -1) + offset[None]

    whole, one = subspaces.full((1, 2, 1)), jax.devices()[:1]
    near, far = (
        hmt_jax.measure_margins(make(scale), images, whole, solvers.DeepFool(), devices=one).margin[0]
        for scale in (2.0, 4.0)
    )
    for margins, scale in ((near, 2), (far, 4)):
        expected = 1.02 * (images[:, 0, 0, 0] + scale - images[:, 0, 1, 0]) / np.sqrt(2)
        np.testing.assert_allclose(margins, expected, rtol=1e-5)
