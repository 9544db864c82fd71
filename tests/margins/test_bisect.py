"""Bisections of the way to the point found: closed forms, and results of other images and classifiers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import (
    ARRAYS,
    NUM_PIXELS,
    SHAPE,
    diagonal,
    distances_of_two_classes,
    images_of_two_classes,
    measure_two,
    two_classes,
)
from helpers import Line, linear_logits, random_basis, random_images, random_network, with_parameters

import hmt_jax
from hmt_jax import Status, solvers, subspaces
from hmt_jax.margins import _sizes
from hmt_jax.solvers import DeepFool

WHOLE = subspaces.full(SHAPE)
ONE = jax.devices()[:1]


def bisect_two(images, result, **settings):
    return hmt_jax.bisect(two_classes(), images, WHOLE, result, **{"devices": ONE} | settings)


def refused():
    message = "do not change what this classifier says of these images: measure them with this classifier, on the same"
    return pytest.raises(ValueError, match=message)


@pytest.fixture(scope="module")
def measured():
    """Four images at distances d from the boundary, with points found at 1.5 d."""
    return measure_two(images_of_two_classes(), DeepFool(overshoot=0.5), keep_coordinates=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [0, 1, 2, 10])
def test_the_margin_of_a_plane_is_the_nearest_point_of_a_grid_behind_it(num_steps, measured):
    images = images_of_two_classes()
    distances = distances_of_two_classes(images)
    result = bisect_two(images, measured, num_steps=num_steps)
    # The boundary is at 2/3 of the way. The part that is left is a multiple of 2^-num_steps.
    part = np.ceil(2 / 3 * 2**num_steps) / 2**num_steps
    np.testing.assert_allclose(result.margin[0], part * 1.5 * distances, rtol=1e-5)
    np.testing.assert_allclose(result.coordinates[0], part * measured.coordinates[0], rtol=1e-6)
    # The gap is how far behind the boundary that is, by the slope of the logits.
    np.testing.assert_allclose(
        result.gap[0], (1.5 * part - 1) * distances * np.sqrt(1.25), rtol=1e-3 * 2**num_steps, atol=1e-6
    )
    np.testing.assert_allclose(result.alignment, 1, rtol=1e-6)
    for name in ("label", "adversarial_label", "status", "num_steps"):
        np.testing.assert_array_equal(getattr(result, name), getattr(measured, name))
    assert (result.solver, result.precision) == (measured.solver, measured.precision)
    # A pair takes a look at the point that is known, and the steps.
    assert result.work.num_busy_lane_steps == measured.work.num_busy_lane_steps + 4 * (1 + num_steps)


@pytest.mark.slow
def test_the_label_is_that_at_the_point_that_is_left():
    """Along the ray from each sample there are three classes, and the solver leaps into the third one."""

    def logits(edges, images):
        pixel = images[:, 0, 0, 0]
        return jnp.stack([edges[0] - pixel, 0 * pixel, pixel - edges[1]], axis=1)

    classifier = jax.tree_util.Partial(logits, np.array([0.5, 1.0], np.float32))
    images, line = np.array([0.1, 0.3], np.float32).reshape(2, 1, 1, 1), subspaces.full((1, 1, 1))
    found = hmt_jax.measure_margins(classifier, images, line, DeepFool(overshoot=3), keep_coordinates=True, devices=ONE)
    assert found.adversarial_label.tolist() == [[2, 2]]
    np.testing.assert_allclose(found.margin, [[1.6, 0.8]], rtol=1e-5)
    closer = hmt_jax.bisect(classifier, images, line, found, num_steps=1, devices=ONE)
    assert closer.adversarial_label.tolist() == [[1, 1]]
    np.testing.assert_allclose(closer.margin, [[0.8, 0.4]], rtol=1e-5)
    closer = hmt_jax.bisect(classifier, images, line, found, num_steps=20, devices=ONE)
    assert closer.adversarial_label.tolist() == [[1, 1]]
    np.testing.assert_allclose(closer.margin, [[0.4, 0.2]], rtol=1e-5)


def test_pairs_without_a_margin_stay_as_they_are(measured):
    images = images_of_two_classes()
    images[1, 2, 3, 0] = np.nan
    arrays = {name: getattr(measured, name).copy() for name in ("margin", "status", "label", "adversarial_label")}
    for name, values in {
        "margin": [np.nan, 0.7],
        "status": [Status.NON_FINITE, Status.OUT_OF_STEPS],
        "label": [-1, measured.label[0, 2]],
        "adversarial_label": [-1, measured.label[0, 2]],
    }.items():
        arrays[name][0, 1:3] = values
    before = dataclasses.replace(measured, **arrays)
    after = bisect_two(images, before)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(after, name)[:, 1:3], getattr(before, name)[:, 1:3])
    np.testing.assert_array_equal(after.coordinates[0][1:3], before.coordinates[0][1:3])
    expected = distances_of_two_classes(images)[[0, 3]]
    np.testing.assert_allclose(after.margin[0, [0, 3]], expected, rtol=2e-3)  # 1.5 / 2^10

    # Where there is none at all, nothing is compiled.
    none = dataclasses.replace(measured, status=np.full_like(measured.status, Status.OUT_OF_STEPS))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(bisect_two(images, none), name), getattr(none, name))


@pytest.mark.slow
def test_margins_go_to_their_pairs_in_every_chunk(monkeypatch):
    """In subspaces of several kinds, one after the other; images as an array, a stream, and 8 bits."""
    monkeypatch.setattr(_sizes, "_ON_CPU", _sizes._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    settings = {"devices": ONE, "batch_size": 9}  # three images at a time
    pixels = (256 * random_images(7, *SHAPE, seed=7)).astype(np.uint8)
    images = pixels.astype(np.float32) / 255
    classifier = random_network("mlp", SHAPE, mean=[0.5, 0.4], std=[0.5, 0.6])
    window, _, last = diagonal()
    mixed = [window, Line(jnp.asarray(random_basis(NUM_PIXELS, 1).reshape(SHAPE), jnp.float32)), last]
    found = hmt_jax.measure_margins(classifier, images, mixed, DeepFool(), keep_coordinates=True, **settings)
    assert found.is_converged.sum() > 15
    closer = hmt_jax.bisect(classifier, images, mixed, found, **settings)
    assert (closer.margin[found.is_converged] < 0.99 * found.margin[found.is_converged]).any()

    # The label changes in the last part of the way, which is not halved any more.
    for r, subspace in enumerate(mixed):
        is_found = found.is_converged[r]
        directions = np.asarray(jax.vmap(subspace.embed)(found.coordinates[r][is_found]))
        parts = closer.margin[r, is_found] / found.margin[r, is_found]
        for ends, is_changed in ((parts, True), (parts - 2**-10, False)):
            points = images[is_found] + ends[:, None, None, None] * directions
            labels = np.argmax(classifier(points), axis=1)
            np.testing.assert_array_equal(labels != found.label[r, is_found], is_changed)
            if is_changed:
                np.testing.assert_array_equal(labels, closer.adversarial_label[r, is_found])

    for given in (iter([images[:1], images[1:5], images[5:]]), pixels):
        again = hmt_jax.bisect(classifier, given, mixed, found, **settings)
        np.testing.assert_allclose(again.margin, closer.margin, rtol=1e-5)
        np.testing.assert_array_equal(again.adversarial_label, closer.adversarial_label)


def test_margins_that_are_known_may_be_the_best_of_two(measured):
    """Results of two solvers for the same pairs; none grows."""
    images = images_of_two_classes()
    exact = measure_two(images, solvers.Linear(), keep_coordinates=True)
    np.testing.assert_allclose(exact.margin[0], distances_of_two_classes(images), rtol=1e-5)
    best = measured.best_of(exact)
    np.testing.assert_array_equal(best.margin, exact.margin)
    closer = bisect_two(images, best, num_steps=3)
    np.testing.assert_array_equal(closer.margin, best.margin)  # nothing nearer has another label


# Results that do not fit


def test_results_are_of_the_same_pairs(measured):
    images = images_of_two_classes()
    without = dataclasses.replace(measured, coordinates=None)
    with pytest.raises(
        ValueError, match=r"^result was measured without coordinates: measure it with keep_coordinates=True$"
    ):
        bisect_two(images, without)
    for fewer in (images[:3], iter([images[:3]])):
        with pytest.raises(ValueError, match=r"^result holds margins of 4 images, but images holds 3$"):
            bisect_two(fewer, measured)
    with pytest.raises(ValueError, match=r"^result holds margins of 4 images, but images holds "):
        bisect_two(iter([images, images[:1]]), measured)
    for others, dimensions in ((subspaces.dct_window(SHAPE, 0, 0, 2), r"\[8\]"), ([WHOLE, WHOLE], r"\[40, 40\]")):
        with pytest.raises(
            ValueError,
            match=rf"^result must hold margins in the same subspaces, of dimensions {dimensions}, got \[40\]$",
        ):
            hmt_jax.bisect(two_classes(), images, others, measured)
    with pytest.raises(TypeError, match=r"^result must be a MarginResult of measure_margins, got ndarray$"):
        bisect_two(images, measured.margin)
    with pytest.raises(ValueError, match=r"^num_steps must be at least 0, got -1$"):
        bisect_two(images, measured, num_steps=-1)


def test_results_are_of_the_same_classifier_and_images(measured):
    images = images_of_two_classes()
    for classifier, changed in ((two_classes(), images[::-1]), (two_classes(bias=1.0), images)):
        with refused():
            hmt_jax.bisect(classifier, changed, WHOLE, measured, devices=ONE)


def test_a_label_that_rounding_decides_may_be_the_other_one(measured):
    """Another precision may have chosen it where logits are equal but for rounding: the margin is zero."""
    images = images_of_two_classes()
    images[0, 0, 0] = 0.802, 0.4  # logits of 0.401 and 0.4; those of the other images are tenths apart
    found = measure_two(images, keep_coordinates=True)
    assert found.label.tolist() == [[0, 1, 1, 1]]
    coordinates = found.coordinates[0].copy()
    arrays = {name: getattr(found, name).copy() for name in ("label", "adversarial_label", "margin")}
    for name, value in (("label", 1), ("adversarial_label", 0), ("margin", 0)):
        arrays[name][0, 0] = value
    coordinates[0] = 0
    closer = bisect_two(images, dataclasses.replace(found, **arrays, coordinates=[coordinates]))
    assert (closer.label[0, 0], closer.adversarial_label[0, 0], closer.margin[0, 0]) == (1, 0, 0)
    np.testing.assert_allclose(closer.margin[0, 1:], distances_of_two_classes(images)[1:], rtol=2e-3)


def test_results_are_checked_beside_a_class_that_is_ruled_out():
    """By a logit of -1e9, which is no scale of the others."""
    images = images_of_two_classes()
    weights, _ = two_classes().args[0]
    weights = np.vstack([weights, np.zeros((1, NUM_PIXELS), np.float32)])
    classifiers = [
        with_parameters(linear_logits, (weights, np.array([0, bias, -1e9])), "float32") for bias in (0.0, 1.0)
    ]
    known = hmt_jax.measure_margins(classifiers[0], images, WHOLE, solvers.Linear(), keep_coordinates=True, devices=ONE)
    again = hmt_jax.bisect(classifiers[0], images, WHOLE, known, devices=ONE)
    np.testing.assert_array_equal(again.margin, known.margin)
    with refused():
        hmt_jax.bisect(classifiers[1], images, WHOLE, known, devices=ONE)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [solvers.Linear(), DeepFool(overshoot=0.0)], ids=["exact", "DeepFool"])
def test_points_on_the_boundary_of_two_classes_are_right(solver):
    """All logits are equal there but for rounding, and zero if they are (0, logit)."""

    def binary(offset, images):
        logit = images[:, :, :, 0].mean((1, 2)) - 0.5
        return jnp.stack([offset + 0 * logit, offset + logit], axis=1)

    images = random_images(20, *SHAPE, dtype="float32")
    for offset in (0.0, 1000.0):
        classifier = jax.tree_util.Partial(binary, np.float32(offset))
        known = hmt_jax.measure_margins(classifier, images, WHOLE, solver, keep_coordinates=True, devices=ONE)
        closer = hmt_jax.bisect(classifier, images, WHOLE, known, num_steps=20, devices=ONE)
        again = hmt_jax.bisect(classifier, images, WHOLE, closer, num_steps=20, devices=ONE)
        assert (closer.margin <= known.margin).all()
        assert (again.margin <= closer.margin).all()
        with refused():
            hmt_jax.bisect(classifier, images[::-1], WHOLE, known, devices=ONE)


@pytest.mark.slow
def test_a_class_that_is_ruled_out_changes_no_margin():
    """In all passes a logit of -inf is as if the class were not there."""

    def with_a_third(parameters, images):
        return jnp.insert(linear_logits(parameters, images), 1, -jnp.inf, axis=1)

    images = images_of_two_classes()
    two, three = two_classes(), jax.tree_util.Partial(with_a_third, two_classes().args[0])
    expected, found = (
        hmt_jax.measure_margins(classifier, images, WHOLE, DeepFool(), keep_coordinates=True, devices=ONE)
        for classifier in (two, three)
    )
    closer = hmt_jax.bisect(three, images, WHOLE, found, num_steps=3, devices=ONE)
    exact = hmt_jax.measure_margins(three, images, WHOLE, solvers.Linear(), devices=ONE)
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.gap, expected.gap)
    np.testing.assert_array_equal(found.label, 2 * expected.label)
    np.testing.assert_array_equal(closer.margin, bisect_two(images, expected, num_steps=3).margin)
    np.testing.assert_allclose(exact.margin[0], distances_of_two_classes(images), rtol=1e-5)
