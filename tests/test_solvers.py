"""The solvers besides DeepFool: closed forms, scales, statuses, and brute force in the plane."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import labels_of, random_images, random_network, slow_except, solve_all

import hmt_jax
from hmt_jax import exact, solvers, subspaces
from hmt_jax.solvers import DDN, FMN, ClosestPoint, DeepFool, Linear, Scan, Status, SuperDeepFool, norms_of, tight

FAMILY = {
    "ddn": DDN(),
    "fmn": FMN(),
    "superdeepfool": SuperDeepFool(),
    "closest_point": ClosestPoint(),
    "quick": tight("quick"),
    "fast": tight("fast"),
    "normal": tight("normal"),
    "thorough": tight("thorough"),
}


# And DeepFool's, in spaces that they can search.
ALL = {**FAMILY, "deepfool": DeepFool(), "deepfool, two candidates": DeepFool(num_candidates=2)}

# The programs of each solver take seconds to compile, and these few differ most.
EACH_OF_FAMILY = slow_except(FAMILY, "ddn", "quick")
EACH_OF_ALL = slow_except(ALL, "ddn", "quick", "deepfool")


@partial(jax.jit, static_argnums=(0, 1))
def solve(solver, g, parameters, origin):
    """Solutions of restrictions g(parameters, z), one for each row of the parameters, from z = 0.

    Each is a classifier of images of one row of pixels, and the sample is black.
    """
    image = origin.reshape(1, -1, 1)

    def of_one(row):
        classifier = jax.tree_util.Partial(lambda row, images: jax.vmap(partial(g, row))(images[:, 0, :, 0]), row)
        return hmt_jax.measure_margin(classifier, image, subspaces.full(image.shape), solver)

    return jax.vmap(of_one)(parameters)


def affine(row, z):
    weights, bias = row
    return weights @ z + bias


def linear_classifiers(num_classes, dimension=64):
    """Weights of unequal lengths, biases, and the exact margins at z = 0, by NumPy in float64: of 30 classifiers."""
    num = 30
    rng = np.random.default_rng(num_classes)
    weights = rng.normal(size=(num, num_classes, dimension)) * rng.uniform(0.7, 1.4, size=(num, num_classes, 1))
    biases = 3 * rng.normal(size=(num, num_classes))
    weights, biases = weights.astype(np.float32).astype(float), biases.astype(np.float32).astype(float)
    labels = biases.argmax(1)[:, None]
    gaps = np.take_along_axis(biases, labels, 1) - biases
    lengths = np.linalg.norm(weights - np.take_along_axis(weights, labels[:, :, None], 1), axis=2)
    distances = np.where(lengths > 0, gaps / np.where(lengths > 0, lengths, 1), np.inf)
    return (jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32)), distances.min(1)


def solve_affine(solver, weights, biases, num_classes=10):
    """Solutions of linear classifiers, with classes that are ruled out to make `num_classes`.

    Tests of classifiers in as many dimensions then share one program for each solver.
    """
    num_more = num_classes - biases.shape[1]
    weights = jnp.pad(weights, ((0, 0), (0, num_more), (0, 0)))
    biases = jnp.pad(biases, ((0, 0), (0, num_more)), constant_values=-jnp.inf)
    return jax.tree.map(np.asarray, solve(solver, affine, (weights, biases), jnp.zeros(weights.shape[2])))


@pytest.mark.parametrize("effort", ["quick", "fast", "normal", "thorough"])
# In few dimensions boundaries lie at very unequal distances, and a walk may end at another than the nearest.
@pytest.mark.parametrize(
    ("num_classes", "dimension"), slow_except([(2, 64), (10, 64), (1000, 64), (3, 5), (8, 5)], (10, 64))
)
def test_tight_is_exact_on_linear_classifiers(effort, num_classes, dimension):
    parameters, margins = linear_classifiers(num_classes, dimension)
    solution = solve_affine(tight(effort), *parameters, num_classes=max(num_classes, 10))
    assert (solution.status == Status.CONVERGED).all()
    # Float32 knows the boundary no better than to the rounding of a logit: a little where margins are, much near 0.
    hidden = np.finfo(np.float32).eps * np.abs(parameters[1]).max(1) / np.linalg.norm(parameters[0], axis=2).min(1)
    assert (np.abs(solution.margin - margins) <= 1e-5 * margins + 2 * hidden).all()


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
def test_solutions_are_adversarial_and_no_shorter_than_they_may(name):
    (weights, biases), margins = linear_classifiers(10)
    solution = solve_affine(FAMILY[name], weights, biases)
    assert (solution.status == Status.CONVERGED).all()
    if name in ("ddn", "fmn", "superdeepfool", "closest_point"):
        assert (solution.margin >= margins * (1 - 1e-5)).all()
        # Their last steps are 0.5 to 2% of the norm long.
        assert np.median(solution.margin / margins) < 1.021
    weights, biases = (np.asarray(array, float) for array in (weights, biases))
    logits = np.einsum("nld,nd->nl", weights, solution.coordinates) + biases
    assert (solution.adversarial_label != solution.label).all()
    leading = logits[np.arange(len(logits)), solution.adversarial_label]
    np.testing.assert_allclose(leading, logits.max(1), atol=1e-5)  # float32 rounds logits, and searches end close by
    np.testing.assert_allclose(np.linalg.norm(solution.coordinates, axis=1), solution.margin, rtol=1e-6)


def ball(row, z):
    center, radius = row
    return jnp.stack([jnp.zeros(()), jnp.sum((z - center) ** 2) - radius**2])


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
@pytest.mark.parametrize("is_inside", [True, False])
def test_margins_of_a_ball(name, is_inside):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, 12)).astype(np.float32)
    distances = np.linalg.norm(centers, axis=1)
    radii = distances * (1.3 if is_inside else 0.7)
    solution = solve(FAMILY[name], ball, (jnp.asarray(centers), jnp.asarray(radii, jnp.float32)), jnp.zeros(12))
    # The last steps of the others are 0.5 to 2% long, and SuperDeepFool ends at the first projection behind the
    # boundary, which from within is an early one.
    tolerance = 1e-4 if name in ("fast", "normal", "thorough") else 0.03
    if name == "quick":
        tolerance = 3e-3  # one step of polish leaves the square of the last turn
    if name == "superdeepfool" and is_inside:
        tolerance = 0.2
    np.testing.assert_allclose(solution.margin, np.abs(radii - distances), rtol=tolerance)


@pytest.mark.parametrize("name", EACH_OF_ALL)
@pytest.mark.parametrize("logit", [-1e9, -1e30, -np.inf])
def test_a_class_that_is_ruled_out_does_not_count(name, logit):
    """As one may restrict a network of many classes to some: the margin is that between the others."""
    (weights, biases), margins = linear_classifiers(2)
    weights, biases = jnp.append(weights, -weights[:, :1], 1), jnp.append(biases, jnp.full((30, 1), logit), 1)
    solution = solve_affine(ALL[name], weights, biases)
    assert (solution.status == Status.CONVERGED).all()
    # The last steps are 0.5 to 2% of the norm long.
    np.testing.assert_allclose(solution.margin, margins, rtol=0.021)


@pytest.mark.parametrize("name", EACH_OF_ALL)
def test_without_another_class_there_is_no_boundary(name):
    (weights, biases), _ = linear_classifiers(3)
    is_label = jnp.arange(3)[None] == jnp.argmax(biases, axis=1)[:, None]
    solution = solve_affine(ALL[name], weights, jnp.where(is_label, biases, -jnp.inf))
    assert (solution.status == Status.ZERO_GRADIENT).all()
    assert np.isinf(solution.margin).all()
    np.testing.assert_array_equal(solution.label, np.argmax(biases, axis=1))


# With two candidates DeepFool looks at the label's twin alone.
@pytest.mark.parametrize("name", slow_except([*FAMILY, "deepfool"], "ddn", "quick", "deepfool"))
def test_classes_that_never_leave_the_label_do_not_count(name):
    """Twins of every class, and one that stays just below the label's: the margin is that of the others."""
    (weights, biases), margins = linear_classifiers(2)
    below = jnp.argmax(biases, axis=1)[:, None]
    weights = jnp.concatenate([weights, weights, jnp.take_along_axis(weights, below[:, :, None], 1)], axis=1)
    biases = jnp.concatenate([biases, biases, jnp.take_along_axis(biases, below, 1) - 1e-3], axis=1)
    solution = solve_affine(ALL[name], weights, biases)
    assert (solution.status == Status.CONVERGED).all()
    np.testing.assert_allclose(solution.margin, margins, rtol=0.021)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("value", "size"), [(4e-7, 2), (1e-3, 150528), (3e4, 2), (1.5e38, 2), (0.0, 2)])
