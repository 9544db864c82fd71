"""DeepFool against closed forms of linear classifiers and a NumPy loop, and what it says when there is no margin."""

from functools import partial
from typing import NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    linear_logits,
    slow_except,
    solve_all,
    tanh_classifier,
    tanh_logits,
    tanh_parameters,
    with_parameters,
)

import hmt_jax
from hmt_jax import Status, solvers, subspaces
from hmt_jax.solvers import DeepFool

SHAPE = (4, 5, 2)
NUM_PIXELS = 40

# A few dozen float64 roundings, amplified where a gap between logits is small.
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}

linear_parameters = partial(helpers.linear_parameters, num_pixels=NUM_PIXELS)
random_basis = partial(helpers.random_basis, NUM_PIXELS)


def random_images(seed=0, num_images=6):
    return helpers.random_images(num_images, *SHAPE, seed=seed)


def window():
    return subspaces.dct_window(SHAPE, row=1, column=2, size=3)


def span():
    return subspaces.from_basis(random_basis(7), SHAPE)


# Name: an orthonormal basis of the subspace.
BASES = {
    "window": lambda: helpers.window_basis(SHAPE, row=1, column=2, size=3),
    "random": lambda: random_basis(7),
    "full": lambda: np.eye(NUM_PIXELS),
}


def projector(name):
    """The orthogonal projector onto a subspace or, for names that begin with "complement of", off it."""
    basis = BASES[name.removeprefix("complement of ")]()
    return np.eye(NUM_PIXELS) - basis @ basis.T if name.startswith("complement of ") else basis @ basis.T


SUBSPACES = {
    "window": window,
    "random": span,
    "complement of random": lambda: subspaces.orthogonal_complement(span()),
    "complement of window": lambda: subspaces.orthogonal_complement(window()),
    "full": lambda: subspaces.full(SHAPE),
}


def embed_all(subspace, coordinates):
    return np.asarray(jax.vmap(subspace.embed)(coordinates)).reshape(len(coordinates), -1)


@pytest.mark.parametrize(
    ("name", "num_classes", "dtype"),
    slow_except(
        [
            *(
                (name, num_classes, dtype)
                for name in SUBSPACES
                for num_classes, dtype in ((3, "float32"), (10, "float64"))
            ),
            *(("window", 2, "float64"), ("window", 10, "float32")),  # what subspaces have no part in
        ],
        ("window", 10, "float64"),
        ("window", 10, "float32"),
    ),
)
def test_linear_classifiers_have_margins_in_closed_form(name, num_classes, dtype):
    check_linear(name, num_classes, 10, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [2, 4])
def test_only_candidates_are_moved_towards(num_candidates):
    check_linear("window", 10, num_candidates, "float64")


def check_linear(name, num_classes, num_candidates, dtype):
    weights, biases = linear_parameters(num_classes)
    images, onto = random_images(), projector(name)
    with jax.enable_x64(dtype == "float64"):
        subspace = SUBSPACES[name]()
        classifier = with_parameters(linear_logits, (weights, biases))
        solution = solve_all(classifier, images, subspace, DeepFool(num_candidates=num_candidates))
        perturbations = embed_all(subspace, solution.coordinates)
    assert solution.margin.dtype == dtype
    # In float32 the gaps between logits, of the order of 1, are differences of numbers up to 30.
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if dtype == "float32" else FLOAT64

    for n, image in enumerate(images):
        logits = weights @ image.ravel() + biases
        label, *others = np.argsort(-logits)[:num_candidates]
        normals = {k: onto @ (weights[k] - weights[label]) for k in others}
        distances = {k: (logits[label] - logits[k]) / np.linalg.norm(normals[k]) for k in others}
        nearest = min(distances, key=distances.get)
        expected = 1.02 * distances[nearest] * normals[nearest] / np.linalg.norm(normals[nearest])
        np.testing.assert_allclose(solution.margin[n], 1.02 * distances[nearest], **tolerance)
        np.testing.assert_allclose(perturbations[n], expected, **tolerance)
        assert solution.label[n] == label
        assert solution.adversarial_label[n] == np.argmax(logits + weights @ expected) != label
        assert solution.num_steps[n] == 1
        assert solution.status[n] == Status.CONVERGED


