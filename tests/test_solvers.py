"""The solvers besides DeepFool: closed forms, scales, statuses, and brute force in the plane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hmt_jax
from hmt_jax import exact, solvers, subspaces
from hmt_jax.solvers import Status, norms_of

FAMILY = {
    "ddn": solvers.ddn(),
    "fmn": solvers.fmn(),
    "superdeepfool": solvers.superdeepfool(),
    "closest_point": solvers.closest_point(),
    "fast": solvers.tight("fast"),
    "normal": solvers.tight("normal"),
    "thorough": solvers.tight("thorough"),
}


# And DeepFool's and the scan's, in spaces that they can search.
ALL = {**FAMILY, "deepfool": solvers.deepfool(), "deepfool, two candidates": solvers.deepfool(num_candidates=2)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve(solver, g, parameters, origin):
    """A solver on restrictions g(parameters, z), one for each row of the parameters, from z = 0."""

    def of_one(row):
        def restriction(z):
            return g(row, z)

        return jax.lax.while_loop(
            lambda state: ~solver.done(state),
            lambda state: solver.step(restriction, state),
            solver.start(restriction, solvers.linearize(restriction, origin, solver.num_candidates)),
        )

    return jax.vmap(lambda row: solver.result(of_one(row)))(parameters)


def affine(row, z):
    weights, bias = row
    return weights @ z + bias


def linear_classifiers(num_classes, dimension=64, num=30):
    """Weights of unequal lengths, biases, and the exact margins at z = 0, by NumPy in float64."""
    rng = np.random.default_rng(num_classes)
    weights = rng.normal(size=(num, num_classes, dimension)) * rng.uniform(0.7, 1.4, size=(num, num_classes, 1))
    biases = 3 * rng.normal(size=(num, num_classes))
    weights, biases = weights.astype(np.float32).astype(float), biases.astype(np.float32).astype(float)
    labels = biases.argmax(1)[:, None]
    gaps = np.take_along_axis(biases, labels, 1) - biases
    lengths = np.linalg.norm(weights - np.take_along_axis(weights, labels[:, :, None], 1), axis=2)
    distances = np.where(lengths > 0, gaps / np.where(lengths > 0, lengths, 1), np.inf)
    return (jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32)), distances.min(1)


@pytest.mark.parametrize("effort", ["fast", "normal", "thorough"])
# In few dimensions boundaries lie at very unequal distances, and a walk may end at another than the nearest.
@pytest.mark.parametrize(("num_classes", "dimension"), [(2, 64), (10, 64), (1000, 64), (3, 5), (8, 5)])
def test_tight_is_exact_on_linear_classifiers(effort, num_classes, dimension):
    parameters, margins = linear_classifiers(num_classes, dimension)
    solution = solve(solvers.tight(effort), affine, parameters, jnp.zeros(dimension))
    assert (np.asarray(solution.status) == Status.CONVERGED).all()
    # Float32 knows the boundary no better than to the rounding of a logit: a little where margins are, much near 0.
    hidden = np.finfo(np.float32).eps * np.abs(parameters[1]).max(1) / np.linalg.norm(parameters[0], axis=2).min(1)
    assert (np.abs(solution.margin - margins) <= 1e-5 * margins + 2 * hidden).all()


@pytest.mark.parametrize("name", ["ddn", "fmn", "superdeepfool", "closest_point"])
def test_solvers_come_near_on_linear_classifiers(name):
    parameters, margins = linear_classifiers(10)
    solution = solve(FAMILY[name], affine, parameters, jnp.zeros(64))
    assert (np.asarray(solution.status) == Status.CONVERGED).all()
    assert (np.asarray(solution.margin) >= margins * (1 - 1e-5)).all()
    # Their last steps are 0.5 to 2% of the norm long.
    assert np.median(solution.margin / margins) < 1.021


@pytest.mark.parametrize("name", FAMILY)
def test_solutions_are_adversarial_and_no_shorter_than_they_may(name):
    parameters, _ = linear_classifiers(10)
    solution = jax.tree.map(np.asarray, solve(FAMILY[name], affine, parameters, jnp.zeros(64)))
    weights, biases = (np.asarray(array, float) for array in parameters)
    logits = np.einsum("nld,nd->nl", weights, solution.coordinates) + biases
    assert (solution.adversarial_label != solution.label).all()
    leading = logits[np.arange(len(logits)), solution.adversarial_label]
    np.testing.assert_allclose(leading, logits.max(1), atol=1e-5)  # float32 rounds logits, and searches end close by
    np.testing.assert_allclose(np.linalg.norm(solution.coordinates, axis=1), solution.margin, rtol=1e-6)


def ball(row, z):
    center, radius = row
    return jnp.stack([jnp.zeros(()), jnp.sum((z - center) ** 2) - radius**2])


@pytest.mark.parametrize("name", FAMILY)
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
    if name == "superdeepfool" and is_inside:
        tolerance = 0.2
    np.testing.assert_allclose(solution.margin, np.abs(radii - distances), rtol=tolerance)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("logit", [-1e9, -1e30, -np.inf])
def test_a_class_that_is_ruled_out_does_not_count(name, logit):
    """As one may restrict a network of many classes to some: the margin is that between the others."""
    (weights, biases), margins = linear_classifiers(2)
    weights, biases = jnp.append(weights, -weights[:, :1], 1), jnp.append(biases, jnp.full((30, 1), logit), 1)
    solution = solve(ALL[name], affine, (weights, biases), jnp.zeros(64))
    assert (np.asarray(solution.status) == Status.CONVERGED).all()
    # The last steps are 0.5 to 2% of the norm long.
    np.testing.assert_allclose(solution.margin, margins, rtol=0.021)


@pytest.mark.parametrize("name", ALL)
def test_without_another_class_there_is_no_boundary(name):
    (weights, biases), _ = linear_classifiers(3)
    is_label = jnp.arange(3)[None] == jnp.argmax(biases, axis=1)[:, None]
    solution = solve(ALL[name], affine, (weights, jnp.where(is_label, biases, -jnp.inf)), jnp.zeros(64))
    assert (np.asarray(solution.status) == Status.ZERO_GRADIENT).all()
    assert np.isinf(solution.margin).all()
    np.testing.assert_array_equal(solution.label, np.argmax(biases, axis=1))


# With two candidates DeepFool is asked to look at the label's twin alone.
@pytest.mark.parametrize("name", [*FAMILY, "deepfool"])
def test_classes_that_never_leave_the_label_do_not_count(name):
    """Twins of every class, and one that stays just below the label's: the margin is that of the others."""
    (weights, biases), margins = linear_classifiers(2)
    below = jnp.argmax(biases, axis=1)[:, None]
    weights = jnp.concatenate([weights, weights, jnp.take_along_axis(weights, below[:, :, None], 1)], axis=1)
    biases = jnp.concatenate([biases, biases, jnp.take_along_axis(biases, below, 1) - 1e-3], axis=1)
    solution = solve(ALL[name], affine, (weights, biases), jnp.zeros(64))
    assert (np.asarray(solution.status) == Status.CONVERGED).all()
    np.testing.assert_allclose(solution.margin, margins, rtol=0.021)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("value", "size"), [(4e-7, 2), (1e-3, 150528), (3e4, 2), (1.5e38, 2), (0.0, 2)])