def test_norms_of_any_scale(dtype, value, size):
    vectors = jnp.zeros((1, size), dtype).at[0, : max(size - 1, 1)].set(value)
    expected = np.linalg.norm(np.asarray(vectors, float), axis=1)
    np.testing.assert_allclose(np.asarray(jax.jit(norms_of)(vectors), float), expected, rtol=1e-2)  # of half precision


@pytest.mark.parametrize("solver", [DeepFool(), Linear()], ids=["DeepFool", "exact"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_margins_of_linear_classifiers_of_any_scale(solver, scale):
    (weights, biases), margins = linear_classifiers(4)
    solution = solve_affine(solver, scale * weights, scale * biases)
    np.testing.assert_allclose(solution.margin, margins * (1 + getattr(solver, "overshoot", 0)), rtol=1e-4)


@pytest.mark.parametrize("solver", [DeepFool(), Linear()], ids=["DeepFool", "exact"])
def test_margins_whose_squares_are_out_of_range_are_finite(solver):
    (weights, biases), margins = linear_classifiers(4)
    solution = solve_affine(solver, 1e-25 * weights, biases)
    np.testing.assert_allclose(solution.margin, 1e25 * margins * (1 + getattr(solver, "overshoot", 0)), rtol=1e-4)
    beyond = solve_affine(solver, 1e-36 * weights, 1e6 * biases)
    assert (beyond.status == Status.ZERO_GRADIENT).all()
    assert np.isinf(beyond.margin).all()


def two_layers(row, z):
    first, second = row
    return second @ jnp.tanh(first @ z + 0.3)


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
# Squares of gradients of 1e-25 and of 1e25 have no place in float32.
@pytest.mark.parametrize(
    ("of_z", "of_logits"), [(1e3, 1), (1e-3, 1), (1e25, 1), (1, 1e3), (1, 1e-3), (1, 1e-25), (1, 1e25)]
)
def test_no_scale_is_absolute(name, of_z, of_logits):
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(16, 40, 10)), rng.normal(size=(16, 5, 40))

    def margins(of_z, of_logits):
        parameters = jnp.asarray(first / of_z, jnp.float32), jnp.asarray(second * of_logits, jnp.float32)
        solution = solve(FAMILY[name], two_layers, parameters, jnp.zeros(10))
        assert (np.asarray(solution.status) == Status.CONVERGED).all()
        return np.asarray(solution.margin)

    plain, scaled = margins(1, 1), margins(of_z, of_logits) / of_z
    # Rounding differs, and may part two searches at a choice: for few of them, and not to much effect.
    assert np.mean(np.abs(scaled / plain - 1) < 1e-3) > 0.8
    np.testing.assert_allclose(np.median(scaled), np.median(plain), rtol=0.01)


def odd(row, z):
    """Two logits of three coordinates, of the kind that the row names, so that one program serves all kinds."""
    kind, slope, ceiling, slopes = row
    total = z.sum()
    kinds = {
        "bounded": [1, ceiling * jnp.tanh(slope * total)],
        "undefined beyond a limit": [1, jnp.where(total > slope, jnp.nan, total)],
        "opposite": [-(slopes[0] @ z), slopes[0] @ z],
        "all 0 at the sample": jnp.tanh(slopes @ z),
    }
    assert tuple(kinds) == KINDS
    return jnp.stack([jnp.asarray(logits, z.dtype) for logits in kinds.values()])[kind]


KINDS = ("bounded", "undefined beyond a limit", "opposite", "all 0 at the sample")
SLOPES = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
# Name: kind, slope, ceiling.
ODD = {
    "never": ("bounded", 1.0, 0.9),
    "unmoved": ("bounded", 0.0, 0.9),
    "broken": ("bounded", np.nan, 0.9),
    "crossed": ("bounded", 1.0, 2.0),
    "undefined": ("undefined beyond a limit", 0.9, 0.0),
    "tie": ("opposite", 0.0, 0.0),
    "black": ("all 0 at the sample", 0.0, 0.0),
}


def odd_rows():
    kinds, slopes, ceilings = zip(*ODD.values(), strict=True)
    numbers = jnp.asarray([KINDS.index(kind) for kind in kinds])
    return numbers, jnp.asarray(slopes), jnp.asarray(ceilings), jnp.asarray([SLOPES] * len(ODD))


@functools.cache
def odd_solutions(name):
    """The solutions that a solver of ALL finds for ODD, by their names."""
    solution = jax.tree.map(np.asarray, solve(ALL[name], odd, odd_rows(), jnp.zeros(3)))
    return {case: jax.tree.map(lambda leaf, n=n: leaf[n], solution) for n, case in enumerate(ODD)}


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
def test_statuses(name):
    found = odd_solutions(name)
    # Far out the gradient of tanh vanishes in float32; the search stays where it is, and is out of steps in the end.
    assert found["never"].status == Status.OUT_OF_STEPS
    assert found["unmoved"].status == Status.ZERO_GRADIENT
    assert found["broken"].status == Status.NON_FINITE
    assert found["crossed"].status == Status.CONVERGED
    assert np.isinf(found["unmoved"].margin)
    assert np.isnan(found["broken"].margin)
    labels = [found[case].adversarial_label for case in ("never", "unmoved", "broken", "crossed")]
    assert labels == [0, 0, -1, 1]
    # tanh(z . 1) = 1 / 2 at a distance of atanh(1 / 2) / sqrt(3)
    np.testing.assert_allclose(found["crossed"].margin, np.arctanh(0.5) / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
def test_logits_that_are_not_finite_are_no_label(name):
    found = odd_solutions(name)["undefined"]
    assert found.status == Status.NON_FINITE
    assert (found.label, found.adversarial_label) == (0, 0)
    assert np.isnan(found.margin)


@pytest.mark.parametrize("name", EACH_OF_ALL)
def test_a_tie_of_zeros_is_won_by_the_first_class_whatever_their_signs(name):
    row = jax.tree.map(lambda leaf: leaf[list(ODD).index("tie")], odd_rows())
    assert np.signbit(odd(row, jnp.zeros(3))).tolist() == [True, False]
    found = odd_solutions(name)["tie"]
    assert (found.label, found.adversarial_label) == (0, 1)


@pytest.mark.parametrize("name", EACH_OF_ALL)
def test_a_sample_without_a_single_logit_but_0_is_on_the_boundary(name):
    """A black image, for a network without biases: the label changes at once, whatever else is measured."""
    linear = solve_affine(ALL[name], jnp.asarray(np.random.default_rng(0).normal(size=(30, 3, 64))), jnp.zeros((30, 3)))
    for found in (odd_solutions(name)["black"], linear):
        assert np.all(found.status == Status.CONVERGED)
        # DeepFool goes 1e-4 beyond what it aims at.
        assert np.all(found.margin <= (2e-4 if name.startswith("deepfool") else 2e-6))


@pytest.mark.parametrize("name", EACH_OF_FAMILY)
def test_a_sample_on_the_boundary_has_a_tiny_margin(name):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3, 64)), jnp.float32)
    solution = solve_affine(FAMILY[name], weights, jnp.ones((30, 3)))
    assert (solution.status == Status.CONVERGED).all()
    assert (solution.margin < 1e-4).all()


