"""Attacks against closed forms, linear programs and NumPy; their bounds; and the accuracy under them."""

import dataclasses
import itertools
import re
import warnings
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.optimize
import scipy.special
import scipy.stats
from flax import nnx
from helpers import slow_except

import hmt_jax
from hmt_jax import attacks, data, frequency, models, subspaces, training

SHAPE = (6, 6, 2)
NUM_PIXELS = 72
KEY = jax.random.key(7)
# Attacks that compile fast: no random numbers, few steps.
QUICK_PGD = partial(attacks.PGD, norm="l2", num_steps=2, random_start=False)
QUICK_DEEPFOOL = partial(attacks.DeepFool, num_steps=2)
each_attack = pytest.mark.parametrize("make", [QUICK_PGD, QUICK_DEEPFOOL], ids=["PGD", "DeepFool"])

# float32: images near 1, flipped back and forth and moved by a few projections.
ROUNDING = 3e-6


def scipy_flip(images):
    coefficients = scipy.fft.dctn(np.asarray(images, np.float64), axes=(-3, -2), norm="ortho")
    return scipy.fft.idctn(coefficients[..., ::-1, ::-1, :], axes=(-3, -2), norm="ortho")


def random_basis(dimension=40):
    return np.linalg.qr(np.random.default_rng(5).normal(size=(NUM_PIXELS, dimension)))[0]


def window():
    return subspaces.dct_window(SHAPE, row=1, column=2, size=4)


def window_basis():
    """The pixels of each frequency of the window, as columns, by SciPy."""
    units = np.eye(NUM_PIXELS).reshape(-1, *SHAPE)[np.arange(NUM_PIXELS).reshape(SHAPE)[1:5, 2:6].ravel()]
    return scipy.fft.idctn(units, axes=(1, 2), norm="ortho").reshape(-1, NUM_PIXELS).T


# Name: the subspace, and an orthonormal basis of it.
SUBSPACES = {
    "everywhere": (lambda: None, lambda: np.eye(NUM_PIXELS)),
    "window": (window, window_basis),
    "random": (lambda: subspaces.from_basis(random_basis().astype(np.float32), SHAPE), random_basis),
}


def tanh_logits(parameters, images):
    first, second, bias = parameters
    return jnp.tanh(images.reshape(len(images), -1) @ first) @ second + bias[None]


def tanh_classifier(seed=0, num_classes=4, num_hidden=8):
    rng = np.random.default_rng(seed)
    shapes = (NUM_PIXELS, num_hidden), (num_hidden, num_classes), (num_classes,)
    parameters = tuple(jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for shape in shapes)
    return jax.tree_util.Partial(tanh_logits, parameters)


def linear_logits(weights, bias, images):
    return images.reshape(len(images), -1) @ weights + bias[None]


def linear_classifier(seed=0, num_classes=2, scale=1.0):
    """Two logits of unequal weights; and their difference, the normal of the boundary."""
    rng = np.random.default_rng(seed)
    weights = (scale * rng.normal(size=(NUM_PIXELS, num_classes)) * rng.uniform(0.5, 2, num_classes)).astype(np.float32)
    bias = (scale * rng.normal(size=num_classes)).astype(np.float32)
    return jax.tree_util.Partial(linear_logits, jnp.asarray(weights), jnp.asarray(bias)), weights, bias


def grey_images(num_images=6, seed=0):
    """Images far from black and white."""
    return np.random.default_rng(seed).uniform(0.4, 0.6, size=(num_images, *SHAPE)).astype(np.float32)


def hard_images(seed=0):
    """Two grey images, two with black and white pixels, one all white but for rounding, and a black one."""
    rng = np.random.default_rng(seed)
    saturated = np.clip(rng.uniform(-0.2, 1.2, size=(2, *SHAPE)), 0, 1)
    return np.concatenate([grey_images(2), saturated, np.full((1, *SHAPE), 1 + 1e-6), np.zeros((1, *SHAPE))]).astype(
        np.float32
    )


def losses(classifier, images, labels):
    """Cross-entropies of each image, by SciPy."""
    logits = np.asarray(classifier(jnp.asarray(images)), np.float64)
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def norms(changes, norm):
    return np.linalg.norm(changes.reshape(len(changes), -1), axis=1, ord={"l2": 2, "linf": np.inf}[norm])


LABELS = np.arange(6) % 4
BOUNDS = list(itertools.product(["l2", "linf"], ["pixels", "flipped"], ["everywhere", "window"]))
EPSILON = {"l2": 0.7, "linf": 0.1}


def check_bounds(images, perturbed, norm, epsilon, domain, basis):
    changes = np.asarray(perturbed, np.float64) - images
    assert np.isfinite(changes).all()
    assert norms(changes, norm).max() <= epsilon + ROUNDING
    pixels = scipy_flip(perturbed) if domain == "flipped" else np.asarray(perturbed)
    assert pixels.min() >= -ROUNDING
    assert pixels.max() <= 1 + ROUNDING
    flat = changes.reshape(len(changes), -1)
    np.testing.assert_allclose(flat @ basis @ basis.T, flat, rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "domain", "name"),
    slow_except(BOUNDS, ("l2", "flipped", "window"), ("linf", "pixels", "everywhere")),
)
def test_pgd_stays_within_its_bounds_and_lowers_no_loss(norm, domain, name):
    make, basis = SUBSPACES[name]
    images = hard_images()
    images = scipy_flip(images).astype(np.float32) if domain == "flipped" else images
    classifier, epsilon = tanh_classifier(), EPSILON[norm]
    # Steps so long that every projection has something to do.
    attack = attacks.PGD(
        norm=norm, epsilon=epsilon, domain=domain, subspace=make(), num_steps=2, step_size=2 * epsilon, num_restarts=2
    )
    perturbed = attack(classifier, images, LABELS, KEY)
    assert perturbed.dtype == np.float32
    check_bounds(images, perturbed, norm, epsilon, domain, basis())
    gains = losses(classifier, perturbed, LABELS) - losses(classifier, images, LABELS)
    assert gains.min() >= -1e-6  # two float32 programs
    assert gains[:2].min() > 0.01  # the grey images have room
    if domain == "pixels":
        # For the reason that the module gives, the black image may not move in these windows.
        assert name != "window" or norms(np.asarray(perturbed) - images, norm)[5] < 1e-4