def test_norms_of_any_scale(dtype, value, size):
    vectors = jnp.zeros((1, size), dtype).at[0, : max(size - 1, 1)].set(value)
    expected = np.linalg.norm(np.asarray(vectors, float), axis=1)
    np.testing.assert_allclose(np.asarray(jax.jit(norms_of)(vectors), float), expected, rtol=1e-2)  # of half precision


@pytest.mark.parametrize("solver", [solvers.deepfool(), exact.linear()], ids=["DeepFool", "exact"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_margins_of_linear_classifiers_of_any_scale(solver, scale):
    parameters, margins = linear_classifiers(4)
    solution = solve(solver, affine, jax.tree.map(lambda leaf: scale * leaf, parameters), jnp.zeros(64))
    np.testing.assert_allclose(solution.margin, margins * (1 + getattr(solver, "overshoot", 0)), rtol=1e-4)


@pytest.mark.parametrize("solver", [solvers.deepfool(), exact.linear()], ids=["DeepFool", "exact"])
def test_margins_whose_squares_are_out_of_range_are_finite(solver):
    (weights, biases), margins = linear_classifiers(4)
    solution = solve(solver, affine, (1e-25 * weights, biases), jnp.zeros(64))
    np.testing.assert_allclose(solution.margin, 1e25 * margins * (1 + getattr(solver, "overshoot", 0)), rtol=1e-4)
    beyond = solve(solver, affine, (1e-36 * weights, 1e6 * biases), jnp.zeros(64))
    assert (np.asarray(beyond.status) == Status.ZERO_GRADIENT).all()
    assert np.isinf(beyond.margin).all()


def two_layers(row, z):
    first, second = row
    return second @ jnp.tanh(first @ z + 0.3)


@pytest.mark.parametrize("name", FAMILY)
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


@pytest.mark.parametrize("name", FAMILY)
def test_statuses(name):
    def g(row, z):
        slope, ceiling = row
        return jnp.stack([jnp.ones(()), ceiling * jnp.tanh(slope * z.sum())])

    never, unmoved, broken, crossed = (1.0, 0.9), (0.0, 0.9), (np.nan, 0.9), (1.0, 2.0)
    rows = jnp.asarray([never, unmoved, broken, crossed], jnp.float32)
    solution = solve(FAMILY[name], g, (rows[:, 0], rows[:, 1]), jnp.zeros(3))
    status = [Status.OUT_OF_STEPS, Status.ZERO_GRADIENT, Status.NON_FINITE, Status.CONVERGED]
    # Far out the gradient of tanh vanishes in float32; the search stays where it is, and is out of steps in the end.
    assert np.asarray(solution.status).tolist() == status
    assert np.isinf(solution.margin[1])
    assert np.isnan(solution.margin[2])
    np.testing.assert_array_equal(solution.adversarial_label, [0, 0, -1, 1])
    # tanh(z . 1) = 1 / 2 at a distance of atanh(1 / 2) / sqrt(3)
    np.testing.assert_allclose(solution.margin[3], np.arctanh(0.5) / np.sqrt(3), rtol=0.02)


def test_a_sample_on_the_boundary_has_a_tiny_margin():
    parameters = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 6)), jnp.float32), jnp.ones((5, 3))
    for solver in FAMILY.values():
        solution = solve(solver, affine, parameters, jnp.zeros(6))
        assert (np.asarray(solution.status) == Status.CONVERGED).all()
        assert (np.asarray(solution.margin) < 1e-4).all()