@pytest.fixture(scope="module")
def measured():
    """A small network, images, three windows, and what DeepFool finds there."""
    classifier = random_network("mlp", (4, 4, 1), mean=(0.5,), std=(0.25,), num_classes=3)
    images, windows = random_images(9, 4, 4, 1, dtype="float32"), subspaces.dct_diagonal((4, 4, 1), size=2, step=1)
    return (
        classifier,
        images,
        windows,
        hmt_jax.measure_margins(classifier, images, windows, DeepFool(), keep_coordinates=True),
    )


# Two steps are one look, since `start` looks at nothing.
@pytest.mark.slow
@pytest.mark.parametrize("max_steps", slow_except([2, 3], 2))
@pytest.mark.parametrize(
    "solver_of",
    [partial(DDN, num_steps=1), partial(FMN, num_steps=1), partial(ClosestPoint, num_steps=1), SuperDeepFool],
)
def test_a_search_out_of_steps_ends_at_a_point_that_was_looked_at(max_steps, solver_of, measured):
    """For any number of steps, where the logits are those of the label, the label is the one in the solution."""
    classifier = measured[0]
    images, window = random_images(27, 4, 4, 1, dtype="float32"), subspaces.dct_window((4, 4, 1), 1, 1, 2)
    found = solve_all(classifier, images, window, solver_of(max_steps=max_steps))
    is_out = found.status == Status.OUT_OF_STEPS
    assert 2 < is_out.sum() < 27
    assert (found.num_steps[is_out] == max_steps).all()
    assert (found.margin[is_out] > 0).all()
    labels = np.asarray(labels_of(classifier, images + jax.vmap(window.embed)(found.coordinates)))
    np.testing.assert_array_equal(labels[is_out], found.label[is_out])
    np.testing.assert_array_equal(found.adversarial_label[is_out], found.label[is_out])
    np.testing.assert_allclose(found.margin, np.linalg.norm(found.coordinates, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DeepFool(max_steps=2.5), "max_steps"),
        (lambda: SuperDeepFool(num_candidates=2.5), "num_candidates"),
        (lambda: DDN(num_steps=2.5), "num_steps"),
        (lambda: Scan(num_angles=2.5), "num_angles"),
    ],
)
def test_counts_are_whole_numbers(make, field):
    with pytest.raises(ValueError, match=rf"{field} must be a whole number, got 2\.5"):
        make()