@pytest.mark.parametrize(
    ("name", "scale"),
    [("everywhere", 1), ("everywhere", 1e4), ("everywhere", 1e-25), ("window", 1), ("random", 1e4)],
)
def test_pgd_is_exact_for_linear_classifiers(name, scale):
    """Also where the gradient of the cross-entropy is zero in float32, for confidence, or its square is."""
    make, basis = SUBSPACES[name]
    classifier, weights, _ = linear_classifier(scale=scale)
    images, labels = grey_images(), LABELS % 2
    normal = (weights[:, 1] - weights[:, 0]).astype(np.float64)
    normals = np.outer(np.where(labels == 0, 1, -1), basis() @ (basis().T @ normal))
    attack = attacks.PGD(norm="l2", epsilon=0.3, num_steps=3, random_start=False, subspace=make())
    expected = images + 0.3 * (normals / norms(normals, "l2")[:, None]).reshape(images.shape)
    np.testing.assert_allclose(attack(classifier, images, labels, KEY), expected, rtol=0, atol=ROUNDING)


def test_signs_are_exact_for_linear_classifiers():
    classifier, weights, _ = linear_classifier()
    images, labels = grey_images(), LABELS % 2
    signs = np.outer(np.where(labels == 0, 1, -1), np.sign(weights[:, 1] - weights[:, 0])).reshape(images.shape)
    for settings in ({"random_start": False}, {"num_restarts": 2}):
        attack = attacks.PGD(norm="linf", epsilon=0.05, num_steps=3, **settings)
        found = attack(classifier, images, labels, KEY)
        np.testing.assert_allclose(found, images + 0.05 * signs, rtol=0, atol=ROUNDING)


def test_from_random_starts_pgd_comes_near_the_optimum():
    classifier, weights, _ = linear_classifier()
    images, labels = grey_images(), LABELS % 2
    attack = attacks.PGD(norm="l2", epsilon=0.3)
    changes = np.asarray(attack(classifier, images, labels, KEY) - images).reshape(6, -1)
    normal = weights[:, 1] - weights[:, 0]
    gains = changes @ normal * np.where(labels == 0, 1, -1)
    # Starts in 72 dimensions are across the normal. On the sphere, the share a along it grows as da = (1 - a^2) ds with
    # the way s in radii, 2.5 in all: to tanh(2.5) = 0.987, and a little less in ten steps.
    assert gains.min() > 0.97 * 0.3 * np.linalg.norm(normal)


def best_clipped_gain(image, normal, epsilon):
    """The largest normal . change with the change in the L2 ball and the box: a clipped multiple of the normal."""

    def change(multiple):
        return np.clip(image + multiple * normal, 0, 1) - image

    multiple = scipy.optimize.brentq(lambda t: np.linalg.norm(change(t)) - epsilon, 0, 100)
    return normal @ change(multiple)


@pytest.mark.slow
def test_pgd_comes_near_the_optimum_where_the_box_cuts_the_ball():
    classifier, weights, _ = linear_classifier()
    images = hard_images()[2:4].astype(np.float64).clip(0, 1)
    attack = attacks.PGD(norm="l2", epsilon=0.7, num_steps=20, random_start=False)
    perturbed = np.asarray(attack(classifier, images.astype(np.float32), np.zeros(2, int), KEY))
    normal = (weights[:, 1] - weights[:, 0]).astype(np.float64)
    for image, found in zip(images.reshape(2, -1), perturbed.reshape(2, -1), strict=True):
        share = normal @ (found - image) / best_clipped_gain(image, normal, 0.7)
        assert 0.99 < share < 1 + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "name"),
    slow_except([("flipped", "everywhere"), ("pixels", "random"), ("flipped", "window")], ("pixels", "random")),
)
def test_pgd_comes_near_the_optimum_of_the_linear_program(domain, name):
    make, basis = SUBSPACES[name]
    classifier, weights, _ = linear_classifier()
    pixels = np.random.default_rng(3).uniform(0.05, 0.95, size=(2, *SHAPE))
    images = scipy_flip(pixels) if domain == "flipped" else pixels
    attack = attacks.PGD(norm="linf", epsilon=0.1, num_steps=20, random_start=False, domain=domain, subspace=make())
    perturbed = np.asarray(attack(classifier, images.astype(np.float32), np.zeros(2, int), KEY))
    normal = (weights[:, 1] - weights[:, 0]).astype(np.float64)
    to_pixels = scipy_flip(basis().T.reshape(-1, *SHAPE)) if domain == "flipped" else basis().T.reshape(-1, *SHAPE)
    to_pixels = to_pixels.reshape(-1, NUM_PIXELS).T
    for found, image, start in zip(perturbed, images, pixels.reshape(2, -1), strict=True):
        program = scipy.optimize.linprog(
            -basis().T @ normal,
            A_ub=np.concatenate([basis(), -basis(), to_pixels, -to_pixels]),
            b_ub=np.concatenate([np.full(2 * NUM_PIXELS, 0.1), 1 - start, start]),
            bounds=(None, None),
        )
        share = normal @ (found - image).ravel() / -program.fun
        assert 0.85 < share < 1 + 1e-5


@pytest.mark.slow
def test_deepfool_of_flipped_images_is_the_flipped_deepfool():
    images = grey_images()[:4]  # far from the box
    classifier = tanh_classifier()
    of_flipped = jax.tree_util.Partial(lambda classifier, images: classifier(frequency.flip(images)), classifier)
    perturbed = QUICK_DEEPFOOL(epsilon=0.7)(classifier, images, LABELS[:4], KEY)
    flipped = scipy_flip(images).astype(np.float32)
    of_flipped_perturbed = QUICK_DEEPFOOL(epsilon=0.7, domain="flipped")(of_flipped, flipped, LABELS[:4], KEY)
    # Each step amplifies float32 rounding a little.
    np.testing.assert_allclose(scipy_flip(of_flipped_perturbed), perturbed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["everywhere", "window"])