@pytest.mark.parametrize("name", ALL)
def test_a_tie_of_zeros_is_won_by_the_first_class_whatever_their_signs(name):
    def g(slope, z):
        return jnp.stack([-(slope @ z), slope @ z])

    slopes = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    assert np.signbit(g(slopes[0], jnp.zeros(3))).tolist() == [True, False]
    solution = solve(ALL[name], g, slopes, jnp.zeros(3))
    np.testing.assert_array_equal(solution.label, [0, 0])
    np.testing.assert_array_equal(solution.adversarial_label, [1, 1])


def test_a_search_out_of_steps_ends_at_a_point_that_was_looked_at():
    """For any number of steps, where the logits are those of the label, the label is the one that is told."""
    classifier = hmt_jax.models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3)
    images = jax.random.uniform(jax.random.key(1), (9, 4, 4, 1))
    windows = subspaces.dct_diagonal((4, 4, 1), size=2, step=1)
    numbers_out_of_steps = []
    for max_steps in (1, 2):
        for solver in (
            solvers.ddn(num_steps=1, max_steps=max_steps),
            solvers.fmn(num_steps=1, max_steps=max_steps),
            solvers.closest_point(num_steps=1, max_steps=max_steps),
            solvers.superdeepfool(max_steps=max_steps),
        ):
            found = hmt_jax.measure_margins(classifier, images, windows, solver, keep_coordinates=True)
            is_out = found.status == Status.OUT_OF_STEPS
            numbers_out_of_steps.append(is_out.sum())
            assert (found.gap[is_out] <= 0).all()
            np.testing.assert_allclose(found.margin, np.linalg.norm(found.coordinates, axis=2), rtol=1e-5)
    assert sum(numbers_out_of_steps) > 20


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: solvers.deepfool(max_steps=2.5), "max_steps"),
        (lambda: solvers.superdeepfool(num_candidates=2.5), "num_candidates"),
        (lambda: solvers.ddn(num_steps=2.5), "num_steps"),
        (lambda: exact.scan(num_angles=2.5), "num_angles"),
    ],
)
def test_counts_are_whole_numbers(make, field):
    with pytest.raises(ValueError, match=rf"{field} must be a whole number, got 2\.5"):
        make()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="effort must be one of fast, normal, thorough"):
        solvers.tight("more")
    with pytest.raises(ValueError, match="max_steps must be at least num_steps"):
        solvers.ddn(num_steps=50, max_steps=10)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        solvers.fmn(num_steps=0)
    with pytest.raises(ValueError, match="num_candidates must be at least 2"):
        solvers.superdeepfool(num_candidates=1)
    with pytest.raises(ValueError, match="overshoot must be finite and not negative"):
        solvers.superdeepfool(overshoot=-0.1)
    with pytest.raises(ValueError, match="num_bisections must not be negative"):
        hmt_jax.measure_margins(lambda images: images[:, 0, 0], jnp.ones((1, 2, 2, 1)), None, num_bisections=-1)