def test_settings_out_of_range(measured):
    with pytest.raises(ValueError, match="effort must be one of quick, fast, normal, thorough"):
        tight("more")
    with pytest.raises(ValueError, match="max_steps must be at least num_steps"):
        DDN(num_steps=50, max_steps=10)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        FMN(num_steps=0)
    with pytest.raises(ValueError, match="num_candidates must be at least 2"):
        SuperDeepFool(num_candidates=1)
    with pytest.raises(ValueError, match="overshoot must be finite and not negative"):
        SuperDeepFool(overshoot=-0.1)
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        hmt_jax.bisect(*measured, num_steps=-1)


@pytest.mark.parametrize("solver_of", [DDN, FMN, SuperDeepFool, ClosestPoint, Scan])
def test_settings_are_passed_by_name(solver_of):
    with pytest.raises(TypeError, match="positional"):
        solver_of(10)
    assert solver_of() == solver_of()
    assert hash(solver_of()) == hash(solver_of())


@pytest.mark.slow
def test_bisection_of_what_deepfool_finds(measured):
    """Against halving in NumPy, of the perturbations that DeepFool returns."""
    classifier, images, windows, before = measured
    after = hmt_jax.bisect(classifier, images, windows, before, num_steps=12)
    for r, n in np.ndindex(before.margin.shape):
        z, inside, outside = before.coordinates[r][n], 0.0, 1.0
        for _ in range(12):
            middle = (inside + outside) / 2
            label = labels_of(classifier, (images[n] + windows[r].embed(middle * z))[None])[0]
            inside, outside = (middle, outside) if label == before.label[r, n] else (inside, middle)
        # A last halving or two may fall the other way by rounding.
        np.testing.assert_allclose(after.margin[r, n], outside * before.margin[r, n], rtol=2**-10)
        np.testing.assert_allclose(np.linalg.norm(after.coordinates[r][n]), after.margin[r, n], rtol=1e-5)
    assert (after.margin <= before.margin).all()
    assert (after.margin < 0.999 * before.margin).any()
    assert (after.gap >= -1e-5).all()


