"""Solvers as users write them: what the driver makes of them, and what it says of those that break the rules."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import (
    SHAPE,
    WHOLE_NUMBERS,
    distances_of_two_classes,
    images_of_two_classes,
    measure_two,
    two_classes,
)
from helpers import linear_logits, random_images

import hmt_jax
from hmt_jax import Status, solvers, statistics, subspaces
from hmt_jax.solvers import Point, label_of

WHOLE = subspaces.full(SHAPE)


@dataclasses.dataclass(frozen=True)
class StraightAhead:
    """Along the first-order direction, twice as far in every step, until the label changes."""

    num_candidates: int = 2
    max_steps: int = 20

    def start(self, restriction, at_sample):
        logits, (label, other), (normal,) = at_sample
        z = (logits[label] - logits[other]) / (normal @ normal) * normal
        return Point(z, label_of(restriction(z))), label

    def step(self, restriction, state):
        (z, _), label = state
        return Point(2 * z, label_of(restriction(2 * z))), label

    def done(self, state):
        return state[0].label != state[1]

    def point(self, state):
        return state[0]


def assert_alone(result, classifier, images, solver):
    """Single images have the same solutions, statuses that are no margins included."""
    alone = jax.vmap(lambda image: hmt_jax.measure_margin(classifier, image, WHOLE, solver))(images)
    for name in WHOLE_NUMBERS:
        np.testing.assert_array_equal(getattr(result, name)[0], getattr(alone, name), err_msg=name)
    for name in ("margin", "gap", "alignment"):
        np.testing.assert_allclose(getattr(result, name)[0], getattr(alone, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_solver_of_ones_own_finds_the_boundary_of_a_linear_classifier():
    images = images_of_two_classes(7)
    found = measure_two(images, StraightAhead(), keep_coordinates=True)
    distances, pixels = distances_of_two_classes(images), images.reshape(7, -1)
    assert found.is_converged.all()
    np.testing.assert_array_equal(found.label[0], pixels[:, 1] > pixels[:, 0] / 2)
    np.testing.assert_array_equal(found.adversarial_label, 1 - found.label)
    # The first step ends on the boundary, where rounding decides whether there is a second one.
    np.testing.assert_allclose(found.margin[0], found.num_steps[0] * distances, rtol=1e-5)
    assert set(found.num_steps.ravel().tolist()) <= {1, 2}
    np.testing.assert_allclose(np.linalg.norm(found.coordinates[0], axis=1), found.margin[0], rtol=1e-6)
    np.testing.assert_allclose(found.alignment, 1, rtol=1e-6)
    assert found.solver == "StraightAhead(num_candidates=2, max_steps=20)"
    assert_alone(found, two_classes(), images, StraightAhead())
    closer = hmt_jax.bisect(two_classes(), images, WHOLE, found, devices=jax.devices()[:1])
    np.testing.assert_allclose(closer.margin[0], distances, rtol=2e-3)  # 2^-9


def with_nan(images):
    images = images.copy()
    images[2, 3, 0, 1] = np.nan
    return images


@pytest.mark.slow
def test_a_constant_classifier_has_no_boundary():
    """Gradients are zero: 0 / 0, if a solver does not care."""
    images = with_nan(images_of_two_classes())
    weights, _ = two_classes().args[0]
    constant = jax.tree_util.Partial(linear_logits, (0 * weights, np.array([1, 3], np.float32)))
    found = hmt_jax.measure_margins(constant, images, WHOLE, StraightAhead(), devices=jax.devices()[:1])
    others = [0, 1, 3]
    assert (found.status[0, others] == Status.ZERO_GRADIENT).all()
    assert (found.margin[0, others] == np.inf).all()
    assert (found.label[0, others] == 1).all()
    assert (found.adversarial_label[0, others] == 1).all()
    assert np.isnan(found.gap).all()
    assert np.isnan(found.alignment).all()
    assert_no_label(found, 2)
    assert_alone(found, constant, images, StraightAhead())


def assert_no_label(found, n):
    assert found.status[0, n] == Status.NON_FINITE
    assert found.label[0, n] == found.adversarial_label[0, n] == -1
    assert np.isnan([found.margin[0, n], found.gap[0, n], found.alignment[0, n]]).all()


def test_an_image_with_a_nan_has_no_label_and_no_margin():
    images = images_of_two_classes()
    whole, found = (measure_two(each, StraightAhead()) for each in (images, with_nan(images)))
    assert_no_label(found, 2)
    others = [0, 1, 3]
    np.testing.assert_array_equal(found.margin[0, others], whole.margin[0, others])
    assert found.is_converged[0, others].all()


def test_a_classifier_that_is_nan_beyond_some_point_has_no_margin_there():
    """The boundary is at 0.5, and beyond 0.6 the logits are NaN: one search steps over what is between them."""

    def logits(edge, images):
        pixel = images[:, 0, 0, 0]
        return jnp.stack([0.5 - pixel, jnp.where(pixel > edge, jnp.nan, 0)], axis=1)

    classifier = jax.tree_util.Partial(logits, np.float32(0.6))
    images, line = np.array([0.1, 0.45], np.float32).reshape(2, 1, 1, 1), subspaces.full((1, 1, 1))

    @dataclasses.dataclass(frozen=True)
    class TooFar(StraightAhead):
        """Begins at three quarters of the distance, so that the second step goes half as far again as the boundary."""

        def start(self, restriction, at_sample):
            point, label = super().start(restriction, at_sample)
            z = 0.75 * point.z
            return Point(z, label_of(restriction(z))), label

    found = hmt_jax.measure_margins(classifier, images, line, TooFar(), devices=jax.devices()[:1])
    # From 0.1 to 0.4 and 0.7, and from 0.45 to 0.4875 and 0.525.
    assert found.status[0].tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert found.num_steps[0].tolist() == [2, 2]
    assert found.label[0].tolist() == [0, 0]
    assert found.adversarial_label[0].tolist() == [0, 1]
    np.testing.assert_allclose(found.margin[0], [np.nan, 0.075], rtol=1e-5)
    assert np.isnan(found.gap[0, 0])


# Searches that find nothing, and what states may hold


@dataclasses.dataclass(frozen=True)
class Endless:
    """Goes on for ever, by a random number a step; `change` is what a user got wrong."""

    num_candidates: int = 2
    max_steps: int = 7
    change: Callable[[Any], Any] = lambda state: state

    def start(self, restriction, at_sample):
        z = jnp.zeros_like(at_sample.normals[0])
        return {"z": z, "key": jax.random.key(0), "num_steps": jnp.int32(0), "label": at_sample.candidates[0]}

    def step(self, restriction, state):
        key, noise_key = jax.random.split(state["key"])
        noise = jax.random.uniform(noise_key)
        step = {"z": state["z"].at[0].add(noise), "key": key, "num_steps": state["num_steps"] + 1}
        return self.change(state | step)

    def done(self, state):
        return False

    def point(self, state):
        return Point(state["z"], state["label"])


def test_a_solver_that_is_never_done_is_stopped_and_may_hold_a_random_key():
    images = images_of_two_classes()
    found = measure_two(images, Endless())
    assert (found.status == Status.OUT_OF_STEPS).all()
    assert (found.num_steps == 7).all()  # the start and six steps
    np.testing.assert_array_equal(found.adversarial_label, found.label)
    key, total = jax.random.key(0), 0
    for _ in range(6):
        key, noise_key = jax.random.split(key)
        total += jax.random.uniform(noise_key)
    np.testing.assert_allclose(found.margin, np.full((1, 4), total), rtol=1e-6)
    assert_alone(found, two_classes(), images, Endless())


@dataclasses.dataclass(frozen=True)
class Guess:
    """Random directions of one length, without gradients; the keys are in the state, of another kind than usual."""

    length: float = 1.0
    num_candidates: int = 1
    max_steps: int = 100

    def start(self, restriction, at_sample):
        assert at_sample.normals.shape[0] == 0
        z = jnp.zeros(at_sample.normals.shape[1], at_sample.normals.dtype)
        return jax.random.key(1, impl="rbg"), Point(z, at_sample.candidates[0]), at_sample.candidates[0]

    def step(self, restriction, state):
        key, _, label = state
        key, direction_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, state[1].z.shape, state[1].z.dtype)
        z = self.length * direction / jnp.linalg.norm(direction)
        return key, Point(z, label_of(restriction(z))), label

    def done(self, state):
        return state[1].label != state[2]

    def point(self, state):
        return state[1]


def test_a_solver_needs_no_gradients():
    images = random_images(5, 1, 2, 1, dtype="float32")
    plane = subspaces.full((1, 2, 1))
    classifier = jax.tree_util.Partial(linear_logits, (np.eye(2, dtype=np.float32), np.zeros(2, np.float32)))
    found = hmt_jax.measure_margins(classifier, images, plane, Guess(), keep_coordinates=True)
    assert found.is_converged.all()
    assert found.num_steps.max() > found.num_steps.min() >= 2
    np.testing.assert_allclose(found.margin, 1, rtol=1e-6)
    ends = images.reshape(5, 2) + found.coordinates[0]
    np.testing.assert_array_equal(found.adversarial_label[0], ends.argmax(1))
    np.testing.assert_array_equal(found.label[0], images.reshape(5, 2).argmax(1))


def test_a_solver_that_stands_still_has_no_direction():
    found = measure_two(images_of_two_classes(), Endless(change=lambda state: state | {"z": 0 * state["z"]}))
    assert (found.status == Status.OUT_OF_STEPS).all()  # its key moves on

    @dataclasses.dataclass(frozen=True)
    class Still(Endless):
        def step(self, restriction, state):
            return state

    found = measure_two(images_of_two_classes(), Still(max_steps=50))
    assert (found.status == Status.ZERO_GRADIENT).all()
    assert (found.margin == np.inf).all()
    assert (found.num_steps == 2).all()


def test_a_label_change_that_is_not_found_again_is_no_margin():
    """The solver lies: the point that it names has the label of the sample."""

    @dataclasses.dataclass(frozen=True)
    class Liar(StraightAhead):
        def start(self, restriction, at_sample):
            point, label = super().start(restriction, at_sample)
            return Point(point.z / 2, 1 - label), label

    images = images_of_two_classes()
    found = measure_two(images, Liar())
    assert (found.status == Status.UNCONFIRMED).all()
    assert (found.gap < 0).all()
    np.testing.assert_array_equal(found.adversarial_label, found.label)
    np.testing.assert_allclose(found.margin[0], distances_of_two_classes(images) / 2, rtol=1e-5)
    assert np.isinf(statistics.censored_margins(found)).all()
    with pytest.raises(ValueError, match=r"4 of 4 .* the first: \(0, 0\) UNCONFIRMED"):
        found.raise_unless_converged()
    assert_alone(found, two_classes(), images, Liar())


# Solvers that break the rules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"z": state["z"].astype(jnp.float16)},
            r"^step of Endless must keep the shapes and dtypes of its state, but state\['z'\] is float32\[40\] after "
            r"start and float16\[40\] after step: make it the same in both",
        ),
        (
            lambda state: state | {"z": state["z"][:3]},
            r"but state\['z'\] is float32\[40\] after start and float32\[3\] after step: make it the same in both",
        ),
        (
            lambda state: state | {"key": jax.random.key_data(state["key"])},
            r"but state\['key'\] is key<fry>\[\] after start and uint32\[2\] after step: make it the same in both",
        ),
        (
            lambda state: state | {"more": 0},
            r"^step of Endless must return a state of the structure that start returns, .*, got ",
        ),
    ],
    ids=["dtype", "shape", "key", "structure"],
)
def test_a_state_keeps_its_types(change, message):
    with pytest.raises(TypeError, match=message):
        measure_two(images_of_two_classes(), Endless(change=change))


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("done", lambda found: jnp.zeros(1, bool), r"^done of Endless must return a single bool, got bool\[1\]"),
        ("done", lambda found: 0.5, r"^done of Endless must return a single bool, got float32\[\]"),
        ("done", lambda found: 1, r"^done of Endless must return a single bool, got int32\[\]"),
        ("point", tuple, r"^point of Endless must return a hmt_jax\.solvers\.Point, got tuple"),
        ("point", lambda found: found.z, r"^point of Endless must return a hmt_jax\.solvers\.Point, got "),
        (
            "point",
            lambda found: found._replace(z=found.z[0]),
            r"^point of Endless must have coordinates \(d,\) as z, got float32\[\]",
        ),
        (
            "point",
            lambda found: found._replace(z=jnp.zeros(40, int)),
            r"^point of Endless must have coordinates \(d,\) as z, got int32\[40\]",
        ),
        (
            "point",
            lambda found: found._replace(label=0.0),
            r"^point of Endless must have a single whole number as label, got float32\[\]",
        ),
        (
            "point",
            lambda found: found._replace(label=jnp.zeros(2, int)),
            r"^point of Endless must have a single whole number as label, got int32\[2\]",
        ),
    ],
)
def test_answers_of_a_solver_have_the_types_that_are_expected(method, answer, message):
    class Wrong(Endless):
        pass

    Wrong.__name__ = "Endless"
    right = getattr(Endless, method)
    setattr(Wrong, method, lambda self, state: answer(right(self, state)))
    with pytest.raises(TypeError, match=message):
        measure_two(images_of_two_classes(), Wrong())
    with pytest.raises(TypeError, match=message):
        hmt_jax.measure_margin(two_classes(), images_of_two_classes()[0], WHOLE, Wrong())


@pytest.mark.parametrize("number", ["num_candidates", "max_steps"])
@pytest.mark.parametrize("wrong", [0, -1, 2.5, "3", None])
def test_numbers_of_a_solver_are_whole_and_positive(number, wrong):
    message = rf"^{number} of solver Endless must be a whole number from 1 on, in int32, got {wrong!r}$"
    with pytest.raises(TypeError, match=message):
        measure_two(images_of_two_classes(), Endless(**{number: wrong}))


def without(name):
    """A solver that lacks an attribute."""
    names = ("start", "step", "done", "point", "num_candidates", "max_steps")
    return type("Half", (), {each: getattr(Endless, each) for each in names if each != name})()


@pytest.mark.parametrize("name", ["start", "step", "done", "point", "num_candidates", "max_steps"])
def test_what_a_solver_lacks_is_named(name):
    message = (
        rf"^solver Half has no {name}: a solver has num_candidates, max_steps, start, step, done, point, as "
        r"hmt_jax\.solvers describes$"
    )
    with pytest.raises(TypeError, match=message):
        measure_two(images_of_two_classes(), without(name))
    with pytest.raises(TypeError, match=message):
        hmt_jax.measure_margin(two_classes(), images_of_two_classes()[0], WHOLE, without(name))


def test_a_solver_is_hashable():
    @dataclasses.dataclass
    class Thawed:
        num_candidates: int = 2
        max_steps: int = 2
        start, step, done, point = Endless.start, Endless.step, Endless.done, Endless.point

    with pytest.raises(
        TypeError, match=r"^solver Thawed must be hashable: decorate its class with dataclasses\.dataclass\(frozen="
    ):
        measure_two(images_of_two_classes(), Thawed())


@pytest.mark.parametrize(
    "solver", [solvers.tight, "tight", solvers.DeepFool, None], ids=["function", "text", "class", "none"]
)
def test_what_is_no_solver_is_refused(solver):
    with pytest.raises(
        TypeError, match=r"^solver must be a solver such as hmt_jax\.solvers\.tight\('fast'\), with its parentheses, "
    ):
        measure_two(images_of_two_classes(), solver)


def test_errors_of_a_solver_pass_through():
    with pytest.raises(ValueError, match=r"^Scan is for subspaces of 1 or 2 dimensions, got 40; use another solver"):
        measure_two(images_of_two_classes(), solvers.Scan(reach=1.0, resolution=0.1))