def test_without_a_box_pgd_reaches_the_closed_form_from_any_image(name):
    make, basis = SUBSPACES[name]
    images = grey_images() * 5 - 2  # outside [0, 1]
    weights = np.random.default_rng(3).normal(size=NUM_PIXELS)
    classifier = jax.tree_util.Partial(
        lambda w, images: jnp.stack([images.reshape(len(images), -1) @ w, jnp.zeros(len(images))], 1),
        jnp.asarray(weights, jnp.float32),
    )
    attack = attacks.PGD(
        norm="l2", epsilon=0.7, domain="unbounded", subspace=make(), num_steps=3, step_size=1.0, random_start=False
    )
    changes = np.asarray(attack(classifier, images, np.zeros(6, int), KEY)) - images
    direction = basis() @ basis().T @ weights
    expected = -0.7 * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(changes.reshape(6, -1), np.broadcast_to(expected, (6, NUM_PIXELS)), atol=1e-5)  # float32


def distance_logits(center, images):
    """Logits with which the loss of label 0 grows with the distance from the centre."""
    squares = jnp.sum((images - center).astype(jnp.float32) ** 2, axis=(1, 2, 3))
    return jnp.stack([-squares, squares], axis=1)


def random_starts(num_images, level=0.5, shape=SHAPE, dtype=np.float32, **settings):
    """The changes (N, ...) of equal grey images after steps so short that they are still at their random starts."""
    attack = attacks.PGD(num_steps=1, step_size=1e-9, **settings)
    images = np.full((num_images, *shape), level, dtype)
    starts = attack(jax.tree_util.Partial(distance_logits, level), images, np.zeros(num_images, int), KEY)
    assert starts.dtype == dtype
    return np.asarray(starts, np.float64) - level


@pytest.mark.parametrize(
    ("norm", "name"), slow_except([("l2", "everywhere"), ("l2", "window"), ("linf", "window")], ("l2", "window"))
)
def test_random_starts_are_uniform_in_the_ball(norm, name):
    make, basis = SUBSPACES[name]
    changes = random_starts(1000, norm=norm, epsilon=0.1, subspace=make()).reshape(1000, -1)
    lengths = norms(changes, norm)
    dimension = basis().shape[1]
    assert scipy.stats.kstest((lengths / 0.1) ** dimension, "uniform").pvalue > 0.01
    # The first coordinate of a uniform direction: its square has a beta distribution.
    coordinates = changes @ basis()
    shares = coordinates[:, 0] ** 2 / np.sum(coordinates**2, axis=1)
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.5, (dimension - 1) / 2).cdf).pvalue > 0.01


def test_random_starts_are_uniform_in_the_cube():
    changes = random_starts(100, norm="linf", epsilon=0.1)
    assert scipy.stats.kstest(changes.ravel(), scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01


@pytest.mark.slow
def test_restarts_find_greater_losses():
    classifier, images = tanh_classifier(), grey_images()
    once, often = (
        losses(classifier, attack(classifier, images, LABELS, KEY), LABELS)
        for attack in (attacks.PGD(norm="l2", epsilon=2.0, num_steps=1, num_restarts=n) for n in (1, 8))
    )
    assert often.mean() > once.mean()


def test_same_key_same_images():
    attack = attacks.PGD(norm="l2", epsilon=1.0, num_steps=2)
    first, second, other = (
        attack(tanh_classifier(), grey_images(), LABELS, jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@each_attack
def test_a_bad_image_disturbs_no_other(make):
    attack = make(epsilon=0.5)
    images = grey_images()
    broken = images.copy()
    broken[2, 0, 0, 0] = np.nan
    expected, found = (np.asarray(attack(tanh_classifier(), x, LABELS, KEY)) for x in (images, broken))
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found[others], expected[others], rtol=0, atol=1e-6)  # float32
    np.testing.assert_array_equal(found[2], broken[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [partial(attacks.PGD, norm="l2", num_steps=3, num_restarts=2), partial(attacks.DeepFool, num_steps=3)],
    ids=["PGD", "DeepFool"],
)
def test_the_loop_of_accelerators_does_what_the_unrolled_one_does(make, monkeypatch):
    tanh, images = tanh_classifier(), jnp.asarray(grey_images())

    def classifier(images):  # a plain function, so that each call compiles the attack anew
        return tanh(images)

    attack, labels = make(epsilon=0.5), np.argmax(tanh(images), axis=1)
    found = {}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        program = jax.make_jaxpr(lambda images: attack(classifier, images, labels, KEY))(images)
        assert ("scan[" in str(program)) == (backend == "gpu")
        found[backend] = attack(classifier, images, labels, KEY)
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_on_a_cpu_no_loop_is_around_the_network(num_steps):
    attack = attacks.PGD(norm="l2", epsilon=0.5, num_steps=num_steps, domain="unbounded")
    program = str(jax.make_jaxpr(attack)(tanh_classifier(), jnp.asarray(grey_images()), LABELS, KEY))
    assert program.count("tanh") >= num_steps + 2
    assert "scan[" not in program
    assert "while[" not in program


def counted(logits_fn):
    """The function as the classifier of a `Partial`, and the list that gets an entry whenever it is traced."""
    traces = []

    def counting(*arguments):
        traces.append(None)
        return logits_fn(*arguments)

    return counting, traces


@pytest.mark.slow
@each_attack
def test_networks_and_windows_share_the_compiled_attack(make):
    counting, traces = counted(tanh_logits)
    windows = subspaces.dct_diagonal(SHAPE, size=4, step=1)
    attack_fn = jax.jit(lambda attack, *arguments: attack(*arguments))
    found = []
    for seed in range(3):
        classifier = jax.tree_util.Partial(counting, tanh_classifier(seed).args[0])
        attack = make(epsilon=0.5, subspace=windows[seed])
        found.append(attack_fn(attack, classifier, grey_images(), LABELS, KEY))
        if seed == 0:
            num_traces = len(traces)
    assert len(traces) == num_traces
    assert (found[0] != found[1]).any()


@pytest.mark.slow
@each_attack
def test_no_gradient_passes_through_an_attack(make):
    classifier, images, attack = tanh_classifier(), jnp.asarray(grey_images()), make(epsilon=0.5)

    def attack_fn(classifier, images):
        return attack(classifier, images, LABELS, KEY)

    def loss_fn(classifier, images, attack_fn):
        logits = classifier(attack_fn(classifier, images))
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), LABELS])

    fixed = attack_fn(classifier, images)
    through = jax.jit(jax.grad(partial(loss_fn, attack_fn=attack_fn), argnums=(0, 1)))(classifier, images)
    expected = jax.grad(partial(loss_fn, attack_fn=lambda classifier, images: fixed))(classifier, images)
    chex.assert_trees_all_close(through[0], expected, rtol=1e-3, atol=1e-5)  # the attack in another program, in float32
    np.testing.assert_array_equal(through[1], 0)