@pytest.mark.slow
def test_bisection_does_not_take_nan_for_another_label():
    """Its logits are NaN on the way from 0.3 to 0.5, and of another label from 0.8."""

    def classifier(images):
        x = images[:, 0, 0, 0]
        return jnp.stack([jnp.full_like(x, 0.8), jnp.where((x > 0.3) & (x < 0.5), jnp.nan, x)], axis=1)

    pixel, image = subspaces.full((1, 1, 1)), jnp.zeros((1, 1, 1, 1))
    found = hmt_jax.measure_margins(classifier, image, pixel, DeepFool(), keep_coordinates=True)
    halved = hmt_jax.bisect(classifier, image, pixel, found, num_steps=3)
    assert halved.is_converged.all()
    assert 0.8 <= halved.margin[0, 0] <= 0.816
    assert np.isfinite(halved.gap).all()


@pytest.mark.slow
def test_the_best_of_two_results_is_no_larger_than_either(measured):
    """DeepFool's points stand where a solver of one look finds none, and where it finds a farther one."""
    classifier, images, windows, deepfool = measured
    alone = hmt_jax.measure_margins(classifier, images, windows, FMN(num_steps=1, max_steps=2))
    joined = alone.best_of(deepfool)
    assert (~alone.is_converged).any() or (alone.margin > deepfool.margin).any()
    expected = np.fmin(np.where(alone.is_converged, alone.margin, np.inf), deepfool.margin)
    np.testing.assert_array_equal(joined.margin, expected)
    assert joined.is_converged.all()
    with pytest.raises(ValueError, match="keep_coordinates=True"):
        hmt_jax.bisect(classifier, images, windows, alone)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_tight_margins_beside_exact_ones(dimension):
    """Of an MLP, whose linear regions are gone through one by one."""
    classifier = random_network("mlp", (4, 4, 1), mean=(0.5,), std=(0.25,), seed=2, num_hidden=(16, 16))
    images = random_images(12, 4, 4, 1, seed=3, dtype="float32")
    subspace = subspaces.random(jax.random.key(4), (4, 4, 1), dimension)
    result = solve_all(classifier, images, subspace, tight("normal"))
    margins = np.array([exact.piecewise_linear(classifier, image, subspace).margin for image in images])
    is_crossed = np.isfinite(margins)
    np.testing.assert_array_equal(result.status == Status.CONVERGED, is_crossed)
    ratios = result.margin[is_crossed] / margins[is_crossed]
    assert is_crossed.sum() > 6
    assert (ratios > 1 - 1e-5).all()
    # On lines and in planes it looks everywhere; in space it may take another of several boundaries.
    assert (ratios < 1.01).mean() >= (1 if dimension < 3 else 0.75)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_tight_margins_of_the_reference_network_in_planes(reference, reference_lenet):
    """Against a scan with rays and rings that are finer by far."""
    images = reference["images"][:3].reshape(3, 28, 28, 1).astype(np.float32) / 255
    plane = subspaces.random(jax.random.key(0), (28, 28, 1), 2)
    settings = {"devices": jax.devices()[:1], "batch_size": 3}
    found = hmt_jax.measure_margins(reference_lenet, images, plane, tight("fast"), **settings)
    median = float(np.median(found.margin))
    fine = Scan(reach=1.1 * float(found.margin.max()), resolution=median / 12, num_angles=100)
    scanned = hmt_jax.measure_margins(reference_lenet, images, plane, fine, **settings)
    np.testing.assert_allclose(found.margin, scanned.margin, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64], ids=lambda dtype: dtype.__name__
)
@pytest.mark.parametrize("name", [*EACH_OF_ALL, "scan"])
def test_states_keep_their_types(name, dtype, x64):
    """A loop that is compiled whole, as on accelerators, takes no others; nor does strict promotion of dtypes."""
    solver, dimension = (Scan(), 2) if name == "scan" else (ALL[name], 9)
    origin, weights = jnp.zeros(dimension, dtype), jnp.ones((3, dimension), dtype)

    def restriction(z):
        return jnp.tanh(weights @ z) + jnp.arange(3, dtype=dtype)

    def start():
        return solver.start(restriction, solvers.linearize(restriction, origin, solver.num_candidates))

    with jax.numpy_dtype_promotion("strict"):
        before = jax.eval_shape(start)
        after = jax.eval_shape(lambda state: solver.step(restriction, state), before)
        jax.eval_shape(lambda state: (solver.done(state), solver.point(state)), before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)