def test_bisection_of_what_deepfool_finds():
    """Against halving in NumPy, of the perturbations that DeepFool returns."""
    key = jax.random.key(0)
    classifier = hmt_jax.models.create("mlp", key, image_shape=(4, 4, 1), num_classes=3)
    images = jax.random.uniform(jax.random.key(1), (7, 4, 4, 1))
    windows = subspaces.dct_diagonal((4, 4, 1), size=2, step=1)
    before = hmt_jax.measure_margins(classifier, images, windows, keep_coordinates=True)
    after = hmt_jax.measure_margins(classifier, images, windows, keep_coordinates=True, num_bisections=12)
    for r, n in np.ndindex(before.margin.shape):
        z, inside, outside = before.coordinates[r, n], 0.0, 1.0
        for _ in range(12):
            middle = (inside + outside) / 2
            label = int(classifier((images[n] + windows[r].embed(jnp.asarray(middle * z)))[None]).argmax())
            inside, outside = (middle, outside) if label == before.label[r, n] else (inside, middle)
        # A last halving or two may fall the other way by rounding.
        np.testing.assert_allclose(after.margin[r, n], outside * before.margin[r, n], rtol=2**-10)
        np.testing.assert_allclose(np.linalg.norm(after.coordinates[r, n]), after.margin[r, n], rtol=1e-5)
    assert (after.margin <= before.margin).all()
    assert (after.margin < 0.999 * before.margin).any()
    assert (after.gap >= -1e-5).all()


def test_bisection_does_not_take_nan_for_another_label():
    """Its logits are NaN on the way from 0.3 to 0.5, and of another label from 0.8."""

    def classifier(images):
        x = images[:, 0, 0, 0]
        return jnp.stack([jnp.full_like(x, 0.8), jnp.where((x > 0.3) & (x < 0.5), jnp.nan, x)], axis=1)

    pixel = subspaces.full((1, 1, 1))
    image = jnp.zeros((1, 1, 1, 1))
    halved = hmt_jax.measure_margins(classifier, image, pixel, solvers.deepfool(), num_bisections=3)
    assert halved.is_converged.all()
    assert 0.8 <= halved.margin[0, 0] <= 0.816
    assert np.isfinite(halved.gap).all()