def numpy_tanh(parameters, pixels):
    """Logits and their Jacobian, by hand."""
    first, first_bias, second, second_bias = parameters
    hidden = np.tanh(first @ pixels + first_bias)
    return second @ hidden + second_bias, second @ ((1 - hidden**2)[:, None] * first)


class NumpySolution(NamedTuple):
    perturbation: np.ndarray
    margin: float
    num_steps: int
    label: int
    adversarial_label: int


def numpy_deepfool(parameters, image, basis, num_candidates=10, overshoot=0.02, max_steps=100):
    """The steps in the docstring of `DeepFool`, one sample and one candidate at a time."""
    pixels = image.ravel()
    label, *others = np.argsort(-numpy_tanh(parameters, pixels)[0])[:num_candidates]
    adversarial_label, num_steps, z = label, 0, np.zeros(basis.shape[1])
    while adversarial_label == label and num_steps < max_steps:
        logits, jacobian = numpy_tanh(parameters, pixels + basis @ z)
        nearest, direction = np.inf, None
        for k in others:
            normal = basis.T @ (jacobian[k] - jacobian[label])
            distance = abs(logits[k] - logits[label]) / np.linalg.norm(normal)
            if distance < nearest:
                nearest, direction = distance, normal / np.linalg.norm(normal)
        z = z + max(nearest, 1e-4) * direction
        num_steps += 1
        adversarial_label = np.argmax(numpy_tanh(parameters, pixels + (1 + overshoot) * basis @ z)[0])
    perturbation = (1 + overshoot) * basis @ z
    return NumpySolution(perturbation, np.linalg.norm(perturbation), num_steps, label, adversarial_label)


@pytest.mark.parametrize(
    ("name", "settings"),
    slow_except(
        [
            ("window", {}),
            ("random", {}),
            ("full", {}),
            ("window", {"num_candidates": 2}),
            ("random", {"num_candidates": 3, "overshoot": 0.5}),
            ("window", {"overshoot": 0.0}),
            ("random", {"max_steps": 1}),
            ("full", {"max_steps": 2}),
        ],
        ("window", {}),
        ("random", {"num_candidates": 3, "overshoot": 0.5}),
    ),
    ids=str,
)
def test_curved_boundaries_agree_with_a_numpy_loop(name, settings, x64):
    parameters, images, basis = tanh_parameters(), random_images(1, num_images=16), BASES[name]()
    subspace = SUBSPACES[name]()
    solution = solve_all(tanh_classifier(parameters), images, subspace, DeepFool(**settings))
    perturbations = embed_all(subspace, solution.coordinates)
    expected = [numpy_deepfool(parameters, image, basis, **settings) for image in images]
    for n, one in enumerate(expected):
        assert solution.num_steps[n] == one.num_steps
        assert solution.label[n] == one.label
        assert solution.adversarial_label[n] == one.adversarial_label
        has_margin = one.adversarial_label != one.label
        assert solution.status[n] == (Status.CONVERGED if has_margin else Status.OUT_OF_STEPS)
        np.testing.assert_allclose(solution.margin[n], one.margin, **FLOAT64)
        np.testing.assert_allclose(perturbations[n], one.perturbation, **FLOAT64)
        assert one.margin > 0
    # The network is curved enough for the comparison to say something.
    most_steps = max(one.num_steps for one in expected)
    assert most_steps >= min(settings.get("max_steps", 3), 3)
    if "max_steps" in settings:
        assert {one.adversarial_label == one.label for one in expected} == {False, True}