@pytest.mark.slow
def test_a_small_gap_in_half_precision_is_searched():
    """In float16, a millionth of the gap is 0."""
    parameters = (jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]], jnp.float16), jnp.asarray([[0.01, 0.0]], jnp.float16))
    solution = solve(FMN(), affine, parameters, jnp.zeros(2, jnp.float16))
    assert solution.status[0] == Status.CONVERGED
    np.testing.assert_allclose(solution.margin[0], 0.01 / np.sqrt(2), rtol=0.1)  # float16 has three digits


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [FAMILY["ddn"], FAMILY["fmn"], solvers.Walk(num_steps=18, num_rounds=1)],
    ids=["ddn", "fmn", "walk"],
)
def test_no_step_goes_beyond_the_best_point(solver):
    """Of the walk: before its polish, which may look behind the boundary by rounding."""
    rng = np.random.default_rng(2)
    parameters = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 40, 10), (16, 5, 40)))

    @jax.vmap
    def greatest(row):
        def restriction(z):
            return two_layers(row, z)

        def step(search, _):
            search = solver.step(restriction, search)
            found = solver.point(search)
            ratio = jnp.linalg.norm(search.z) / jnp.linalg.norm(found.z)
            return search, jnp.where(found.label != label, ratio, 0)

        at_sample = solvers.linearize(restriction, jnp.zeros(10), solver.num_candidates)
        label = at_sample.candidates[0]
        return jax.lax.scan(step, solver.start(restriction, at_sample), length=17)[1].max()

    ratios = np.asarray(jax.jit(greatest)(parameters))
    assert (ratios <= 1 + 1e-5).all()
    assert (ratios > 0.9).all()