def test_known_margins_do_not_become_larger():
    """DeepFool's points stand where a solver of one step finds none, and where it finds a farther one."""
    classifier = hmt_jax.models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3)
    images = jax.random.uniform(jax.random.key(1), (9, 4, 4, 1))
    windows = subspaces.dct_diagonal((4, 4, 1), size=2, step=1)
    deepfool = hmt_jax.measure_margins(classifier, images, windows, keep_coordinates=True)
    poor = solvers.fmn(num_steps=1, max_steps=1)
    alone = hmt_jax.measure_margins(classifier, images, windows, poor)
    joined = hmt_jax.measure_margins(classifier, images, windows, poor, known=deepfool)
    assert (~alone.is_converged).any() or (alone.margin > deepfool.margin).any()
    expected = np.fmin(np.where(alone.is_converged, alone.margin, np.inf), deepfool.margin)
    np.testing.assert_array_equal(joined.margin, expected)
    assert joined.is_converged.all()
    tight = hmt_jax.measure_margins(classifier, images, windows, solvers.tight("fast"), known=deepfool)
    assert (tight.margin <= deepfool.margin).all()
    with pytest.raises(ValueError, match="measured without coordinates: measure it with keep_coordinates=True"):
        hmt_jax.measure_margins(classifier, images, windows, known=alone)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_tight_margins_beside_exact_ones(dimension):
    """Of an MLP, whose linear regions are gone through one by one."""
    options = {"num_classes": 4, "num_hidden": (16, 16)}
    classifier = hmt_jax.models.create("mlp", jax.random.key(2), image_shape=(4, 4, 1), **options)
    images = np.random.default_rng(3).uniform(size=(12, 4, 4, 1)).astype(np.float32)
    subspace = subspaces.random(jax.random.key(4), (4, 4, 1), dimension)
    result = hmt_jax.measure_margins(classifier, images, subspace, solvers.tight("normal"))
    margins = np.array([exact.piecewise_linear(classifier, image, subspace).margin for image in images])
    is_crossed = np.isfinite(margins)
    np.testing.assert_array_equal(result.is_converged[0], is_crossed)
    ratios = result.margin[0][is_crossed] / margins[is_crossed]
    assert is_crossed.sum() > 6
    assert (ratios > 1 - 1e-5).all()
    # On lines and in planes it looks everywhere; in space it may take another of several boundaries.
    assert (ratios < 1.01).mean() >= (1 if dimension < 3 else 0.75)