def assert_same_solutions(solution, expected):
    for name in ("label", "adversarial_label", "num_steps", "status"):
        np.testing.assert_array_equal(getattr(solution, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(solution.margin, expected.margin, **FLOAT64)


@pytest.fixture
def curved(x64):
    """A curved classifier, images, a subspace, and its solutions."""
    parameters, images, subspace = tanh_parameters(), random_images(1, num_images=16), span()
    return parameters, images, subspace, solve_all(tanh_classifier(parameters), images, subspace)


def test_a_constant_added_to_the_logits_changes_nothing(curved):
    (*layers, biases), images, subspace, expected = curved
    solution = solve_all(tanh_classifier((*layers, biases + 7)), images, subspace)
    assert_same_solutions(solution, expected)
    np.testing.assert_allclose(solution.coordinates, expected.coordinates, **FLOAT64)


def test_permuting_the_classes_permutes_the_labels(curved):
    (first, first_bias, second, second_bias), images, subspace, expected = curved
    order = np.array([3, 0, 4, 1, 2])
    solution = solve_all(tanh_classifier((first, first_bias, second[order], second_bias[order])), images, subspace)
    solution = solution._replace(
        label=order[solution.label], adversarial_label=order[np.asarray(solution.adversarial_label)]
    )
    assert_same_solutions(solution, expected)


def test_another_basis_of_the_same_span_changes_nothing(curved):
    parameters, images, subspace, expected = curved
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0]
    rotated = subspaces.from_basis(random_basis(7) @ rotation, SHAPE)
    solution = solve_all(tanh_classifier(parameters), images, rotated)
    assert_same_solutions(solution, expected)
    np.testing.assert_allclose(
        embed_all(rotated, solution.coordinates), embed_all(subspace, expected.coordinates), **FLOAT64
    )


def test_moving_the_origin_with_the_classifier_changes_nothing(curved):
    (first, first_bias, *second), images, subspace, expected = curved
    offset = random_images(9, num_images=1)[0]
    moved = tanh_classifier((first, first_bias - first @ offset.ravel(), *second))
    assert_same_solutions(solve_all(moved, images + offset, subspace), expected)


@pytest.mark.slow
def test_eager_compiled_and_mapped_agree(curved):
    parameters, images, subspace, mapped = curved
    classifier = tanh_classifier(parameters)
    compiled = jax.jit(partial(hmt_jax.measure_margin, solver=DeepFool(overshoot=0.02)))
    for n, image in enumerate(images):
        expected = jax.tree.map(lambda leaf, n=n: leaf[n], mapped)
        assert_same_solutions(compiled(classifier, image, subspace), expected)
        # The solver that is taken if none is passed.
        if n == 0:
            assert_same_solutions(hmt_jax.measure_margin(classifier, image, subspace, DeepFool()), expected)


def test_the_four_methods_of_a_solver_are_all_it_takes(curved):
    parameters, images, _, mapped = curved
    expected = jax.tree.map(lambda leaf: leaf[0], mapped)

    def restriction(z):
        return tanh_logits(parameters, jnp.asarray(images[0].ravel() + random_basis(7) @ z)[None])[0]

    solver = DeepFool()
    start = jax.jit(lambda: solver.start(restriction, solvers.linearize(restriction, jnp.zeros(7), 10)))
    step = jax.jit(lambda state: solver.step(restriction, state))
    state, num_steps = start(), 1
    while not solver.done(state):
        assert solver.point(state).label == expected.label
        state, num_steps = step(state), num_steps + 1
    found = solver.point(state)
    assert (found.label, num_steps) == (expected.adversarial_label, expected.num_steps)
    np.testing.assert_allclose(found.z, expected.coordinates, **FLOAT64)
    np.testing.assert_allclose(np.linalg.norm(found.z), expected.margin, **FLOAT64)
    assert hash(solver) == hash(DeepFool())
    assert solver == DeepFool(num_candidates=10, overshoot=0.02, max_steps=100)


@pytest.mark.slow
def test_networks_and_subspaces_can_be_mapped_over(x64):
    image = random_images(1)[0]
    diagonal = subspaces.dct_diagonal(SHAPE, size=2, step=1)
    networks = [tanh_classifier(tanh_parameters(seed=seed)) for seed in range(2)]

    def stack(pytrees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pytrees)

    over_subspaces = jax.vmap(hmt_jax.measure_margin, in_axes=(None, None, 0))
    over_networks = jax.jit(jax.vmap(over_subspaces, in_axes=(0, None, None)))
    solutions = over_networks(stack(networks), image, stack(diagonal))
    assert solutions.margin.shape == (2, 3)
    compiled = jax.jit(hmt_jax.measure_margin)
    for i, network in enumerate(networks):
        for r, single in enumerate(diagonal):
            expected = compiled(network, image, single)
            assert_same_solutions(jax.tree.map(lambda leaf, i=i, r=r: leaf[i, r], solutions), expected)


def test_any_pytree_with_coordinates_and_embed_is_a_subspace(curved):
    parameters, images, _, _ = curved
    direction = random_basis(1)
    line = helpers.Line(jnp.asarray(direction.reshape(SHAPE)))
    solution = solve_all(tanh_classifier(parameters), images, line)
    expected = solve_all(tanh_classifier(parameters), images, subspaces.from_basis(direction, SHAPE))
    assert_same_solutions(solution, expected)


@pytest.mark.parametrize(
    ("image_dtype", "weight_dtype", "expected"),
    [("float32", "float32", "float32"), ("float32", "float64", "float64"), ("float64", "float32", "float64")],
)
def test_the_precision_is_that_of_image_and_parameters(image_dtype, weight_dtype, expected, x64):
    classifier = with_parameters(linear_logits, linear_parameters(3), weight_dtype)
    image = random_images()[0].astype(image_dtype)
    solution = jax.eval_shape(hmt_jax.measure_margin, classifier, image, subspaces.full(SHAPE))
    assert solution.margin.dtype == solution.coordinates.dtype == expected


def logits_of_sum(*functions):
    """A classifier whose logits are functions of the sum of the pixels."""
    return lambda images: jnp.stack([function(jnp.sum(images, axis=(1, 2, 3))) for function in functions], axis=1)


def solve_one(classifier, pixel, **settings):
    """The solution for an image of one pixel."""
    solution = solve_all(classifier, jnp.full((1, 1, 1, 1), pixel), subspaces.full((1, 1, 1)), DeepFool(**settings))
    return jax.tree.map(lambda leaf: leaf[0], solution)


# A convex gap, exp(-s) - exp(-3), which every linearisation undershoots: s -> s + 1 - exp(s - 3) from s = 0.
UNDERSHOT = logits_of_sum(lambda s: jnp.exp(-s), lambda s: jnp.full_like(s, np.exp(-3)))
FIRST_STEP = 1 - np.exp(-3)
SECOND_STEP = 1 - np.exp(FIRST_STEP - 3)

# Name: classifier of two classes, pixel, and the expected status, margin, label and number of steps.
FAILURES = {
    "constant": (logits_of_sum(jnp.zeros_like, jnp.ones_like), 0.3, (Status.ZERO_GRADIENT, np.inf, 1, 1)),
    "saturates before the boundary": (
        logits_of_sum(lambda s: 1 - jnp.minimum(s, 0.5), jnp.zeros_like),
        0.0,
        (Status.ZERO_GRADIENT, np.inf, 0, 2),
    ),
    "NaN logit": (logits_of_sum(jnp.log, jnp.zeros_like), -1.0, (Status.NON_FINITE, np.nan, -1, 1)),
    "infinite logit": (logits_of_sum(lambda s: 1 / s, jnp.zeros_like), 0.0, (Status.NON_FINITE, np.nan, -1, 1)),
    "infinite gradient": (logits_of_sum(jnp.sqrt, jnp.ones_like), 0.0, (Status.NON_FINITE, np.nan, 1, 1)),
    "NaN after one step": (
        logits_of_sum(jnp.log, lambda s: jnp.full_like(s, -1)),
        1.0,
        (Status.NON_FINITE, np.nan, 0, 1),
    ),
    "NaN after three steps": (
        logits_of_sum(lambda s: jnp.where(s < 2, jnp.exp(-s), jnp.nan), lambda s: jnp.full_like(s, np.exp(-3))),
        0.0,
        (Status.NON_FINITE, np.nan, 0, 3),
    ),
    "NaN pixel": (logits_of_sum(jnp.zeros_like, jnp.ones_like), np.nan, (Status.NON_FINITE, np.nan, -1, 1)),
    "infinite pixel": (logits_of_sum(jnp.zeros_like, jnp.ones_like), np.inf, (Status.NON_FINITE, np.nan, -1, 1)),
}
CLASSIFIERS = [UNDERSHOT, *(classifier for classifier, *_ in FAILURES.values())]


def logits_of_one(number, images):
    """Logits of CLASSIFIERS[number], so that one program serves all of them."""
    return jax.lax.switch(number, CLASSIFIERS, images)


def assert_failed(solution, status, margin, label, num_steps):
    assert solution.status == status
    np.testing.assert_allclose(solution.margin, margin, **FLOAT64)
    assert solution.margin != 0
    assert solution.label == label
    assert solution.adversarial_label == label
    assert solution.num_steps == num_steps


@pytest.mark.parametrize("name", FAILURES)
def test_failures_have_a_status_and_never_a_margin_of_zero(name, x64):
    classifier, pixel, expected = FAILURES[name]
    assert_failed(solve_one(with_parameters(logits_of_one, CLASSIFIERS.index(classifier)), pixel), *expected)


@pytest.mark.slow
@pytest.mark.parametrize(("max_steps", "expected"), [(1, FIRST_STEP), (2, FIRST_STEP + SECOND_STEP)])
def test_a_sample_out_of_steps_has_the_distance_reached_for_a_margin(max_steps, expected, x64):
    solution = solve_one(UNDERSHOT, 0.0, max_steps=max_steps)
    assert_failed(solution, Status.OUT_OF_STEPS, 1.02 * expected, 0, max_steps)


def test_the_undershooting_example_converges_if_it_may(x64):
    solution = solve_one(with_parameters(logits_of_one, CLASSIFIERS.index(UNDERSHOT)), 0.0)
    assert solution.status == Status.CONVERGED
    # The boundary is at 3, and the last iterate not beyond it, before the overshoot.
    assert 3 < solution.margin <= 1.02 * 3


def test_a_gradient_that_is_nan_for_one_candidate_is_a_failure(x64):
    classifier = logits_of_sum(jnp.ones_like, lambda s: jnp.where(s > 0, jnp.sqrt(s), 0), lambda s: s)
    assert_failed(solve_one(classifier, 0.0), Status.NON_FINITE, np.nan, 0, 1)


@pytest.mark.slow
def test_candidates_are_those_at_the_origin_but_all_classes_stop_the_search(x64):
    # The gap of class 2 is the largest at 0 and the smallest after one step, when it is still no candidate.
    classifier = logits_of_sum(jnp.zeros_like, lambda s: np.exp(-3) - jnp.exp(-s), lambda s: 1.85 * s - 2)
    solution = solve_one(classifier, 0.0, num_candidates=2)
    assert solution.status == Status.CONVERGED
    assert (solution.label, solution.adversarial_label) == (0, 2)
    assert solution.num_steps == 2
    np.testing.assert_allclose(solution.margin, 1.02 * (FIRST_STEP + SECOND_STEP), **FLOAT64)


# The shapes of the next tests are those of `check_linear`, whose programs they share.
def test_a_subspace_in_which_logits_are_constant_has_an_infinite_margin(x64):
    weights = np.zeros((2, NUM_PIXELS))
    weights[0, 7] = 1
    classifier = with_parameters(linear_logits, (weights, np.array([0.0, 1.0])))
    images = np.full((6, *SHAPE), 0.5)
    axes = np.eye(NUM_PIXELS)
    blind, seeing = (subspaces.from_basis(axes[:, first : first + 7], SHAPE) for first in (0, 1))
    solution = solve_all(classifier, images, blind)
    assert (solution.status == Status.ZERO_GRADIENT).all()
    assert (solution.margin == np.inf).all()
    solution = solve_all(classifier, images, seeing)
    assert (solution.status == Status.CONVERGED).all()
    np.testing.assert_allclose(solution.margin, 1.02 * 0.5, **FLOAT64)


def test_candidates_with_a_zero_gradient_are_passed_over(x64):
    weights, biases = linear_parameters(10)
    images = random_images()
    label = np.argmax(weights @ images[0].ravel() + biases)
    parallel, *others = [k for k in range(10) if k != label]
    # As near in the logits as can be, but no perturbation brings it nearer.
    weights[parallel] = weights[label]
    biases[parallel] = biases[label] - 1e-3
    logits = weights @ images[0].ravel() + biases
    distances = [(logits[label] - logits[k]) / np.linalg.norm(weights[label] - weights[k]) for k in others]
    solution = solve_all(with_parameters(linear_logits, (weights, biases)), images, subspaces.full(SHAPE))
    assert solution.status[0] == Status.CONVERGED
    np.testing.assert_allclose(solution.margin[0], 1.02 * min(distances), **FLOAT64)
    assert solution.adversarial_label[0] == others[np.argmin(distances)]


def test_a_sample_on_the_boundary_has_the_shortest_step_for_a_margin(x64):
    # The first two logits are the first two pixels, the others are 0.
    classifier = with_parameters(linear_logits, (np.eye(10, NUM_PIXELS) * (np.arange(10) < 2)[:, None], np.zeros(10)))
    solution = solve_all(classifier, np.full((6, *SHAPE), 0.5), subspaces.full(SHAPE))
    assert (solution.status == Status.CONVERGED).all()
    assert solution.label.tolist() == [0] * 6
    assert solution.adversarial_label.tolist() == [1] * 6
    np.testing.assert_allclose(solution.margin, 1.02 * 1e-4, rtol=1e-12)


def test_one_bad_sample_leaves_its_neighbours_alone(curved):
    parameters, images, subspace, expected = curved
    images[2, 1, 1, 0] = np.nan
    solution = solve_all(tanh_classifier(parameters), images, subspace)
    assert solution.status[2] == Status.NON_FINITE
    assert np.isnan(solution.margin[2])
    others = np.arange(len(images)) != 2
    for name in ("margin", "label", "adversarial_label", "num_steps", "status", "coordinates"):
        np.testing.assert_array_equal(getattr(solution, name)[others], getattr(expected, name)[others], err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 1}, "num_candidates must be at least 2, the label and one other class, got 1"),
        ({"overshoot": -0.1}, r"overshoot must be finite and not negative, got -0\.1"),
        ({"overshoot": float("nan")}, "overshoot must be finite and not negative, got nan"),
        ({"overshoot": float("inf")}, "overshoot must be finite and not negative, got inf"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepFool(**settings)


def test_settings_are_passed_by_name():
    with pytest.raises(TypeError, match="positional"):
        DeepFool(10)


def test_settings_may_be_arrays_of_one_number():
    solver = DeepFool(num_candidates=np.int64(3), overshoot=jnp.array(0.5), max_steps=np.array(7))
    assert solver == DeepFool(num_candidates=3, overshoot=0.5, max_steps=7)
    assert hash(solver) == hash(DeepFool(num_candidates=3, overshoot=0.5, max_steps=7))


@pytest.mark.parametrize("name", ["num_candidates", "overshoot", "max_steps"])
def test_settings_are_single_numbers_known_when_compiling(name):
    message = f"{name} must be a single number, known when compiling, got "
    with pytest.raises(ValueError, match=message + r"Array\(\[2, 3\]"):
        DeepFool(**{name: jnp.array([2, 3])})
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda value: DeepFool(**{name: value}).max_steps)(2)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4, 1)])
def test_the_rank_of_the_image_is_checked(shape):
    with pytest.raises(
        ValueError,
        match=r"image must have shape \(height, width, channels\), got \(.*\); add the channel axis of a grey image "
        r"with image\[\.\.\., None\], and .* batches to measure_margins",
    ):
        hmt_jax.measure_margin(UNDERSHOT, np.zeros(shape, np.float32), subspaces.full((4, 4, 1)), DeepFool())


@pytest.mark.slow
def test_images_of_whole_numbers_are_8_bit_ones_or_refused(curved):
    parameters, images, subspace, _ = curved
    levels = (255 * images).astype(np.uint8)
    classifier = tanh_classifier(parameters, "float32")
    found, expected = (solve_all(classifier, x, subspace) for x in (levels, levels.astype(np.float32) / 255))
    assert found.margin.dtype == np.float32
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-5)
    with pytest.raises(ValueError, match=r"image must be uint8, or floating point in \[0, 1\], got int32"):
        hmt_jax.measure_margin(UNDERSHOT, np.zeros((4, 4, 1), np.int32), subspaces.full((4, 4, 1)), DeepFool())