def test_the_default_is_the_quick_walk_and_is_named_so():
    classifier = random_network("mlp", (4, 4, 1), mean=[0.5], std=[0.5])
    images, windows = random_images(3, 4, 4, 1), [subspaces.full((4, 4, 1))]
    default, quick = (hmt_jax.measure_margins(classifier, images, windows, *given) for given in ([], [tight("quick")]))
    np.testing.assert_array_equal(default.margin, quick.margin)
    assert default.solver.startswith('tight("quick") = Walk(num_steps=21, ')
    # With the settings as well, so that margins with other ones are not taken for the same.
    for name, value in vars(tight("quick")).items():
        assert f"{name}={value}" in default.solver


@pytest.mark.slow
def test_later_rounds_of_a_walk_start_anew():
    solver = tight("thorough")
    (weights, biases), _ = linear_classifiers(5)
    weights, biases = weights[0], biases[0]

    def restriction(z):
        return weights @ z + biases

    def step(search, _):
        search = solver.step(restriction, search)
        return search, (search.z, solver.point(search))

    at_sample = solvers.linearize(restriction, jnp.zeros(64), 10)
    search = solver.start(restriction, at_sample)
    _, (points, found) = jax.jit(lambda search: jax.lax.scan(step, search, length=5 * solver.num_steps))(search)
    weights, biases = np.asarray(weights, float), np.asarray(biases, float)
    label = biases.argmax()
    normals = np.delete(weights - weights[label], label, 0)
    lengths = np.linalg.norm(normals, axis=1)
    order = np.argsort(np.delete(biases[label] - biases, label) / lengths)
    # The first step of the first round is the one that finds an adversarial point, and a round ends with a new start.
    last_steps = np.argmax(found.label != label) + solver.num_steps * np.arange(1, 5) - 1
    restarts = np.asarray(points, float)[last_steps]
    norms = np.linalg.norm(restarts, axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(found.z, axis=1)[last_steps], rtol=1e-5)
    units = restarts / norms[:, None]
    # First towards the candidates after the nearest, then around the best point, in another way each time.
    for unit, index in zip(units[:2], order[1:3], strict=True):
        assert unit @ normals[index] / lengths[index] == pytest.approx(1, abs=1e-5)
    assert np.abs(units[2] - units[3]).max() > 1e-3