@pytest.mark.usefixtures("optimised")
def test_tight_margins_of_the_reference_network_in_planes(reference, reference_lenet):
    """Against a scan with rays and rings that are finer by far."""
    images = reference["images"][:3].reshape(3, 28, 28, 1).astype(np.float32) / 255
    plane = subspaces.random(jax.random.key(0), (28, 28, 1), 2)
    tight = hmt_jax.measure_margins(reference_lenet, images, plane, solvers.tight("fast"))
    median = float(np.median(tight.margin))
    fine = exact.scan(reach=1.1 * float(tight.margin.max()), resolution=median / 12, num_angles=100)
    scanned = hmt_jax.measure_margins(reference_lenet, images, plane, fine)
    np.testing.assert_allclose(tight.margin, scanned.margin, rtol=0.01)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64], ids=lambda dtype: dtype.__name__
)
@pytest.mark.parametrize("name", [*ALL, "scan"])
def test_states_keep_their_types(name, dtype, x64):
    """A loop that is compiled whole, as on accelerators, takes no others; nor does strict promotion of dtypes."""
    solver, dimension = (exact.scan(), 2) if name == "scan" else (ALL[name], 9)
    origin, weights = jnp.zeros(dimension, dtype), jnp.ones((3, dimension), dtype)

    def restriction(z):
        return jnp.tanh(weights @ z) + jnp.arange(3, dtype=dtype)

    def start():
        return solver.start(restriction, solvers.linearize(restriction, origin, solver.num_candidates))

    with jax.numpy_dtype_promotion("strict"):
        before = jax.eval_shape(start)
        after = jax.eval_shape(lambda state: solver.step(restriction, state), before)
        jax.eval_shape(lambda state: (solver.done(state), solver.result(state)), before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("is_linear", [True, False])
def test_a_sample_without_a_single_logit_but_0_is_on_the_boundary(name, is_linear):
    """A black image, for a network without biases: the label changes at once, whatever else is measured."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)

    def classifier(images):
        features = images.reshape(len(images), -1)
        return (features if is_linear else jnp.tanh(features)) @ weights

    result = hmt_jax.measure_margins(
        classifier, np.zeros((1, 3, 3, 1), np.float32), subspaces.full((3, 3, 1)), ALL[name]
    )
    assert result.status[0, 0] == Status.CONVERGED
    # DeepFool goes 1e-4 beyond what it aims at.
    assert result.margin[0, 0] <= (2e-4 if name.startswith("deepfool") else 2e-6)


def test_a_small_gap_in_half_precision_is_searched():
    """In float16, a millionth of the gap is 0."""
    parameters = (jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]], jnp.float16), jnp.asarray([[0.01, 0.0]], jnp.float16))
    solution = solve(solvers.fmn(), affine, parameters, jnp.zeros(2, jnp.float16))
    assert solution.status[0] == Status.CONVERGED
    np.testing.assert_allclose(solution.margin[0], 0.01 / np.sqrt(2), rtol=0.1)  # float16 has three digits


@pytest.mark.parametrize("name", FAMILY)
def test_logits_that_are_not_finite_are_no_label(name):
    def nan_beyond(limit, z):
        total = z.sum()
        return jnp.stack([jnp.ones(()), jnp.where(total > limit, jnp.nan, total)])

    solution = solve(FAMILY[name], nan_beyond, jnp.array([0.9]), jnp.zeros(3))
    assert solution.status.tolist() == [Status.NON_FINITE]
    assert (solution.label.tolist(), solution.adversarial_label.tolist()) == ([0], [0])
    assert np.isnan(solution.margin).all()


@pytest.mark.parametrize("name", ["ddn", "fmn", "fast"])
def test_no_step_goes_beyond_the_best_point(name):
    """Of the walk: before its polish, which may look behind the boundary by rounding."""
    solver, rng = FAMILY[name], np.random.default_rng(2)
    parameters = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 40, 10), (16, 5, 40)))

    @jax.vmap
    def greatest(row):
        def restriction(z):
            return two_layers(row, z)

        def step(search, _):
            search = solver.step(restriction, search)
            norm = jnp.linalg.norm(search.z)
            return search, jnp.where(jnp.isfinite(search.best_norm), norm / search.best_norm, 0)

        start = solver.start(restriction, solvers.linearize(restriction, jnp.zeros(10), solver.num_candidates))
        return jax.lax.scan(step, start, length=17)[1].max()

    ratios = np.asarray(jax.jit(greatest)(parameters))
    assert (ratios <= 1 + 1e-5).all()
    assert (ratios > 0.9).all()


def test_later_rounds_of_a_walk_start_anew():
    solver = solvers.tight("thorough")
    (weights, biases), _ = linear_classifiers(5)
    weights, biases = np.asarray(weights[0], float), np.asarray(biases[0], float)
    label = biases.argmax()
    normals = np.delete(weights - weights[label], label, 0)
    lengths = np.linalg.norm(normals, axis=1)
    order = np.argsort(np.delete(biases[label] - biases, label) / lengths)
    at_sample = solvers.linearize(lambda z: jnp.asarray(weights, jnp.float32) @ z + biases, jnp.zeros(64), 10)
    search = solver.start(None, at_sample)
    search = search._replace(best_z=search.z, best_norm=jnp.linalg.norm(search.z))
    restarts = [np.asarray(solver._restart(search, number), float) for number in range(4)]
    units = [restart / np.linalg.norm(restart) for restart in restarts]
    # First towards the candidates after the nearest, then around the best point, in another way each time.
    for unit, index in zip(units[:2], order[1:3], strict=True):
        assert unit @ normals[index] / lengths[index] == pytest.approx(1, abs=1e-5)
    assert np.abs(units[2] - units[3]).max() > 1e-3