class Dropping(nnx.Module):
    """A module with all that a state may hold: parameters, running statistics, and a key and count of chance."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(NUM_PIXELS, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(NUM_PIXELS, 4, rngs=rngs)

    def __call__(self, images):
        return self.linear(self.dropout(self.norm(images.reshape(len(images), -1))))


@each_attack
def test_modules_are_attacked_in_evaluation_mode(make):
    module, attack = Dropping(nnx.Rngs(0)), make(epsilon=0.5)
    module.eval()
    images = grey_images()
    structure, state = nnx.split(module)
    inside = jax.jit(lambda state: attack(nnx.merge(structure, state), images, LABELS, KEY))(state)
    np.testing.assert_allclose(attack(module, images, LABELS, KEY), inside, rtol=0, atol=ROUNDING)
    assert (losses(module, inside, LABELS) >= losses(module, images, LABELS) - 1e-6).all()
    module.train()
    with pytest.raises(ValueError, match=r"is in training mode: call classifier\.eval\(\) first"):
        attack(module, images, LABELS, KEY)


# DeepFool


def test_deepfool_is_exact_for_linear_classifiers():
    classifier, weights, bias = linear_classifier(num_classes=5)
    images = grey_images()
    logits = images.reshape(6, -1).astype(np.float64) @ weights + bias
    labels = logits.argmax(1)
    gaps = logits.max(1, keepdims=True) - logits
    distances = np.full(gaps.shape, np.inf)
    others = gaps > 0
    normals = weights[None] - weights.T[labels][:, :, None]
    distances[others] = (gaps / np.maximum(np.linalg.norm(normals, axis=1), 1e-9))[others]
    nearest = distances.argmin(1)
    shortest = distances.min(1)
    normal = normals[np.arange(6), :, nearest]
    directions = (normal / norms(normal, "l2")[:, None]).reshape(images.shape)
    # Both cases: boundaries within reach, and beyond.
    epsilon = 1.02 * np.mean(np.sort(shortest)[2:4])
    lengths = np.minimum(1.02 * shortest, epsilon)
    attack = attacks.DeepFool(epsilon=float(epsilon), num_candidates=5)
    perturbed = attack(classifier, images, labels, KEY)
    np.testing.assert_allclose(
        perturbed, images + lengths[:, None, None, None] * directions, rtol=0, atol=10 * ROUNDING
    )
    np.testing.assert_array_equal(np.argmax(classifier(perturbed), axis=1) != labels, shortest <= epsilon)


@pytest.mark.parametrize("name", slow_except(SUBSPACES, "window"))
def test_deepfool_takes_the_steps_of_the_solver(name):
    make, _ = SUBSPACES[name]
    classifier, images = tanh_classifier(), jnp.asarray(grey_images())
    labels = np.argmax(classifier(images), axis=1)
    subspace = subspaces.full(SHAPE) if name == "everywhere" else make()
    solver = hmt_jax.solvers.DeepFool(num_candidates=3, max_steps=2, overshoot=0.1)
    solution = jax.vmap(lambda image: hmt_jax.measure_margin(classifier, image, subspace, solver))(images)
    attack = attacks.DeepFool(epsilon=50.0, num_steps=2, num_candidates=3, overshoot=0.1, subspace=make())
    perturbed = attack(classifier, images, labels, KEY)
    expected = images + jax.vmap(subspace.embed)(solution.coordinates)
    is_inside = np.asarray((expected >= 0) & (expected <= 1)).all(axis=(1, 2, 3))
    assert is_inside.any()
    np.testing.assert_allclose(perturbed[is_inside], expected[is_inside], rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize(
    ("domain", "name"),
    slow_except([("pixels", "everywhere"), ("flipped", "everywhere"), ("flipped", "window")], ("flipped", "window")),
)
def test_deepfool_stays_within_its_bounds(domain, name):
    make, basis = SUBSPACES[name]
    images = hard_images()
    images = scipy_flip(images).astype(np.float32) if domain == "flipped" else images
    classifier = tanh_classifier()
    labels = np.argmax(classifier(images), axis=1)
    attack = attacks.DeepFool(epsilon=0.4, domain=domain, subspace=make())
    check_bounds(images, attack(classifier, images, labels, KEY), "l2", 0.4, domain, basis())


def test_deepfool_moves_pixels_at_the_border_that_have_room():
    """x_0 + x_1 > 0.3 is label 0, and x_1 is black: x_0 is to go from 0.6 to 0.3, and 0.02 of that way beyond."""
    weights, bias = jnp.zeros((4, 2)).at[:2, 0].set(1), jnp.array([-0.3, 0])
    classifier = jax.tree_util.Partial(linear_logits, weights, bias)
    image, pixels = np.array([0.6, 0, 0, 0], np.float32).reshape(1, 2, 2, 1), subspaces.full((2, 2, 1))
    attack = attacks.DeepFool(epsilon=1.0, num_steps=1)
    metrics = attacks.evaluate(classifier, image, np.array([0]), attack, KEY, subspaces=pixels)
    assert (metrics.clean_accuracy, metrics.accuracy) == (1, 0)
    np.testing.assert_allclose(metrics.energy, [(1.02 * 0.3) ** 2], rtol=1e-5)  # float32


@pytest.mark.parametrize("domain", ["pixels", "flipped"])
def test_deepfool_is_exact_where_the_box_cuts_the_way_to_a_linear_boundary(domain):
    """Against clipped multiples of the normal: the least one that reaches the boundary, or the ball's surface."""
    rng, epsilon, to_pixels = np.random.default_rng(4), 0.7, scipy_flip if domain == "flipped" else np.asarray
    pixels = np.clip(rng.uniform(-0.7, 1.7, size=(12, *SHAPE)), 0, 1)
    normal = rng.normal(size=SHAPE)
    towards = np.where(normal > 0, 1 - pixels, -pixels)
    # From boundaries nearby to some beyond the box; each image has a boundary, and so a class, of its own.
    reach = np.sum(normal * towards, axis=(1, 2, 3)) * np.geomspace(0.005, 1.2, 12)
    expected = []
    for image, gap in zip(pixels, reach, strict=True):

        def change(multiple, image=image):
            return np.clip(image + multiple * normal, 0, 1) - image

        is_met = np.sum(normal * change(1e9)) > gap
        least = (
            scipy.optimize.brentq(lambda t, gap=gap, change=change: np.sum(normal * change(t)) - gap, 0, 1e3)
            if is_met
            else np.inf
        )
        longest = scipy.optimize.brentq(lambda t, change=change: np.linalg.norm(change(t)) - epsilon, 0, 1e3)
        is_near = is_met and np.linalg.norm(1.02 * change(least)) < epsilon
        expected.append(np.clip(image + 1.02 * change(least), 0, 1) if is_near else image + change(longest))
    assert 3 <= np.sum(norms(np.array(expected) - pixels, "l2") < 0.69) <= 9
    images, weights = to_pixels(pixels).astype(np.float32), to_pixels(normal).astype(np.float32)
    attack = attacks.DeepFool(epsilon=epsilon, domain=domain, num_steps=1)

    @jax.vmap
    def perturb(image, gap):
        offset = gap + jnp.sum(weights * image)
        logits = jax.tree_util.Partial(
            lambda offset, x: jnp.stack([jnp.full(len(x), offset), jnp.sum(weights[None] * x, (1, 2, 3))], 1), offset
        )
        return attack(logits, image[None], jnp.zeros(1, int), KEY)[0]

    found = to_pixels(jax.jit(perturb)(images, reach.astype(np.float32)))
    # Sums over 72 pixels in float32, and multiples where a few pixels are left to move.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_deepfool_leaves_images_that_are_wrong_or_have_no_direction():
    classifier, images = tanh_classifier(), grey_images()
    labels = np.argmax(classifier(images), axis=1)
    attack = QUICK_DEEPFOOL(epsilon=0.5)
    perturbed = attack(classifier, images, (labels + 1) % 4, KEY)
    np.testing.assert_array_equal(perturbed, images)
    flat = jax.tree_util.Partial(lambda bias, images: bias + 0 * images.sum(axis=(1, 2, 3))[:, None], jnp.zeros((1, 4)))
    np.testing.assert_array_equal(attack(flat, images, np.zeros(6, int), KEY), images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the logits of images are finite, but every search met NaN")
def test_deepfool_leaves_images_for_which_the_solver_gives_up():
    """In a window that a filter before the network removes, rounding alone is left of the gradient."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)

    @jax.jit
    def filtered(images):
        return frequency.low_pass(images, 4).reshape(len(images), -1) @ weights.T

    @jax.jit
    def infinite(images):
        first = images[:, 0, 0, 0]
        return jnp.stack([1 - first, jnp.where(first > 0.5, jnp.inf, 0)], axis=1)

    images = np.random.default_rng(1).uniform(0, 0.4, (4, 8, 8, 1)).astype(np.float32)
    hidden = subspaces.dct_window((8, 8, 1), 4, 4, 4)
    for classifier, subspace in ((filtered, hidden), (infinite, None)):
        whole = subspaces.full((8, 8, 1)) if subspace is None else subspace
        assert not hmt_jax.measure_margins(classifier, images, whole, devices=jax.devices()[:1]).is_converged.any()
        labels = np.argmax(classifier(images), axis=1)
        attack = QUICK_DEEPFOOL(epsilon=0.5, subspace=subspace, domain="unbounded")
        np.testing.assert_array_equal(attack(classifier, images, labels, KEY), images)


def test_equal_settings_make_equal_attacks():
    subspace = window()
    for first, second, other in (
        (
            attacks.PGD(norm="l2", epsilon=1, subspace=subspace),
            attacks.PGD(norm="l2", epsilon=np.float32(1), num_steps=10, step_size=0.25, subspace=subspace),
            attacks.PGD(norm="l2", epsilon=1, step_size=0.2, subspace=subspace),
        ),
        (
            attacks.DeepFool(epsilon=1, subspace=subspace),
            attacks.DeepFool(epsilon=1.0, num_steps=np.int64(5), subspace=subspace),
            attacks.DeepFool(epsilon=1, overshoot=0.1, subspace=subspace),
        ),
    ):
        assert first == second != other
        assert hash(first) == hash(second)
        assert jax.tree.structure(first) == jax.tree.structure(second) != jax.tree.structure(other)


def test_the_length_of_a_step_depends_on_epsilon_and_the_number_of_steps():
    attack = attacks.PGD(norm="linf", epsilon=0.4, num_steps=4)
    assert attack.step_size == 0.25  # 2.5 epsilon / num_steps
    assert dataclasses.replace(attack, epsilon=0.8, step_size=None).step_size == 0.5
    assert attacks.PGD(norm="linf", epsilon=0.4, step_size=0.1).step_size == 0.1


@each_attack
def test_an_attack_is_a_pytree_of_the_arrays_of_its_subspace(make):
    assert jax.tree.leaves(make(epsilon=1.0)) == []
    subspace = window()
    attack = make(epsilon=1.0, subspace=subspace)
    (leaf,) = jax.tree.leaves(attack)
    assert leaf is subspace.corner
    assert jax.tree.map(lambda leaf: leaf, attack).epsilon == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.epsilon = 2.0
    with pytest.raises(TypeError, match="positional argument"):
        type(attack)("l2", 1.0)


@pytest.mark.parametrize("number", [jnp.float32, np.float32, np.array])
def test_settings_may_be_numbers_of_arrays(number):
    classifier, images = tanh_classifier(), grey_images()
    expected = QUICK_PGD(epsilon=0.5)(classifier, images, LABELS, KEY)
    np.testing.assert_array_equal(QUICK_PGD(epsilon=number(0.5))(classifier, images, LABELS, KEY), expected)
    assert training.Recipe(max_learning_rate=number(0.25)) == training.Recipe(max_learning_rate=0.25)
    assert hash(training.Recipe(max_learning_rate=number(0.25)))


# Evaluation


@pytest.fixture(scope="module")
def digits_mlp():
    """A small network trained on the digits, and 100 test images."""
    digits = data.load("digits")
    classifier = models.create("mlp", KEY, image_shape=(8, 8, 1), num_classes=10, num_hidden=(32,))
    recipe = training.Recipe(num_epochs=10)
    trained = training.train(classifier, digits.train_images, digits.train_labels, recipe, KEY)
    return trained, digits.test_images[:100], digits.test_labels[:100]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 0.8), ("linf", 0.12)])
def test_stronger_attacks_leave_less_accuracy(norm, epsilon, digits_mlp):
    make = partial(attacks.PGD, norm=norm, random_start=False)
    ladder = [make(epsilon=epsilon, num_steps=1), *(make(epsilon=epsilon, num_steps=n) for n in (3, 10))]
    ladder.append(make(epsilon=3 * epsilon, num_steps=10))
    metrics = [attacks.evaluate(*digits_mlp, attack, KEY) for attack in ladder]
    accuracies = [metrics[0].clean_accuracy, *(m.accuracy for m in metrics)]
    assert accuracies[0] > 0.9
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-2] < accuracies[0] - 0.2
    assert accuracies[-1] < 0.05  # no gradient is masked
    loss = [metrics[0].clean_loss, *(m.loss for m in metrics)]
    assert loss == sorted(loss)


def shift_images(shift, classifier, images, labels, key):
    return jnp.clip(images + shift[None], 0, 1)


def four_windows():
    """Windows that together hold all frequencies of the images."""
    return subspaces.dct_grid(SHAPE, size=3, step=3)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_evaluation_is_exact_for_every_batch_size(batch_size):
    images = np.random.default_rng(2).integers(0, 256, size=(7, *SHAPE), dtype=np.uint8)
    labels, shift = np.arange(7) % 4, 0.3 * np.random.default_rng(3).normal(size=SHAPE)
    classifier = tanh_classifier()
    attack = jax.tree_util.Partial(shift_images, jnp.asarray(shift, jnp.float32))
    metrics = attacks.evaluate(classifier, images, labels, attack, KEY, batch_size=batch_size, subspaces=four_windows())
    clean = images / 255
    perturbed = np.clip(clean + shift, 0, 1)
    for name, expected in (("clean_", clean), ("", perturbed)):
        expected = expected.astype(np.float32)
        accuracy = np.mean(np.asarray(classifier(expected)).argmax(1) == labels)
        assert getattr(metrics, f"{name}accuracy") == accuracy
        np.testing.assert_allclose(
            getattr(metrics, f"{name}loss"), losses(classifier, expected, labels).mean(), rtol=1e-5
        )
    coefficients = scipy.fft.dctn(perturbed - clean, axes=(1, 2), norm="ortho") ** 2
    blocks = coefficients.reshape(7, 2, 3, 2, 3, 2).sum(axis=(2, 4, 5)).mean(axis=0).ravel()
    np.testing.assert_allclose(metrics.energy, blocks, rtol=1e-5)  # float32
    np.testing.assert_allclose(metrics.energy.sum(), np.mean(norms(perturbed - clean, "l2") ** 2), rtol=1e-5)


def test_evaluation_runs_the_attack(digits_mlp):
    classifier, images, labels = digits_mlp
    attack = attacks.PGD(norm="l2", epsilon=0.5, num_steps=3, random_start=False)
    metrics = attacks.evaluate(classifier, images, labels, attack, KEY, batch_size=32)
    perturbed = attack(classifier, images, labels, KEY)
    assert metrics.accuracy == np.mean(np.asarray(classifier(perturbed)).argmax(1) == labels)
    np.testing.assert_allclose(metrics.loss, losses(classifier, perturbed, labels).mean(), rtol=1e-4)  # other batches
    np.testing.assert_allclose(metrics.clean_loss, losses(classifier, images, labels).mean(), rtol=1e-5)
    assert metrics.energy is None


@pytest.mark.slow
def test_a_perturbation_in_a_window_has_its_energy_there():
    windows = four_windows()
    attack = QUICK_PGD(epsilon=0.3, subspace=windows[1])
    metrics = attacks.evaluate(tanh_classifier(), grey_images(), LABELS, attack, KEY, subspaces=windows)
    assert 0.05 < metrics.energy[1] <= 0.3**2 + 1e-6
    np.testing.assert_allclose(np.delete(metrics.energy, 1), 0, atol=1e-10)  # squares of float32 rounding
    for one in (windows[1], subspaces.full(SHAPE)):  # the whole space has no arrays
        alone = attacks.evaluate(tanh_classifier(), grey_images(), LABELS, attack, KEY, subspaces=one)
        np.testing.assert_allclose(alone.energy, [metrics.energy[1]], rtol=1e-5)


def test_energies_in_subspaces_of_several_kinds_are_in_their_order():
    """Against orthogonal projections in NumPy, with subspaces of one kind apart from each other in the list."""
    images, shift = grey_images(), 0.3 * np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    attack = jax.tree_util.Partial(shift_images, jnp.asarray(shift))
    small = np.linalg.qr(np.random.default_rng(6).normal(size=(NUM_PIXELS, 3)))[0]
    large, everything = random_basis(), np.eye(NUM_PIXELS)
    other_large = np.linalg.qr(np.random.default_rng(7).normal(size=large.shape))[0]
    members = {
        "whole": (subspaces.full(SHAPE), everything),
        "large": (subspaces.from_basis(large.astype(np.float32), SHAPE), large),
        "window": (window(), window_basis()),
        "small": (subspaces.from_basis(small.astype(np.float32), SHAPE), small),
        "other large": (subspaces.from_basis(other_large.astype(np.float32), SHAPE), other_large),
        "whole again": (subspaces.full(SHAPE), everything),
    }
    chosen, bases = zip(*members.values(), strict=True)
    metrics = attacks.evaluate(tanh_classifier(), images, LABELS, attack, KEY, batch_size=4, subspaces=list(chosen))
    changes = (np.clip(images + shift, 0, 1) - images).reshape(len(images), -1).astype(np.float64)
    expected = [np.mean(np.sum((changes @ basis) ** 2, axis=1)) for basis in bases]
    assert metrics.energy.shape == (6,)
    np.testing.assert_allclose(metrics.energy, expected, rtol=1e-5)  # float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Row(subspaces.Subspace):
    """A row of pixels, which counts how often its coordinates are traced."""

    is_orthonormal = True  # so that no check traces them
    row: jax.Array
    image_shape: tuple[int, int, int] = dataclasses.field(default=SHAPE, metadata={"static": True})
    traces = []  # noqa: RUF012 - of the class

    def coordinates(self, image):
        Row.traces.append(None)
        return image[self.row].reshape(-1)

    def embed(self, z):
        return jnp.zeros(self.image_shape, z.dtype).at[self.row].set(z.reshape(self.image_shape[1:]))


def test_many_subspaces_of_one_kind_make_one_program():
    attack, counts = jax.tree_util.Partial(shift_images, jnp.full(SHAPE, 0.1)), []
    for num_rows in (1, 2, 6):
        rows, num_before = [Row(jnp.asarray(row)) for row in range(num_rows)], len(Row.traces)
        metrics = attacks.evaluate(tanh_classifier(), grey_images(), LABELS, attack, KEY, subspaces=rows)
        np.testing.assert_allclose(metrics.energy, np.full(num_rows, 12 * 0.1**2), rtol=1e-5)  # float32
        counts.append(len(Row.traces) - num_before)
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_all_batches_and_networks_share_one_compilation():
    counting, traces = counted(shift_images)
    attack = jax.tree_util.Partial(counting, jnp.zeros(SHAPE))
    for seed in range(2):
        attacks.evaluate(tanh_classifier(seed), grey_images(7), np.zeros(7, int), attack, KEY, batch_size=3)
    assert len(traces) == 1


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be positive and finite, in pixels in [0, 1], got 0"),
        ({"epsilon": float("nan")}, "epsilon must be positive and finite, in pixels in [0, 1], got nan"),
        ({"epsilon": [0.1, 0.2]}, "epsilon must be a single number, known when compiling, got [0.1, 0.2]"),
        ({"epsilon": "0.1", "step_size": 0.1}, "epsilon must be a single number, known when compiling, got '0.1'"),
        ({"norm": ["l2"]}, "norm must be one of 'l2', 'linf', got ['l2']"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": 0, "step_size": 0.1}, "num_steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, in pixels in [0, 1], got 0.0"),
        ({"step_size": float("nan")}, "step_size must be positive and finite, in pixels in [0, 1], got nan"),
        ({"num_restarts": 0}, "num_restarts must be at least 1, got 0"),
        (
            {"num_restarts": 3, "random_start": False},
            "num_restarts=3 would repeat one search: set random_start=True, or num_restarts=1",
        ),
        ({"norm": "l1"}, "norm must be one of 'l2', 'linf', got 'l1'"),
        ({"domain": "dct"}, "domain must be one of 'pixels', 'flipped', 'unbounded', got 'dct'"),
    ],
)
def test_bad_settings_of_pgd(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attacks.PGD(**{"norm": "l2", "epsilon": 1.0} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -1.0}, r"epsilon must be positive and finite, in pixels in \[0, 1\], got -1\.0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"overshoot": -0.1}, r"overshoot must be finite and not negative, got -0\.1"),
        ({"num_candidates": 1}, "num_candidates must be at least 2"),
        ({"epsilon": "1"}, "epsilon must be a single number, known when compiling, got '1'"),
        ({"num_steps": 2.5}, r"num_steps must be a whole number, got 2\.5"),
        ({"domain": "dct"}, "domain must be one of 'pixels', 'flipped', 'unbounded', got 'dct'"),
    ],
)
def test_bad_settings_of_deepfool(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.DeepFool(**{"epsilon": 1.0} | settings)


@each_attack
def test_bad_images(make):
    classifier, images, attack = tanh_classifier(), grey_images(), make(epsilon=1.0)
    for wrong in ((images, LABELS[:-1]), (images[0], LABELS)):
        with pytest.raises(
            ValueError, match=r"images must have shape \(N, height, width, channels\) and labels \(N,\), got"
        ):
            attack(classifier, *wrong, KEY)
    with pytest.raises(ValueError, match=r"images must be floating point in .*, got uint8; divide 8-bit images by 255"):
        attack(classifier, np.zeros((6, *SHAPE), np.uint8), LABELS, KEY)
    narrow = make(epsilon=1.0, subspace=subspaces.full((6, 5, 2)))
    with pytest.raises(ValueError, match=r"the subspaces are for images of shape \(6, 5, 2\)"):
        narrow(classifier, images, LABELS, KEY)
    several = make(epsilon=1.0, subspace=[window()])
    with pytest.raises(
        TypeError, match=r"the attack's subspace must be one subspace of hmt_jax.subspaces, or None, got"
    ):
        several(classifier, images, LABELS, KEY)


def test_bad_arguments_of_evaluate():
    evaluate = partial(attacks.evaluate, tanh_classifier(), attack=attacks.DeepFool(epsilon=1.0), key=KEY)
    for images, labels in ((grey_images(), LABELS[:-1]), (grey_images()[:0], LABELS[:0])):
        with pytest.raises(ValueError, match=r"labels \(N,\), with N at least 1, got"):
            evaluate(images, labels)
    for wrong, kind, message in (
        (3, TypeError, r"subspaces must be one subspace of hmt_jax\.subspaces or a list of them, got int"),
        ([window(), None], TypeError, "every one of the subspaces must have methods coordinates and embed, got None"),
        ([], ValueError, "subspaces is empty: pass at least one subspace"),
        ([window(), subspaces.full((6, 5, 2))], ValueError, r"the subspaces are for images of shape \(6, 5, 2\), but"),
    ):
        with pytest.raises(kind, match=message):
            evaluate(grey_images(), LABELS, subspaces=wrong)
    for wrong, message in (
        (lambda images: images.reshape(len(images), -1)[:1], r"for N = 6 it returned \(1, 72\)"),
        (lambda images: images.reshape(len(images), -1)[:, :1], "classifier has one class only"),
        (lambda images: images.reshape(len(images), -1).argmax(1), r"for N = 6 it returned \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.evaluate(wrong, grey_images(), LABELS, attacks.DeepFool(epsilon=1.0), KEY)
        with pytest.raises(ValueError, match=message):
            training.evaluate(wrong, grey_images(), LABELS, devices=jax.devices()[:1])
    with pytest.raises(
        ValueError, match="labels must be whole numbers from 0 to 3, since the classifier has 4 logits, but"
    ):
        evaluate(grey_images(), np.array([*LABELS[:-1], 4]))
    with pytest.raises(ValueError, match=r"^classifier can't be applied to images of shape \(N, 2, 2, 2\): "):
        evaluate(grey_images()[:, :2, :2], LABELS)


@pytest.mark.slow
@each_attack
def test_images_that_an_attack_can_not_move_give_a_warning(make):
    images = 255 * grey_images()
    message = "8-bit or divided by 255, or an attack with domain='unbounded', because this one moves no pixel"
    with pytest.warns(hmt_jax.PixelRangeWarning, match=message) as warned:
        attacks.evaluate(tanh_classifier(), images, LABELS, make(epsilon=1.0), KEY)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.evaluate(tanh_classifier(), images, LABELS, make(epsilon=1.0, domain="unbounded"), KEY)
        flipped = np.asarray(frequency.flip(grey_images()))
        attacks.evaluate(tanh_classifier(), flipped, LABELS, make(epsilon=1.0, domain="flipped"), KEY)


def test_arguments_and_results_of_attacks_are_checked():
    images = grey_images()
    for attack, message in (
        (
            lambda classifier, images, labels, key: images[:1],
            r"of shape \(6, 6, 6, 2\), got float32 \(1, 6, 6, 2\): return",
        ),
        (lambda classifier, images, labels, key: None, "got a NoneType: return one image for each that is passed"),
        (
            partial(attacks.PGD, norm="l2"),
            r"attack must be an attack, such as hmt_jax\.attacks\.PGD\(norm='l2', epsilon=1\.0\), or a function of "
            ".classifier, images, labels, key., got functools",
        ),
        (attacks.PGD, "or a function of .classifier, images, labels, key., got <class"),
        (None, "attack must not be None: to measure unperturbed images, use hmt_jax.training.evaluate"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            attacks.evaluate(tanh_classifier(), images, LABELS, attack, KEY)
    for call in (partial(attacks.evaluate, attack=QUICK_PGD(epsilon=0.1)), QUICK_PGD(epsilon=0.1)):
        with pytest.raises(TypeError, match=r"key must be a random key, got 3: make one with jax\.random\.key\(3\)$"):
            call(tanh_classifier(), images, LABELS, key=3)


def test_arrays_in_another_byte_order_are_attacked_as_they_are():
    attack, images = QUICK_PGD(epsilon=0.1), grey_images()
    expected = attack(tanh_classifier(), images, LABELS, KEY)
    for kind in (">f4", np.longdouble):
        np.testing.assert_array_equal(
            attack(tanh_classifier(), images.astype(kind), LABELS.astype(">i4"), KEY), expected
        )
    with pytest.raises(ValueError, match="images has 432 masked entries, which have no value: leave those samples out"):
        attack(tanh_classifier(), np.ma.masked_all(images.shape), LABELS, KEY)


def test_a_plain_function_is_an_attack():
    images, labels = grey_images(), np.zeros(len(grey_images()), int)

    def darken(classifier, images, labels, key):
        return images - 0.1

    found = attacks.evaluate(tanh_classifier(), images, labels, darken, KEY)
    expected = training.evaluate(tanh_classifier(), images - np.float32(0.1), labels)
    np.testing.assert_allclose([found.loss, found.accuracy], expected, rtol=1e-6)


def test_starts_of_large_images_in_half_precision_fill_the_ball():
    """The squared length of 270,000 numbers near 1 is infinite in float16."""
    changes = random_starts(
        3, level=0.0, shape=(300, 300, 3), dtype=np.float16, norm="l2", epsilon=100.0, domain="unbounded"
    )
    # In 270,000 dimensions nearly all of a ball is near its surface; float16 has three digits.
    np.testing.assert_allclose(norms(changes, "l2"), 100, rtol=1e-2)


@each_attack
def test_labels_of_an_attack_alone_are_classes(make):
    for wrong, message in (
        (4, "labels must be whole numbers from 0 to 3, since the"),
        (-1, "but the lowest one is -1"),
        (2**32 + 1, "labels must be whole numbers in int32, but the greatest one is 4294967297"),
    ):
        with pytest.raises(ValueError, match=message):
            make(epsilon=0.1)(tanh_classifier(), grey_images(), np.full(6, wrong), KEY)


@pytest.mark.slow
@each_attack
@pytest.mark.parametrize("dtype", slow_except(["int8", "int16", "uint8", "int32"], "uint8"))
def test_labels_may_be_of_any_whole_type_and_part_of_a_program(make, dtype):
    attack, classifier = make(epsilon=0.1), tanh_classifier()
    expected = attack(classifier, grey_images(), LABELS, KEY)
    labels = jnp.asarray(LABELS, dtype)
    np.testing.assert_array_equal(attack(classifier, grey_images(), labels, KEY), expected)
    # Closed over they are no tracer, but what is computed of them within a program is one.
    compiled = jax.jit(lambda images: attack(classifier, images, labels, KEY))
    np.testing.assert_allclose(compiled(grey_images()), expected, rtol=0, atol=ROUNDING)


def test_every_image_has_a_random_start_of_its_own():
    attack = attacks.PGD(norm="l2", epsilon=0.3, num_steps=1, step_size=1e-3)
    changes = attack(linear_classifier()[0], np.full((16, *SHAPE), 0.5, np.float32), np.zeros(16, int), KEY) - 0.5
    # Of those whose loss was less at the start, and after a step of 0.001, the image itself is given back.
    changes = [change for change in np.asarray(changes) if np.linalg.norm(change) > 2e-3]
    assert len(changes) >= 4
    assert len({change.tobytes() for change in changes}) == len(changes)


def test_every_batch_of_an_evaluation_has_a_key_of_its_own():
    seen = []

    def attack(classifier, images, labels, key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return images

    attacks.evaluate(tanh_classifier(), grey_images(), LABELS, attack, KEY, batch_size=2)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 3


def test_subspaces_of_users_must_be_orthonormal():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Doubled(subspaces.Subspace):
        image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

        def coordinates(self, image):
            return 2 * image.reshape(-1)

        def embed(self, z):
            return 2 * z.reshape(self.image_shape)

    classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    images, labels, key = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]), jax.random.key(0)
    attack = attacks.PGD(norm="l2", epsilon=0.1, num_steps=1, subspace=Doubled((2, 2, 1)))
    for call in (attack, jax.jit(lambda *arguments: attack(*arguments))):
        with pytest.raises(ValueError, match="coordinates of Doubled are not orthonormal"):
            call(classifier, images, labels, key)
